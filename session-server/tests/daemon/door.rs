//! Who gets in, who is cut off, and how the daemon starts and stops.

use crate::host::*;
use rustix::process::Signal;
use selvage_fabric::control::message::{
    ClaimAnswer, FromServer, Hello, HelloReply, PROTOCOL_VERSION, Refusal, Role, ToServer,
};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits::{HELLO_WAIT, MESSAGE_BYTES_MAX};
use selvage_fabric::numbers::ServerCounter;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SMALL: &str = "sessions_max = 1024\nlease_bytes = 4194304\n";
/// Tells the test program, run again as another user, which socket to try.
const CHILD_SOCKET: &str = "SELVAGE_TEST_CHILD_SOCKET";

fn raw(host: &Host) -> UnixStream {
    let stream = UnixStream::connect(host.config.server_socket("s1")).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// Reads to the end: the server must cut the connection.
fn assert_cut(mut stream: UnixStream) {
    let started = Instant::now();
    let mut rest = Vec::new();
    // A reset instead of an end is a cut, too: the server did not read everything.
    let _ = stream.read_to_end(&mut rest);
    assert!(started.elapsed() < WAIT, "the connection is still open");
}

fn refusal_of(socket: &Path, role: Role) -> Option<String> {
    let mut stream = Stream::connect(socket, WAIT).unwrap();
    match stream.client_hello("test", role, WAIT) {
        Ok(_) => None,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Denied, "{error}");
            Some(error.to_string())
        }
    }
}

fn node_role(name: &str) -> Role {
    Role::Node { name: name.into(), incarnation: life(1), pid: 0 }
}

#[test]
fn a_user_that_is_not_the_nodes_is_refused() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let socket = host.config.server_socket("s1");
    assert_eq!(refusal_of(&socket, node_role("n1")), None);
    let refused = refusal_of(&socket, node_role("n4")).expect("n4 is another user's");
    assert!(refused.contains("n4") && refused.contains("uids"), "{refused}");
    assert!(refusal_of(&socket, node_role("n5")).is_some(), "no such node");
    host.director().await_counter(ServerCounter::PeersBad, 2);
}

/// Run by `another_user_is_refused` as that user.
#[test]
fn another_users_part() {
    let Some(socket) = std::env::var_os(CHILD_SOCKET) else { return };
    let socket = Path::new(&socket);
    for role in [Role::Director, Role::Operator, node_role("n1")] {
        let refused = refusal_of(socket, role.clone()).unwrap_or_else(|| panic!("let in as {role:?}"));
        assert!(refused.contains("user 12345"), "{refused}");
    }
    // It may act for the node that is configured for it, and for nobody else.
    assert_eq!(refusal_of(socket, node_role("n4")), None);
    println!("refused as it should be");
}

#[test]
fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can run a program as another user");
        return;
    }
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The test program may lie where the other user cannot reach it.
    let program = host.dir.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "door::another_users_part", "--nocapture"])
        .uid(12345)
        .gid(12345)
        .current_dir("/");
    let output = output_of({
        command.env(CHILD_SOCKET, host.config.server_socket("s1"));
        command
    });
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("refused as it should be"), "{output:?}");
}

#[test]
fn wrong_protocol_versions_and_clusters_are_told_why() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut stream = Stream::connect(&host.config.server_socket("s1"), WAIT).unwrap();
    let theirs = (PROTOCOL_VERSION + 7, PROTOCOL_VERSION + 9);
    let hello = Hello {
        protocol_min: theirs.0,
        protocol_max: theirs.1,
        cluster: "test".into(),
        role: Role::Operator,
    };
    stream.send(&hello, None, WAIT).unwrap();
    let (reply, _): (HelloReply, _) = stream.recv(WAIT).unwrap();
    let HelloReply::Refused(Refusal::Version { ours, theirs: heard }) = reply else { panic!("{reply:?}") };
    assert_eq!((ours.1, heard), (PROTOCOL_VERSION, theirs));
    assert!(stream.recv::<FromServer>(WAIT).is_err());

    let mut stream = Stream::connect(&host.config.server_socket("s1"), WAIT).unwrap();
    let error = stream.client_hello("other", Role::Operator, WAIT).unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.to_string().contains("other"), "{error}");
}

