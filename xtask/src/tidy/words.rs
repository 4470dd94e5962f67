//! What must not be in the repository: unfinished work, tests that are switched off, paths of somebody's
//! machine, hosts of package registries.

use super::File;

/// Never in sources.
const UNFINISHED: [&str; 8] =
    ["TODO", "FIXME", "XXX", "HACK", "dbg!(", "todo!(", "unimplemented!(", "#[ignore"];

/// What a test may be ignored for: it is the body of a process that other tests start.
const HELPER: &str = "#[ignore = \"started by the other tests";

/// Starts of paths that exist on one machine only.
const MACHINE_PATHS: [&str; 4] = ["/root/", "/home/", "/work/", "/Users/"];

/// Settings that would bind the repository to one registry.
const REGISTRY: [&str; 4] = ["sparse+http", "[source.", "[registries", "index = \"http"];

/// Complaints about words.
pub fn check(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    // These rules must name what they forbid.
    for file in files.iter().filter(|file| !file.path.starts_with("xtask/src/tidy/")) {
        let is_script = file.path.ends_with(".sh") || file.path.ends_with(".toml") || file.path == ".ci/run";
        for (number, line) in file.text.lines().enumerate() {
            let mut complain = |what: &str| complaints.push(format!("{}:{}: {what}", file.path, number + 1));
            let word = UNFINISHED.iter().find(|word| line.contains(**word) && !line.contains(HELPER));
            if let Some(word) = word.filter(|_| file.is_source() || is_script) {
                complain(&format!("{word} must not be on main"));
            }
            if MACHINE_PATHS.iter().any(|path| names_path(line, path)) {
                complain("a path of one machine");
            }
            if REGISTRY.iter().any(|setting| line.contains(setting)) {
                complain("a registry's host or setting");
            }
        }
    }
    complaints
}

/// Whether the line has `path` as the start of an absolute path, not as the middle of another.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "\"'`(=:<>|".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn forbidden_words_are_found() {
        let complaints = |path: &str, text: &str| check(&[file(path, text)]).len();
        assert_eq!(complaints("a/b.rs", "// TODO: more"), 1);
        assert_eq!(complaints("a/b.rs", "#[ignore]\nfn a() {}"), 1);
        assert_eq!(complaints("a/b.md", "see /home/me/x"), 1);
        assert_eq!(complaints("a/b.rs", "let p = \"/root/x\";"), 1);
        assert_eq!(complaints("a/b.rs", "let p = \"chroot/root/x\";"), 0);
        assert_eq!(complaints(".cargo/config.toml", "[source.crates-io]"), 1);
    }
}
