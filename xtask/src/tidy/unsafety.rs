//! Where `unsafe` may stand: in files that are named, so that a new one is a decision, and nowhere in the
//! daemons.

use super::File;

/// Crates whose roots must forbid `unsafe`.
const FORBIDDEN: [&str; 5] = [
    "director/src/lib.rs",
    "director/src/main.rs",
    "director/src/bin/selvage.rs",
    "session-server/src/lib.rs",
    "session-server/src/main.rs",
];

/// The files with `unsafe`, one per line.
const NAMED: &str = "xtask/unsafe-files.txt";

/// Complaints about `unsafe`.
pub fn check(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for path in FORBIDDEN {
        let text = files.iter().find(|file| file.path == path).map_or("", |file| &file.text);
        if !text.contains("#![forbid(unsafe_code)]") {
            complaints.push(format!("{path} must say #![forbid(unsafe_code)]"));
        }
    }
    let named = files.iter().find(|file| file.path == NAMED).map_or("", |file| &file.text);
    let mut named: Vec<&str> =
        named.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for file in files.iter().filter(|file| file.is_rust() && !file.path.starts_with("xtask/src/tidy/")) {
        let at = named.iter().position(|name| *name == file.path);
        match (has_unsafe(file.without_tests()), at) {
            (true, None) => {
                complaints.push(format!("{} has unsafe code and is not named in {NAMED}", file.path))
            }
            (false, Some(_)) => {
                complaints.push(format!("{} has no unsafe code: take it out of {NAMED}", file.path))
            }
            _ => {}
        }
        if let Some(at) = at {
            named.remove(at);
        }
    }
    complaints.extend(named.iter().map(|name| format!("{name} is named in {NAMED} and does not exist")));
    complaints
}

fn has_unsafe(text: &str) -> bool {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).any(|code| {
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe(", "unsafe trait"]
            .iter()
            .any(|form| code.contains(form))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn unsafe_where_it_is_not_named_is_found() {
        let roots = || FORBIDDEN.map(|path| file(path, "#![forbid(unsafe_code)]\n"));
        let complaints = |path: &str, text: &str, named: &str| {
            let mut files: Vec<File> = roots().into();
            files.extend([file(path, text), file(NAMED, named)]);
            check(&files).len()
        };
        assert_eq!(complaints("a.rs", "// SAFETY: x\nunsafe { y }", ""), 1);
        assert_eq!(complaints("a.rs", "unsafe { y }", "a.rs\n"), 0);
        assert_eq!(complaints("a.rs", "// unsafe { y }", "a.rs\n"), 1);
        assert_eq!(complaints("a.rs", "", "b.rs\n"), 1);
        assert_eq!(check(&[]).len(), FORBIDDEN.len());
    }
}
