//! Rules on structure that no compiler knows: which part may use which, how long things may be, where
//! `unsafe` may stand, and what must not be in the repository. Each rule is pure: it takes the files and
//! answers with complaints.

mod arrows;
mod sizes;
mod unsafety;
mod words;

use anyhow::{Context, Result, ensure};
use selvage_tests::product::workspace_root;
use std::fs;
use std::process::Command;

/// A file of the repository.
pub struct File {
    /// Path from the workspace's folder.
    path: String,
    /// Its text.
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Rust, C and C++.
    fn is_source(&self) -> bool {
        [".rs", ".c", ".h", ".cpp", ".hpp"].iter().any(|end| self.path.ends_with(end))
    }

    /// The part before the tests at the end; the whole file if it has none, nothing if it is all tests.
    fn without_tests(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let parts: Vec<&str> = self.path.split('/').collect();
        let all_tests = name == "tests.rs"
            || name.ends_with("_tests.rs")
            || parts[..parts.len() - 1].contains(&"tests") && !self.path.starts_with("tests/src/");
        if all_tests {
            return "";
        }
        let at = self.text.match_indices("#[cfg(").find(|(at, _)| {
            let rest = &self.text[*at..];
            let mut lines = rest.lines();
            lines.next().is_some_and(|line| line.contains("test"))
                && lines
                    .find(|line| !line.starts_with("#["))
                    .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
        });
        at.map_or(&self.text, |(at, _)| &self.text[..at])
    }
}

/// Runs the command.
///
/// # Errors
/// A rule is broken.
pub fn main() -> Result<()> {
    let files = files()?;
    ensure!(files.iter().any(File::is_rust), "no source file found: is this a git repository?");
    let mut complaints = Vec::new();
    complaints.extend(arrows::between_crates(&files));
    complaints.extend(arrows::inside_fabric(&files));
    complaints.extend(sizes::check(&files));
    complaints.extend(unsafety::check(&files));
    complaints.extend(words::check(&files));
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    ensure!(complaints.is_empty(), "tidy has {} complaints", complaints.len());
    println!("tidy: {} files, nothing to complain about", files.len());
    Ok(())
}

/// Every text file that is, or with the next commit could be, in the repository.
fn files() -> Result<Vec<File>> {
    let root = workspace_root();
    let mut command = Command::new("git");
    command.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.output().context("cannot start git")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let mut files = Vec::new();
    for path in output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let path = String::from_utf8(path.to_vec())?;
        // A file that was removed and not yet committed is listed, too; binary files have no text.
        if let Ok(text) = fs::read_to_string(root.join(&path)) {
            files.push(File { path, text });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn the_tests_of_a_file_are_left_out() {
        let it = file("a/src/x.rs", "fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n");
        assert_eq!(it.without_tests(), "fn a() {}\n\n");
        let it = file("a/src/x.rs", "#[cfg(test)]\nuse b;\nfn a() {}\n");
        assert_eq!(it.without_tests(), it.text);
        let it = file("a/src/x.rs", "#[cfg(test)]\nmod tests;\nfn a() {}\n");
        assert_eq!(it.without_tests(), it.text, "a declaration of tests in another file");
        assert_eq!(file("fabric/tests/x.rs", "fn a() {}").without_tests(), "");
        assert_eq!(file("tests/src/x.rs", "fn a() {}").without_tests(), "fn a() {}");
    }
}
