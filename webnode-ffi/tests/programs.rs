//! C and C++ programs against a real cluster: the examples, plain, under AddressSanitizer and under Valgrind,
//! and a crowd of processes and threads.

mod support;

use support::cluster::Cluster;
use support::compile::{compile, compile_with};
use support::{Tool, library_dir, scratch};

fn said_by_the_example(said: &str) {
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert_eq!(lines[0], "copies: 2");
    assert!(lines[1].starts_with("Set-Cookie: selvage="), "{said}");
    assert!(lines[1].ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{said}");
    assert_eq!(lines[2], "ada came 1 times");
    let json: serde_json::Value = serde_json::from_str(lines[3]).expect("JSON");
    assert_eq!(json["node"], "n1");
    assert_eq!(json["copies"], 2);
    assert_eq!(json["attributes"], serde_json::json!({ "user": "ada", "visits": 1 }));
    let cookie = lines[1].trim_start_matches("Set-Cookie: selvage=");
    assert!(cookie.starts_with(json["id"].as_str().expect("an id")), "{said}");
}

#[test]
fn the_c_example_runs() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let program = compile(dir.path(), "examples/session.c", &[]);
    said_by_the_example(&Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed());
    assert_eq!(cluster.segments(), [""; 0], "the last process out leaves nothing in /dev/shm");
}

#[test]
fn the_c_example_runs_with_the_static_library() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let library = library_dir().join("libselvage.a").display().to_string();
    let libraries = [&*library, "-lgcc_s", "-lutil", "-lrt", "-lm", "-ldl"];
    let program = compile_with(dir.path(), "examples/session.c", &[], &libraries);
    said_by_the_example(&Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed());
}

#[test]
fn a_cached_read_neither_allocates_nor_enters_the_kernel() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let program = compile(dir.path(), "tests/c/reads.c", &[]);
    let said = Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed();
    assert_eq!(said, "40000 reads: no allocation, no system call\n");
}

#[test]
fn the_c_example_runs_from_the_environment() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let program = compile(dir.path(), "examples/session.c", &[]);
    let said =
        Tool::at(&program).env("SELVAGE_CONFIG", cluster.config_path()).env("SELVAGE_NODE", "n1").succeed();
    said_by_the_example(&said);
}

#[test]
fn the_c_example_is_clean_under_address_sanitizer() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let options = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
    let program = compile(dir.path(), "examples/session.c", &options);
    said_by_the_example(&Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed());
}

#[test]
fn the_c_example_is_clean_under_valgrind() {
    let (cluster, dir) = (Cluster::start_patient(), scratch());
    let program = compile(dir.path(), "examples/session.c", &[]);
    let said = Tool::find("valgrind", "apt-get install valgrind")
        .args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"])
        .arg(&program)
        .arg(cluster.config_path())
        .arg("n1")
        .succeed();
    said_by_the_example(&said);
}

#[test]
fn the_asynchronous_cpp_example_runs() {
    let (cluster, dir) = (Cluster::start(), scratch());
    for options in [&[][..], &["-fsanitize=address,undefined"][..]] {
        let program = compile(dir.path(), "examples/async.cc", options);
        let said = Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{said}");
        for (number, line) in lines.iter().enumerate() {
            assert!(line.starts_with(&format!("commit {number}: 2 copies, version ")), "{said}");
        }
    }
}

#[test]
fn a_crowd_of_forks_threads_and_processes_counts_every_increment_once() {
    let (cluster, dir) = (Cluster::start(), scratch());
    for options in [&[][..], &["-fsanitize=address"][..]] {
        let program = compile(dir.path(), "tests/c/crowd.c", options);
        // A child cannot free what its parent's threads hold, so looking for leaks would find all of that.
        let said = Tool::at(&program)
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .arg(cluster.config_path())
            .args(["n1", "4", "3", "25"])
            .succeed();
        assert_eq!(said, "400 of 400 increments, 0 processes failed\n");
    }
    assert_eq!(cluster.segments(), [""; 0], "the last process out leaves nothing in /dev/shm");
}

#[test]
fn a_user_is_logged_out_everywhere() {
    let (cluster, dir) = (Cluster::start(), scratch());
    for options in [&[][..], &["-fsanitize=address,undefined"][..]] {
        let program = compile(dir.path(), "tests/c/owner.c", options);
        let said = Tool::at(&program).arg(cluster.config_path()).arg("n1").succeed();
        let expected = "destroyed 3 of ann\ndestroyed 2 of ann in the background\n\
                        nobody: 101, the owner's name is empty, count 99\nNULL: 100\ndestroyed 1 of bob\n";
        assert_eq!(said, expected);
    }
    assert_eq!(cluster.segments(), [""; 0], "the last process out leaves nothing in /dev/shm");
}

#[test]
fn a_missing_cluster_is_an_error_with_a_bound() {
    let dir = scratch();
    let program = compile(dir.path(), "examples/session.c", &[]);
    let failed = Tool::at(&program).arg("/nonexistent/selvage.toml").arg("n1").fail();
    assert!(failed.contains("attach: the operating system refused"), "{failed}");
    assert!(failed.contains("/nonexistent/selvage.toml"), "{failed}");
}
