//! `include/selvage.hpp`: it compiles where it says it does, does what it says against a real cluster, and
//! its misuse does not compile.

mod support;

use std::path::Path;

use support::cluster::Cluster;
use support::compile::compile;
use support::{Tool, repo, scratch};

/// What every user may have switched on.
const WARNINGS: [&str; 6] = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"];

/// The compilers of this host: g++ always, clang++ where it is.
fn compilers() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let clang = std::env::split_paths(&path).any(|dir| dir.join("clang++").is_file());
    if clang { vec!["g++", "clang++"] } else { vec!["g++"] }
}

fn check_only(compiler: &str, source: &Path, options: &[&str]) -> Tool {
    Tool::find(compiler, "apt-get install g++")
        .args(WARNINGS)
        .args(options)
        .arg("-fsyntax-only")
        .arg("-I")
        .arg(repo().join("include"))
        .arg(source)
}

#[test]
fn the_header_compiles_clean_in_every_dialect() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/handles.cc");
    for compiler in compilers() {
        for options in [&["-std=c++17", "-fno-exceptions", "-fno-rtti"][..], &["-std=c++20"]] {
            check_only(compiler, &source, options).succeed();
        }
    }
}

/// Each line, in a function that otherwise compiles, and a word of what the compiler must say to it.
const MISUSES: [(&str, &str); 10] = [
    ("selvage::session copy = *session;", "deleted"),
    ("selvage::node copy = *node; (void)copy;", "deleted"),
    ("selvage::session other; other = *session;", "deleted"),
    ("node->create();", "nodiscard"),
    ("session->set(\"name\", 1);", "nodiscard"),
    ("auto view = selvage::session().json(); (void)view;", "deleted"),
    ("auto view = node->create()->read(\"name\"); (void)view;", "deleted"),
    (
        "auto text = node->create().error().text(); auto s = selvage::status().text(); (void)text; (void)s;",
        "deleted",
    ),
    ("(void)session->set(\"name\", std::uint64_t(1));", "cast it to std::int64_t"),
    ("(void)session->set(\"name\", node);", "not a type of an attribute"),
];

#[test]
fn misuse_does_not_compile() {
    let dir = scratch();
    let source = dir.path().join("misuse.cc");
    let with = |line: &str| {
        let text = format!(
            "#include <selvage.hpp>\n#include <cstdint>\nint main()\n{{\n\
             auto node = selvage::node::attach();\n\
             if (!node) return 1;\n\
             auto session = node->create();\n\
             {line}\n\
             return session.ok() ? 0 : 1;\n}}\n"
        );
        std::fs::write(&source, text).expect("written");
        check_only("g++", &source, &["-std=c++17"])
    };
    with("").succeed();
    for (line, expected) in MISUSES {
        let said = with(line).fail();
        assert!(said.contains(expected), "{line}\n{said}");
    }
}

/// What the program says when all of its checks have held.
fn all_held(said: &str) {
    let checks: u32 = said.trim().strip_suffix(" checks").and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(checks > 100, "{said}");
}

#[test]
fn everything_does_what_it_says_under_the_sanitizers() {
    let (cluster, dir) = (Cluster::start(), scratch());
    let sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    for options in [&[][..], &sanitized[..]] {
        let program = compile(dir.path(), "tests/c/handles.cc", options);
        all_held(&Tool::at(&program).arg(cluster.config_path()).args(["n1", "n2"]).succeed());
    }
    assert_eq!(cluster.segments(), [""; 0], "the last process out leaves nothing in /dev/shm");
}

#[test]
fn everything_does_what_it_says_under_valgrind() {
    let (cluster, dir) = (Cluster::start_patient(), scratch());
    let program = compile(dir.path(), "tests/c/handles.cc", &[]);
    let said = Tool::find("valgrind", "apt-get install valgrind")
        .args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"])
        .arg(&program)
        .arg(cluster.config_path())
        .args(["n1", "n2"])
        .succeed();
    all_held(&said);
}

/// A function that is new in C has its place in C++, too.
#[test]
fn every_function_of_the_c_interface_is_in_the_cpp_header() {
    let include = repo().join("include");
    let text = ["selvage.hpp", "selvage/values.hpp"]
        .map(|name| std::fs::read_to_string(include.join(name)).expect("a header"))
        .concat();
    let symbols = Path::new(env!("CARGO_MANIFEST_DIR")).join("symbols.txt");
    let symbols = std::fs::read_to_string(symbols).expect("webnode-ffi/symbols.txt");
    let missing: Vec<&str> = symbols.lines().filter(|name| !text.contains(*name)).collect();
    assert_eq!(missing, [""; 0], "functions that selvage.hpp lacks");
    // And so has every status.
    let header = std::fs::read_to_string(include.join("selvage.h")).expect("a header");
    for line in header.lines().filter(|line| line.trim().starts_with("SELVAGE_STATUS_")) {
        let name = line.trim().split(' ').next().unwrap_or_default();
        assert!(text.contains(&format!("= {name},")), "selvage::code lacks {name}");
    }
}

/// The lines of the documentation are a program's.
#[test]
fn the_documented_request_compiles() {
    let page = std::fs::read_to_string(repo().join("docs/c.md")).expect("docs/c.md");
    let (_, rest) = page.split_once("```cpp\n").expect("C++");
    let (lines, _) = rest.split_once("```").expect("its end");
    let dir = scratch();
    let source = dir.path().join("request.cc");
    let text = format!(
        "#include <selvage.hpp>\nint misdirected(std::string_view);\nint unavailable(std::string_view);\n\
         void show(std::string_view, const selvage::value &);\n\
         int request(const selvage::node &, const selvage::cookie &);\n\
         int request(const selvage::node &node, const selvage::cookie &cookie)\n\
         {{\n{lines}return static_cast<int>(commit->copies);\n}}\n"
    );
    std::fs::write(&source, text).expect("written");
    check_only("g++", &source, &["-std=c++17"]).succeed();
}
