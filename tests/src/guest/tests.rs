//! The agent, asked over this host's loopback: it needs no guest to do what it does.

use super::*;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

fn agent() -> Agent {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || serve(&listener));
    Agent::at(at)
}

#[test]
fn files_and_programs() {
    let agent = agent();
    agent.ready(Duration::from_secs(5)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/file");
    let bytes: Vec<u8> = (0..100_000u32).map(|byte| byte as u8).collect();
    agent.put_file(&path, &bytes, 0o640).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(agent.file(&path).unwrap(), bytes);
    let start = Start::new("sh").args(["-c", "echo out $V; echo err >&2; exit 3"]).env("V", "value");
    let output = agent.run(&start, Duration::from_secs(10)).unwrap();
    assert_eq!(output, Output { code: 3, stdout: "out value\n".into(), stderr: "err\n".into() });
    let start = Start::new("pwd").directory(dir.path());
    let said = agent.run(&start, Duration::from_secs(10)).unwrap().stdout;
    assert_eq!(said.trim(), dir.path().canonicalize().unwrap().to_str().unwrap());
}

#[test]
fn spawned_processes_die_with_their_group() {
    let agent = agent();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let start = Start::new("sh").args(["-c", "echo begun; sleep 60 & wait"]).log(&log);
    let pid = agent.spawn(&start).unwrap();
    assert_eq!(agent.wait(pid, Duration::from_millis(20)).unwrap(), None);
    agent.kill(pid).unwrap();
    assert_eq!(agent.wait(pid, Duration::from_secs(10)).unwrap(), Some(128 + 9));
    let quick = agent.spawn(&Start::new("sh").args(["-c", "exit 4"])).unwrap();
    assert_eq!(agent.wait(quick, Duration::from_secs(10)).unwrap(), Some(4));
    assert_eq!(agent.wait(quick, Duration::from_secs(10)).unwrap(), Some(4));
}

#[test]
fn failures_say_what_failed() {
    let agent = agent();
    let failed = |error: anyhow::Error| format!("{error:#}");
    let error = failed(agent.spawn(&Start::new("/no/such/program")).unwrap_err());
    assert!(error.contains("/no/such/program"), "{error}");
    let error = failed(agent.file("/no/such/file").unwrap_err());
    assert!(error.contains("/no/such/file"), "{error}");
    let error = failed(agent.wait(1, Duration::ZERO).unwrap_err());
    assert!(error.contains("not started by this agent"), "{error}");
    let slow = Start::new("sleep").arg("60");
    let error = failed(agent.run(&slow, Duration::from_millis(50)).unwrap_err());
    assert!(error.contains("did not end"), "{error}");
    let error = failed(agent.shell("echo why >&2; false").unwrap_err());
    assert!(error.contains("why"), "{error}");
    assert_eq!(agent.shell("echo good").unwrap(), "good\n");
}

#[test]
fn addresses_are_told_apart() {
    assert_eq!(address(0).to_string(), "10.77.0.10");
    assert_eq!(agent_address(3).to_string(), "10.77.0.13:7077");
}
