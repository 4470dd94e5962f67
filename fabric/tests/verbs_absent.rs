//! Hosts without RDMA, on any host: the same program works there and says what is missing.

use selvage_fabric::config::Rdma;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::transport::verbs::Verbs;
use std::process::Command;

const CHILD: &str = "SELVAGE_TEST_WITHOUT_LIBIBVERBS";

/// Not a test of its own: a process that cannot load libibverbs.
#[test]
fn child_without_the_library() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let error = Verbs::new(&Rdma::default()).availability(None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    println!("said: {error}");
}

#[test]
fn without_the_library_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Found first, and no library.
    std::fs::write(folder.path().join("libibverbs.so.1"), b"").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_without_the_library", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("said: there is no RDMA: libibverbs.so.1 is not installed"), "{text}");
}

#[test]
fn switched_off_it_is_not_even_looked_for() {
    let off = Rdma { enabled: false, ..Rdma::default() };
    let error = Verbs::new(&off).availability(None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.to_string().contains("enabled = false"), "{error}");
}
