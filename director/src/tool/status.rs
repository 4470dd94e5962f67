//! `selvage status`: the view for people.

use super::Common;
use super::call::Caller;
use super::table::{bytes, number, or_dash, plain, share, state, table, text, word};
use crate::cluster::status::Status;
use hyper::Method;
use selvage_fabric::error::Result;
use std::fmt::Write;

/// Shows the cluster.
pub(super) fn run(common: &Common) -> Result<String> {
    let caller = Caller::new(common.url()?)?;
    let text = caller.text(Method::GET, "/admin/view")?;
    // As it came, with what a newer director has more; but whatever else answers there is no status.
    let status: Status = caller.parse(&text)?;
    Ok(if common.json { text } else { describe(&status) })
}

/// The tables of nodes, servers and the ways between them, and how sessions are protected.
pub(super) fn describe(status: &Status) -> String {
    let mut page = format!("epoch {}, {} copies wanted\n\n", status.epoch, status.copies);
    page += &nodes(status);
    page.push('\n');
    page += &servers(status);
    if status.nodes.iter().any(|node| !node.links.is_empty()) {
        page.push('\n');
        page += &links(status);
    }
    let protection = &status.protection;
    // Writing into a string cannot fail.
    let _ = writeln!(
        page,
        "\nsessions with 0 safe copies: {}, with 1: {}, with 2: {} (wanted: {})",
        protection.none, protection.one, protection.two, status.copies
    );
    if status.starting {
        page += "the director has just started: there may be nodes that it does not know yet\n";
    }
    for dead in &status.dead {
        let what = if dead.sealed { "being adopted" } else { "being sealed" };
        let _ =
            writeln!(page, "gone: {} ({}), {what}, {} copies to settle", dead.name, dead.tag, dead.unsettled);
    }
    page
}

fn nodes(status: &Status) -> String {
    let mut nodes = table(&[
        "NODE",
        "STATE",
        "WEIGHT",
        "SESSIONS",
        "COPIES 0/1/2",
        "CACHE",
        "USED",
        "PROCESSES",
        "ADDRESS",
        "TAG",
    ]);
    for node in &status.nodes {
        let (used, whole) = node.cache_bytes;
        nodes.add_row(vec![
            word(&node.name),
            state(&node.state),
            number(node.weight),
            number(node.sessions),
            number(format!("{}/{}/{}", node.safe[0], node.safe[1], node.safe[2])),
            number(if whole == 0 { "-".to_owned() } else { bytes(whole) }),
            number(share(used, whole)),
            number(node.pids.len()),
            word(&node.address),
            word(&node.tag),
        ]);
    }
    text(nodes)
}

fn servers(status: &Status) -> String {
    let mut servers = table(&["SERVER", "STATE", "COPIES", "LEASES", "PID", "RDMA"]);
    for server in &status.servers {
        let pid = if server.pid == 0 { "-".to_owned() } else { server.pid.to_string() };
        servers.add_row(vec![
            word(&server.name),
            state(&server.state),
            number(server.sessions),
            number(bytes(server.bytes)),
            number(pid),
            word(&server.rdma),
        ]);
    }
    text(servers)
}

fn links(status: &Status) -> String {
    let mut links = table(&["LINK OF", "TO", "TRANSPORT", "BEAT", "DETAIL"]);
    for node in &status.nodes {
        for link in &node.links {
            links.add_row(vec![
                word(&node.name),
                word(&link.server),
                word(&link.transport),
                number(link.beat_age_ms.map_or_else(|| "-".to_owned(), |age| format!("{age} ms"))),
                word(&or_dash(&plain(&link.detail))),
            ]);
        }
    }
    text(links)
}
