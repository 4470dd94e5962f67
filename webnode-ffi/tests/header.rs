//! `include/selvage.h`: generated, committed and true. `SELVAGE_BLESS=1 cargo test -p selvage-webnode-ffi`
//! writes it anew.

mod support;

use std::path::PathBuf;

use support::{Tool, blessing, repo, scratch};

/// The sources in the order of the header.
const SOURCES: [&str; 9] =
    ["status", "guard", "node", "cookie", "session", "attributes", "finish", "owner", "completion"];

fn generated() -> String {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml")).expect("cbindgen.toml is good");
    let builder = SOURCES.iter().fold(cbindgen::Builder::new(), |builder, name| {
        builder.with_src(package.join(format!("src/{name}.rs")))
    });
    let mut text = Vec::new();
    builder.with_config(config).generate().expect("the sources can be read").write(&mut text);
    for_c(&String::from_utf8(text).expect("UTF-8"))
}

/// Rust's "# Safety" sections speak to Rust callers; the header's rules and "Errors:" lines say the same to
/// C's.
fn for_c(text: &str) -> String {
    let mut lines = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        let comment = line.trim_start().strip_prefix("//");
        if comment.is_some_and(|comment| comment.trim() == "# Safety") {
            skipping = true;
            while lines.last().is_some_and(|last: &&str| last.trim() == "//") {
                lines.pop();
            }
        } else if comment.is_none() {
            skipping = false;
        }
        if !skipping {
            lines.push(line.trim_end());
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let path = repo().join("include/selvage.h");
    let made = generated();
    if blessing() {
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("include/");
        std::fs::write(&path, &made).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("include/selvage.h");
    for (number, (ours, theirs)) in made.lines().zip(committed.lines()).enumerate() {
        assert_eq!(ours, theirs, "include/selvage.h:{}: run with SELVAGE_BLESS=1", number + 1);
    }
    assert_eq!(made.len(), committed.len(), "include/selvage.h: run with SELVAGE_BLESS=1");
}

#[test]
fn the_header_compiles_alone_as_c11_and_cpp17() {
    let dir = scratch();
    for (compiler, standard, file) in [("gcc", "-std=c11", "alone.c"), ("g++", "-std=c++17", "alone.cc")] {
        let source = dir.path().join(file);
        std::fs::write(&source, "#include <selvage.h>\n").expect("written");
        Tool::find(compiler, "apt-get install gcc g++")
            .args([standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"])
            .arg("-I")
            .arg(repo().join("include"))
            .arg(&source)
            .succeed();
    }
}

/// Every constant and every structure's size and offsets, as C sees them through the header, against Rust's.
#[test]
fn c_and_rust_agree_on_sizes_offsets_and_values() {
    let (source, expected) = support::probe::program();
    let dir = scratch();
    let path = dir.path().join("probe.c");
    std::fs::write(&path, source).expect("written");
    Tool::find("gcc", "apt-get install gcc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(dir.path().join("probe"))
        .arg("-I")
        .arg(repo().join("include"))
        .arg(&path)
        .succeed();
    let said = Tool::at(&dir.path().join("probe")).succeed();
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said, expected);
    assert!(said.len() > 80, "the probe looks at {} things only", said.len());
}

/// The header's constants are all in the probe, so that a new one is compared, too.
#[test]
fn the_probe_knows_every_constant_and_structure() {
    let (source, _) = support::probe::program();
    let header = generated();
    for line in header.lines() {
        let named = line
            .strip_prefix("#define ")
            .and_then(|rest| rest.split_once(' '))
            .or_else(|| line.trim().strip_prefix("SELVAGE_STATUS_").and_then(|_| line.trim().split_once(' ')))
            .map(|(name, _)| name)
            .or_else(|| line.strip_prefix("} ").and_then(|rest| rest.strip_suffix(';')));
        if let Some(name) = named {
            assert!(source.contains(&format!("({name}")) || name == "SELVAGE_H", "the probe lacks {name}");
        }
    }
}
