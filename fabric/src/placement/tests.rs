use super::*;
use crate::ident::Incarnation;

fn server(name: &str, weight: u32) -> ServerEntry {
    ServerEntry {
        name: name.into(),
        incarnation: Incarnation(1),
        weight,
        socket: String::new(),
        control: None,
    }
}

fn node(name: &str, state: NodeState) -> NodeEntry {
    NodeEntry { name: name.into(), incarnation: Incarnation(1), state, address: String::new() }
}

/// Ids that are spread like random ones, and the same in every run.
fn id(number: u64) -> SessionId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&xxh3_64(&number.to_le_bytes()).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    SessionId(bytes)
}

fn names<'a>(servers: &'a [ServerEntry], placement: &Placement) -> Vec<&'a str> {
    placement.iter().map(|&index| servers[usize::from(index)].name.as_str()).collect()
}

#[test]
fn the_logarithm_is_right_and_monotone() {
    let mut last = u64::MAX;
    for step in 0..100_000_u64 {
        let hash = (step + 1) * (u64::MAX / 100_001);
        let got = minus_log2(hash) as f64 / (1_u64 << 32) as f64;
        let want = 64.0 - (hash as f64).log2();
        assert!((got - want).abs() < 4e-6, "{hash}: {got} {want}");
        assert!(minus_log2(hash) <= last);
        last = minus_log2(hash);
    }
    assert_eq!(minus_log2(0), 64 << 32);
    assert!(minus_log2(u64::MAX) < 1 << 8);
}

#[test]
fn copies_are_on_different_servers_and_independent_of_order() {
    let servers = [server("s1", 1), server("s2", 3), server("s3", 1)];
    let reversed: Vec<_> = servers.iter().rev().cloned().collect();
    for number in 0..10_000 {
        let placement = servers_for(id(number), &servers, 2);
        assert_eq!(placement.len(), 2);
        assert_ne!(placement[0], placement[1]);
        assert_eq!(names(&servers, &placement), names(&reversed, &servers_for(id(number), &reversed, 2)));
    }
    assert!(servers_for(id(1), &[], 2).is_empty());
    assert_eq!(servers_for(id(1), &servers[..1], 2).len(), 1);
}

#[test]
fn one_copy_makes_disjoint_subsets_in_proportion_to_weight() {
    let servers = [server("s1", 1), server("s2", 2), server("s3", 5)];
    let mut counts = [0_u32; 3];
    let total = 80_000;
    for number in 0..total {
        let placement = servers_for(id(number), &servers, 1);
        assert_eq!(placement.len(), 1);
        counts[usize::from(placement[0])] += 1;
    }
    assert_eq!(counts.iter().sum::<u32>() as u64, total);
    for (count, weight) in counts.iter().zip([1.0, 2.0, 5.0]) {
        let want = total as f64 * weight / 8.0;
        assert!((f64::from(*count) - want).abs() < want * 0.05, "{counts:?}");
    }
}

#[test]
fn a_server_that_goes_moves_only_its_own_sessions_and_gets_them_back() {
    let all = [server("s1", 1), server("s2", 2), server("s3", 1), server("s4", 1)];
    let without = [all[0].clone(), all[1].clone(), all[3].clone()];
    for number in 0..10_000 {
        let before = names(&all, &servers_for(id(number), &all, 2)).join(" ");
        let after = names(&without, &servers_for(id(number), &without, 2)).join(" ");
        if before.contains("s3") {
            let kept = before.replace("s3", "");
            assert!(after.contains(kept.trim()), "{before} -> {after}");
        } else {
            assert_eq!(before, after);
        }
    }
}

#[test]
fn the_adopter_is_a_node_that_is_up_and_moves_little() {
    let nodes = [node("n1", NodeState::Up), node("n2", NodeState::Draining), node("n3", NodeState::Up)];
    let mut counts = [0; 2];
    for number in 0..10_000 {
        let adopter = adopter_of(id(number), &nodes).unwrap();
        assert_ne!(adopter.name, "n2");
        counts[usize::from(adopter.name == "n3")] += 1;
        if adopter.name == "n1" {
            assert_eq!(adopter_of(id(number), &nodes[..1]).unwrap().name, "n1");
        }
    }
    assert!(counts.iter().all(|&count| count > 4_500), "{counts:?}");
    assert!(adopter_of(id(0), &nodes[1..2]).is_none());
}

/// Every part of a cluster must compute the same placement, also over a rolling upgrade.
#[test]
fn golden_vectors() {
    let servers = [server("s1", 1), server("s2", 1), server("s3", 2), server("far-away", 1000)];
    let nodes = [node("n1", NodeState::Up), node("n2", NodeState::Up), node("n3", NodeState::Up)];
    let mut text = String::new();
    for number in 0..32 {
        let id = id(number);
        text += &format!(
            "{id} {} | {} | {}\n",
            names(&servers, &servers_for(id, &servers, 2)).join(" "),
            names(&servers, &servers_for(id, &servers[..3], 2)).join(" "),
            adopter_of(id, &nodes).unwrap().name
        );
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/placement.txt");
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, golden, "placement changed: clusters of mixed builds would disagree");
}
