//! `cargo x run`: a whole cluster on this host, in the foreground.

use crate::setup;
use anyhow::Result;
use selvage_fabric::limits::CACHE_BYTES_DEFAULT;
use selvage_tests::cluster::{Cluster, Options, WebServer};
use selvage_tests::product::Product;
use std::io::Write;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Options of `cargo x run`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Web nodes, each an nginx with two workers, but for --cpp-nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    nodes: u32,
    /// How many of the web nodes are the C++ server of webnode-ffi/examples/httplib instead
    #[arg(long, default_value_t = 0)]
    cpp_nodes: u32,
    /// Session servers
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    servers: u32,
    /// Copies of each session
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=2))]
    copies: u32,
    /// Port of the director, where browsers connect
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port of the admin API
    #[arg(long, default_value_t = 8081)]
    admin_port: u16,
}

impl Arguments {
    /// The last ones.
    fn cpp_nodes(&self) -> impl Iterator<Item = String> + use<> {
        let nodes = self.nodes;
        (0..self.cpp_nodes.min(nodes)).map(move |at| format!("n{}", nodes - at))
    }
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// Runs the command.
///
/// # Errors
/// The cluster cannot be started or stopped.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::BUILD, setup::RUN])?;
    if arguments.cpp_nodes > 0 {
        setup::ensure(&[setup::CPP])?;
    }
    let product = Product::ready()?;
    runtime()?.block_on(run(product, arguments))
}

/// The runtime of commands that talk HTTP.
///
/// # Errors
/// The system refuses.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn run(product: Product, arguments: &Arguments) -> Result<()> {
    let mut stop = Stop::new()?;
    let options = Options {
        nodes: arguments.nodes,
        servers: arguments.servers,
        copies: arguments.copies,
        port: Some(arguments.port),
        admin_port: Some(arguments.admin_port),
        web_servers: arguments.cpp_nodes().map(|name| (name, WebServer::Httplib)).collect(),
        tables: memory_table(arguments, Room::of_host()).into(),
        hold_socket: true,
        ..Options::default()
    };
    let mut cluster = Cluster::prepare(product, options)?;
    tokio::select! {
        started = cluster.start_all() => started?,
        () = stop.asked() => return end(cluster),
    }
    describe(&cluster);
    watch(&mut cluster, &mut stop).await;
    end(cluster)
}

/// Bytes that this host has for a cluster.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// In `/dev/shm`.
    shared: u64,
    /// In memory.
    memory: u64,
}

impl Room {
    /// What cannot be found out counts as none.
    fn of_host() -> Self {
        let shared = rustix::fs::statvfs("/dev/shm").map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        let lines = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let available = lines.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = available.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Self { shared, memory: kib.unwrap_or(0) * 1024 }
    }
}

/// The configuration's own defaults where half of the host's room is enough for them; else caches of which
/// three fit into a container's usual 64 MiB of `/dev/shm`.
fn memory_table(arguments: &Arguments, room: Room) -> &'static str {
    let (nodes, servers) = (u64::from(arguments.nodes), u64::from(arguments.servers));
    // The heap, and about a quarter more for entries and books.
    let each = CACHE_BYTES_DEFAULT + CACHE_BYTES_DEFAULT / 4;
    let shared = nodes * each;
    if 2 * shared <= room.shared && 2 * (shared + nodes * servers * each) <= room.memory {
        return "";
    }
    "[memory]\nsessions_max = 8192\ncache_bytes = 8388608\nlease_bytes = 16777216\n"
}

/// Says when a process dies, until asked to stop. Nothing is restarted: to see what happens then is what this
/// is for.
async fn watch(cluster: &mut Cluster, stop: &mut Stop) {
    loop {
        tokio::select! {
            () = stop.asked() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        for (name, status) in cluster.deaths() {
            say(&format!("{name} has ended ({status}); its log: {}", log(cluster, &name)));
        }
    }
}

fn end(cluster: Cluster) -> Result<()> {
    say("stopping");
    for name in cluster.stop()?.killed {
        say(&format!("{name} did not stop in time and was killed"));
    }
    Ok(())
}

fn describe(cluster: &Cluster) {
    let (site, admin) = (cluster.address(), cluster.admin_address());
    let mut text = String::from("\nmember    pid      log\n");
    for name in cluster.member_names() {
        let pid = cluster.process(&name).map(|process| process.pid()).unwrap_or_default();
        text.push_str(&format!("{name:<9} {pid:<8} {}\n", log(cluster, &name)));
    }
    let node = cluster.process("n1").map(|process| process.pid()).unwrap_or_default();
    text.push_str(&format!(
        "\nSelvage is up: http://{site}/ (your session), http://{admin}/admin/view (the cluster)\n\
         \n\
         Try:\n\
         \x20 curl -c jar -b jar -X POST http://{site}/session/n/incr     # count up in a session\n\
         \x20 curl -c jar -b jar http://{site}/session                    # see it: host, copies\n\
         \x20 curl -s http://{admin}/admin/view                           # nodes, servers, copies\n\
         \x20 kill -9 -- -{node}   # web node n1 with its workers; then count on: nothing is lost\n\
         \x20 curl -X POST http://{admin}/admin/nodes/n2/drain            # hand n2's sessions over\n\
         \x20 {tool} status --admin http://{admin}\n\
         \n\
         Ctrl-C stops everything and leaves nothing behind.\n",
        tool = cluster.product().operator_tool().display(),
    ));
    say(&text);
}

fn log(cluster: &Cluster, name: &str) -> String {
    cluster.folder().map(|folder| folder.log(name).display().to_string()).unwrap_or_default()
}

/// Prints at once, also into a pipe, and does not mind when nobody reads.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

impl Stop {
    /// Begins to listen; from now on the signals do not end this process by themselves.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of the signals.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_host_gets_small_caches() {
        let arguments =
            Arguments { nodes: 3, cpp_nodes: 0, servers: 2, copies: 2, port: 8080, admin_port: 8081 };
        let gib = 1 << 30;
        assert_eq!(memory_table(&arguments, Room { shared: 8 * gib, memory: 16 * gib }), "");
        for (shared, memory) in [(64 << 20, 16 * gib), (8 * gib, gib), (0, 0)] {
            let small = memory_table(&arguments, Room { shared, memory });
            assert!(small.contains("cache_bytes = 8388608"), "{shared} {memory}");
        }
    }
}