#[test]
fn hostile_bytes_cut_their_sender_off_and_nobody_else() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let mut director = host.director();
    director.set_view(view(1, director.server, &[1], &[]));
    let mut node = host.node(1);
    let link = node.lease(1);

    let too_long = (MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
    let garbage: Vec<u8> = (0..2000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let framed = [&100_u32.to_le_bytes()[..], &[0xff; 100]].concat();
    let before_hello: [&[u8]; 5] = [&garbage, &too_long, &[0; 4], &framed, b"GET / HTTP/1.1\r\n\r\n"];
    for bytes in before_hello {
        let mut stream = raw(&host);
        // The server may have cut us off before we are done.
        let _ = stream.write_all(bytes);
        assert_cut(stream);
    }
    let mut bad = before_hello.len() as u64;
    for bytes in [&too_long[..], &[0; 4], &framed] {
        let peer = host.connect(Role::Operator);
        let mut stream = UnixStream::from(rustix::io::dup(&peer.stream).unwrap());
        let _ = stream.write_all(bytes);
        assert_cut(stream);
        bad += 1;
    }
    // A message that can be read and makes no sense.
    let mut peer = host.node(1);
    let ids = vec![id(1); 5000];
    assert!(matches!(peer.ask(&ToServer::Unclaim { ids }), FromServer::Refused(Refusal::Bad(_))));
    assert!(peer.stream.recv::<FromServer>(WAIT).is_err());
    bad += 1;

    director.await_counter(ServerCounter::PeersBad, bad);
    let archive = archive(id(1), version(1), b"alive");
    let outcome = push(&link, 0, &cell(id(1), version(1), 1, 0, archive.len()), Some(&archive));
    assert_eq!(outcome, selvage_fabric::transport::Outcome::Acked);
    // The honest node goes on.
    node.register(1);
    assert_eq!(node.claim(1, &[id(1)]), [ClaimAnswer::Granted(None)]);
}

#[test]
fn a_slow_hello_is_cut_off() {
    let host = Host::new(SMALL);
    let _daemon = host.start("s1");
    let started = Instant::now();
    let mut silent = raw(&host);
    let mut slow = raw(&host);
    slow.write_all(&[20, 0]).unwrap();
    let mut byte = [0];
    assert_eq!(silent.read(&mut byte).unwrap_or(0), 0);
    assert_eq!(slow.read(&mut byte).unwrap_or(0), 0);
    let took = started.elapsed();
    assert!(took >= HELLO_WAIT - Duration::from_millis(50) && took < HELLO_WAIT + WAIT, "{took:?}");
    host.director().await_counter(ServerCounter::PeersBad, 2);
}

#[test]
fn a_second_server_of_the_name_says_so_and_harms_nothing() {
    let host = Host::new(SMALL);
    let first = host.start("s1");
    let (status, said) = host.fails("s1");
    assert_eq!(status, 3);
    assert_eq!(said.lines().filter(|line| line.starts_with("selvage-server:")).count(), 1, "{said}");
    assert!(said.contains("\"s1\" runs already") && said.contains("stop it"), "{said}");
    assert_eq!(host.director().report().name, "s1");
    let _other = host.start("s2");
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    let _again = host.start("s1");
    assert_eq!(host.director().report().name, "s1");
}

#[test]
fn a_killed_servers_socket_is_replaced() {
    let host = Host::new(SMALL);
    let first = host.start("s1");
    let before = host.director().server;
    first.signal(Signal::KILL);
    assert!(!first.wait().success());
    assert!(host.config.server_socket("s1").exists());
    let _second = host.start("s1");
    let after = host.director().server;
    assert!(after != before && after != Incarnation::NONE, "a new life: {before:?}, {after:?}");
}

#[test]
fn a_signal_stops_it_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let host = Host::new(SMALL);
        let daemon = host.start("s1");
        let mut director = host.director();
        director.set_view(view(1, director.server, &[1], &[]));
        let mut node = host.node(1);
        let _link = node.lease(1);
        let _silent = raw(&host);
        let started = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{}", host.log("s1"));
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_eq!(host.run_dir_entries(), Vec::<std::path::PathBuf>::new());
        assert_eq!(node.stream.recv::<FromServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    }
}

#[test]
fn the_log_in_json_is_one_object_for_each_line() {
    let host = Host::new(SMALL);
    let daemon = host.start_with("s1", &[("SELVAGE_LOG_FORMAT", "json")]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let log = host.log("s1");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let said: Vec<_> = lines.map(|line| (line["level"].clone(), line["message"].clone())).collect();
    assert!(said.iter().any(|(level, what)| level == "INFO" && what.is_string()), "{log}");
}

#[test]
fn bad_starts_are_one_line_that_says_what_to_do() {
    let host = Host::new(SMALL);
    let one_line = |(status, said): (i32, String), expected: i32, words: &[&str]| {
        assert_eq!(status, expected, "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    one_line(host.fails("s9"), 2, &["no [[server]] named \"s9\"", "s1, s2", "selvage.toml"]);
    std::fs::remove_dir(&host.config.cluster.run_dir).unwrap();
    one_line(host.fails("s1"), 2, &["run_dir", "does not exist", "create it"]);
    // A folder in which not even root can make a file.
    let text = std::fs::read_to_string(&host.config.path).unwrap();
    let run_dir = host.config.cluster.run_dir.display().to_string();
    std::fs::write(&host.config.path, text.replace(&run_dir, "/proc/self")).unwrap();
    one_line(host.fails("s1"), 1, &["cannot make /proc/self/server-s1.lock", "run_dir"]);
    std::fs::write(&host.config.path, text.replace("sessions_max", "sessions_most")).unwrap();
    one_line(host.fails("s1"), 2, &["selvage.toml:", "sessions_most"]);
    std::fs::remove_file(&host.config.path).unwrap();
    one_line(host.fails("s1"), 1, &["cannot read the configuration", "selvage.toml"]);
}

#[test]
fn help_shows_examples_and_exit_statuses() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selvage-server"));
    command.arg("--help");
    let said = String::from_utf8(output_of(command).stdout).unwrap();
    for word in ["--config", "--name", "SELVAGE_CONFIG", "SELVAGE_LOG", "Examples:", "Exit status"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
