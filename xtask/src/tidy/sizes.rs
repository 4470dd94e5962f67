//! How long files, functions and lines may be. Files grow where no tool looks.

use super::File;
use std::collections::BTreeMap;

/// Lines of a file, its tests left out.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Characters of a line.
const LINE_CHARS_MAX: usize = 110;
/// Where exceptions stand, one per line: `<lines> <path>` or `<lines> <path> <function>`. The number is
/// exact: whoever makes the thing shorter lowers it, and nothing ever grows.
const EXCEPTIONS: &str = "xtask/tidy-exceptions.txt";

/// Complaints about lengths.
pub fn check(files: &[File]) -> Vec<String> {
    let mut too_long = BTreeMap::new();
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.is_source() && !is_generated(file)) {
        let lines = if file.is_rust() { file.without_tests() } else { &file.text }.lines().count();
        if lines > FILE_LINES_MAX {
            too_long.insert(file.path.clone(), lines);
        }
        if file.is_rust() {
            for (name, lines) in functions(file.without_tests()) {
                if lines > FUNCTION_LINES_MAX {
                    too_long.insert(format!("{} {name}", file.path), lines);
                }
            }
        }
        for (number, line) in file.text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                complaints.push(format!(
                    "{}:{}: line over {LINE_CHARS_MAX} characters",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    let exceptions = files.iter().find(|file| file.path == EXCEPTIONS).map_or("", |file| &file.text);
    complaints.extend(compare(&too_long, exceptions));
    complaints
}

/// Nobody writes or reads it from end to end; its source has the right length.
fn is_generated(file: &File) -> bool {
    file.text.contains("Made by cbindgen") && file.path.starts_with("include/")
}

fn compare(too_long: &BTreeMap<String, usize>, exceptions: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut allowed = BTreeMap::new();
    for line in exceptions.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        match line.split_once(' ').map(|(lines, what)| (lines.parse::<usize>(), what)) {
            Some((Ok(lines), what)) => drop(allowed.insert(what.to_owned(), lines)),
            _ => complaints.push(format!("{EXCEPTIONS}: cannot read \"{line}\"")),
        }
    }
    for (what, lines) in too_long {
        match allowed.remove(what) {
            None => complaints.push(format!("{what} has {lines} lines: take it apart")),
            Some(limit) if *lines > limit => {
                complaints.push(format!("{what} has grown from {limit} to {lines} lines: take it apart"));
            }
            Some(limit) if *lines < limit => {
                complaints
                    .push(format!("{what} has shrunk to {lines} lines: lower the number in {EXCEPTIONS}"));
            }
            Some(_) => {}
        }
    }
    complaints
        .extend(allowed.keys().map(|what| format!("{what} is short enough: remove it from {EXCEPTIONS}")));
    complaints
}

/// The functions of a file formatted by rustfmt, with their lengths: from `fn` to the closing brace at the
/// same indentation.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        for (at, end) in lines[start..].iter().enumerate() {
            let Some(end) = end.strip_prefix(indent) else { continue };
            let closed = at == 0 && (end.ends_with('}') || end.ends_with(';'));
            if closed || end == "}" || end == ");" || at > 0 && end.starts_with(')') && end.ends_with(';') {
                functions.push((name, at + 1));
                break;
            }
        }
    }
    functions
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            return name.split(['(', '<']).next();
        }
        let (word, after) = rest.split_once(' ')?;
        let known =
            word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word);
        // `pub(in path)` has a space inside; nothing else here does.
        if !known && !word.ends_with(')') {
            return None;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn lengths_of_functions() {
        let text = "pub(crate) const fn a() {}
impl B {
    pub fn b(
        x: u8,
    ) {
        if x {
        }
    }
}
trait T {
    fn c();
    fn d(
        x: u8,
    ) -> u8;
}
";
        assert_eq!(functions(text), [("a", 1), ("b", 6), ("c", 1), ("d", 3)]);
    }

    #[test]
    fn too_long_is_found_and_exceptions_only_shrink() {
        let long = format!("fn a() {{\n{}}}\n", "    x;\n".repeat(80));
        let with = |exceptions: &str| check(&[file("a/src/b.rs", &long), file(EXCEPTIONS, exceptions)]);
        assert!(with("")[0].contains("take it apart"));
        assert!(with("82 a/src/b.rs a\n").is_empty());
        assert!(with("81 a/src/b.rs a\n")[0].contains("grown"));
        assert!(with("90 a/src/b.rs a\n")[0].contains("lower"));
        assert!(with("82 a/src/b.rs a\n9 c.rs\n")[0].contains("remove it"));
        assert!(!check(&[file("a.rs", &"x\n".repeat(601))]).is_empty());
        assert!(!check(&[file("a.c", &"x".repeat(111))]).is_empty());
    }
}
