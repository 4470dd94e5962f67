//! The host of a web node is cut off while it goes on working, and comes back: what it did meanwhile does not
//! count, and it has acked nothing since its leases were sealed.

use crate::setting::{options, report};
use selvage_tests::client::Browser;
use selvage_tests::guest::{Agent, Hypervisor, Start};
use selvage_tests::stage::{Stage, all_find_all, customers, number};
use std::time::{Duration, Instant};

/// The zombie's host.
const HOST: u8 = 1;
/// Where the answers of the zombie are kept, on its host.
const ANSWERS: &str = "/run/answers";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_cut_off_and_nothing_it_does_counts() {
    let places = [("n1", HOST), ("s1", 2), ("n2", 3), ("s2", 3)];
    let stage = Stage::with(options(2, 2, 1, &places)).await;
    let customers = customers(&stage, 30, 1).await;
    let zombie = stage.incarnation("n1").await;
    let customer = customers.iter().find(|customer| customer.cookie.host == zombie).expect("one on each");
    let agent = Agent::of(HOST);

    // A program on the zombie's own host counts up in the session all the time, past the director.
    let address = stage.node_address("n1").unwrap();
    let line = format!(
        "while :; do \
             exec 3<>/dev/tcp/{ip}/{port} || continue; \
             printf 'POST /session/n/incr HTTP/1.0\\r\\nHost: x\\r\\nCookie: selvage={cookie}\\r\\n\
                     Content-Length: 0\\r\\n\\r\\n' >&3; \
             answer=$(tr '\\r\\n' '  ' <&3); exec 3>&-; \
             echo \"$answer\" >>{ANSWERS}; sleep 0.05; \
         done",
        ip = address.ip(),
        port = address.port(),
        cookie = customer.cookie.text,
    );
    let program = agent.spawn(&Start::new("bash").arg("-c").arg(line).log("/run/zombie.log")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    let began = Instant::now();
    let hypervisor = Hypervisor::of_this_guest().unwrap();
    hypervisor.cut(HOST).unwrap();
    stage.until_taken_over(zombie, customers.len(), 1).await;
    report("partition to all sessions elsewhere, safe", began);
    // The session lives on elsewhere, from the last number that was acked or later.
    let mut browser = Browser::with_cookie(stage.address(), customer.cookie.clone());
    let moved = browser.post("/session/n/incr").await.unwrap();
    assert_eq!(moved.copies(), Some(1));
    let taken_over = number(&moved) - 1;
    tokio::time::sleep(Duration::from_secs(1)).await;

    hypervisor.join(HOST).unwrap();
    let joined = Instant::now();
    stage
        .until("n1 is back with a new life", |view| {
            view.node_is("n1", "up") && view.incarnation("n1").is_some_and(|now| now > zombie)
        })
        .await;
    report("joined to back with a new life", joined);
    agent.kill(program).unwrap();
    let answers = String::from_utf8(agent.file(ANSWERS).unwrap()).unwrap();
    let acked = acked_numbers(&answers);
    let last = *acked.last().expect("the zombie has acked something before it was cut off");
    let refused = answers.lines().filter(|answer| copies(answer) != Some(1)).count();
    println!("{} answers with a copy, up to {last}; {refused} without", acked.len());
    assert!(refused > 0, "the program has asked during the partition");
    assert!(last <= taken_over, "acked {last}, and the new host got {taken_over}");

    let after = browser.get("/session/n").await.unwrap();
    assert_eq!(number(&after), taken_over + 1, "what the zombie did is not served");
    let others: Vec<_> =
        customers.iter().filter(|other| other.cookie.id != customer.cookie.id).cloned().collect();
    all_find_all(&stage, &others).await;
    frozen(&stage).await;
    stage.end();
}

/// The same with a host that stands still and goes on later, with all its clocks behind.
async fn frozen(stage: &Stage) {
    let before = stage.incarnation("n1").await;
    let sessions = stage.admin().view().await.unwrap().sessions();
    let hypervisor = Hypervisor::of_this_guest().unwrap();
    let began = Instant::now();
    hypervisor.pause(HOST).unwrap();
    stage.until_taken_over(before, sessions as usize, 1).await;
    report("frozen to all sessions elsewhere, safe", began);
    hypervisor.resume(HOST).unwrap();
    stage
        .until("n1 is back with a new life", |view| {
            view.node_is("n1", "up") && view.incarnation("n1").is_some_and(|now| now > before)
        })
        .await;
    stage.until_connected().await;
}

/// The numbers of the answers that promise a copy.
fn acked_numbers(answers: &str) -> Vec<i64> {
    let acked = answers.lines().filter(|answer| answer.contains(" 200 ") && copies(answer) == Some(1));
    acked.filter_map(|answer| answer.split_whitespace().last()?.parse().ok()).collect()
}

/// What an answer in one line says of copies.
fn copies(answer: &str) -> Option<u32> {
    let lower = answer.to_ascii_lowercase();
    lower.split_once("selvage-copies: ")?.1.split_whitespace().next()?.parse().ok()
}
