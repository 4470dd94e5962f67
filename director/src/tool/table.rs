//! The view as a table for people.

use crate::cluster::status::Status;
use std::fmt::Write;

/// The tables of nodes and servers, and how sessions are protected.
pub(super) fn table(status: &Status) -> String {
    let nodes = status.nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.state.clone(),
            node.sessions.to_string(),
            format!("{}/{}/{}", node.safe[0], node.safe[1], node.safe[2]),
            node.address.clone(),
            or_dash(&node.tag),
            list(&node.pids),
        ]
    });
    let servers = status.servers.iter().map(|server| {
        vec![
            server.name.clone(),
            server.state.clone(),
            server.sessions.to_string(),
            format!("{:.1} MiB", server.bytes as f64 / f64::from(1 << 20)),
            if server.pid == 0 { "-".to_owned() } else { server.pid.to_string() },
            or_dash(&server.rdma),
        ]
    });
    let links = status.nodes.iter().flat_map(|node| {
        node.links.iter().map(|link| {
            vec![
                node.name.clone(),
                or_dash(&link.server),
                or_dash(&link.transport),
                link.beat_age_ms.map_or_else(|| "-".to_owned(), |age| format!("{age} ms")),
                or_dash(&link.detail),
            ]
        })
    });
    let mut text = format!("epoch {}\n\n", status.epoch);
    rows(
        &mut text,
        &["NODE", "STATE", "SESSIONS", "COPIES 0/1/2", "ADDRESS", "TAG", "PIDS"],
        nodes.collect(),
    );
    text.push('\n');
    rows(&mut text, &["SERVER", "STATE", "SESSIONS", "LEASES", "PID", "RDMA"], servers.collect());
    let links: Vec<Vec<String>> = links.collect();
    if !links.is_empty() {
        text.push('\n');
        rows(&mut text, &["LINK OF", "TO", "TRANSPORT", "BEAT", "DETAIL"], links);
    }
    let protection = &status.protection;
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "\nsessions with 0 safe copies: {}, with 1: {}, with 2: {} (wanted: {})",
        protection.none, protection.one, protection.two, status.copies
    );
    for dead in &status.dead {
        let what = if dead.sealed { "being adopted" } else { "being sealed" };
        let _ =
            writeln!(text, "gone: {} ({}), {what}, {} copies to settle", dead.name, dead.tag, dead.unsettled);
    }
    text
}

fn rows(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in &all {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
}

fn list(pids: &[u32]) -> String {
    or_dash(&pids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
