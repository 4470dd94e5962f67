//! The built libraries and their sources: exported symbols, soname, and the guard around every function.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use support::{Tool, blessing, library_dir};

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_shared_library_exports_the_committed_list() {
    let listing = Tool::find("nm", "apt-get install binutils")
        .args(["-D", "--defined-only", "-P"])
        .arg(library_dir().join("libselvage.so"))
        .succeed();
    let mut exported: Vec<&str> = listing.lines().filter_map(|line| line.split(' ').next()).collect();
    exported.sort_unstable();
    let path = package().join("symbols.txt");
    if blessing() {
        std::fs::write(&path, exported.join("\n") + "\n").expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("webnode-ffi/symbols.txt");
    assert_eq!(exported, committed.lines().collect::<Vec<_>>(), "run with SELVAGE_BLESS=1 if that is meant");
    let header =
        std::fs::read_to_string(support::repo().join("include/selvage.h")).expect("include/selvage.h");
    for symbol in &exported {
        assert!(header.contains(&format!("{symbol}(")), "{symbol} is not in the header");
    }
}

#[test]
fn the_shared_library_has_its_soname() {
    let listing = Tool::find("readelf", "apt-get install binutils")
        .arg("-d")
        .arg(library_dir().join("libselvage.so"))
        .succeed();
    assert!(listing.contains("Library soname: [libselvage.so.0]"), "{listing}");
}

/// One `extern "C" fn` of the sources: its name, its parameters and its body.
struct Function {
    name: String,
    parameters: String,
    body: String,
}

fn functions() -> Vec<Function> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(package().join("src")).expect("src/") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a source");
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for rest in text.split("extern \"C\" fn ").skip(1) {
            let Some((name, rest)) = rest.split_once('(') else { continue };
            if name.is_empty() {
                continue; // A type: `extern "C" fn()`.
            }
            let (parameters, rest) = rest.split_once(')').expect("parameters end");
            let (_, body) = rest.split_once('{').expect("a body");
            found.push(Function { name: name.into(), parameters: parameters.into(), body: body.into() });
        }
    }
    found
}

/// The names in the bracketed lists of the guard at the head of a body.
fn guarded(body: &str) -> Option<BTreeSet<String>> {
    let body = body.trim_start();
    let body = body.strip_prefix("crate::guard::").unwrap_or(body);
    let body = body.strip_prefix("enter!(").or_else(|| body.strip_prefix("enter_infallible!("))?;
    let (lists, _) = body.split_once('{')?;
    let names = lists.split('[').skip(1).filter_map(|list| list.split(']').next());
    Some(
        names
            .flat_map(|list| list.split(','))
            .map(|name| name.trim().to_owned())
            .filter(|n| !n.is_empty())
            .collect(),
    )
}

#[test]
fn every_function_of_the_interface_is_guarded() {
    let functions = functions();
    assert!(functions.len() > 30, "only {} functions were found", functions.len());
    for Function { name, parameters, body } in &functions {
        let guarded = guarded(body).unwrap_or_else(|| panic!("{name} does not begin with enter!"));
        let pointers: BTreeSet<String> = parameters
            .split(',')
            .filter_map(|parameter| parameter.split_once(':'))
            .filter(|(_, kind)| kind.trim().starts_with('*'))
            .map(|(name, _)| name.trim().to_owned())
            .collect();
        assert_eq!(guarded, pointers, "{name}: the guard's lists and the pointer arguments differ");
    }
}

#[test]
fn every_exported_function_documents_its_rules() {
    let header =
        std::fs::read_to_string(support::repo().join("include/selvage.h")).expect("include/selvage.h");
    let (_, header) = header.split_once("extern \"C\" {").expect("declarations");
    let committed = std::fs::read_to_string(package().join("symbols.txt")).expect("webnode-ffi/symbols.txt");
    for symbol in committed.lines() {
        let end = header
            .find(&format!(" {symbol}("))
            .or_else(|| header.find(&format!("*{symbol}(")))
            .expect("declared");
        let comment: Vec<&str> =
            header[..end].lines().rev().skip(1).take_while(|line| line.starts_with("//")).collect();
        for word in ["Thread rule:", "Blocking:", "Ownership:", "Errors:"] {
            assert!(comment.iter().any(|line| line.contains(word)), "{symbol} does not say its \"{word}\"");
        }
    }
}
