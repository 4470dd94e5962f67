//! `cargo x test`: everything that is a test, and the count of what ran.

use crate::{figures, setup};
use anyhow::{Context, Result, ensure};
use selvage_tests::product::{self, PRODUCT_DIR_VARIABLE, Product};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Options of `cargo x test`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Run only tests whose names contain this
    filter: Option<String>,
}

/// How many tests ran.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Those that are as they should be.
    pub passed: u64,
    /// The others.
    pub failed: u64,
}

/// Runs the command.
///
/// # Errors
/// A test failed or could not be built, or none ran.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::BUILD, setup::RUN, setup::CPP, setup::TEST, setup::INSTALL, setup::DEB])?;
    let product = Product::build()?;
    let nextest = has_nextest();
    let mut unit = cargo_with(&product);
    if nextest {
        unit.args(["nextest", "run", "--workspace", "--no-fail-fast", "--hide-progress-bar"]);
    } else {
        unit.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]);
    }
    unit.args(["--features", "selvage-fabric/mutants"]);
    unit.args(&arguments.filter);
    let mut total = stage("tests", &mut unit)?;
    if arguments.filter.is_none() {
        let mut doc = cargo_with(&product);
        doc.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
        let count = stage("doc tests", &mut doc)?;
        total.passed += count.passed;
        total.failed += count.failed;
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    ensure!(total.failed == 0, "tests failed");
    Ok(())
}

/// A cargo call in the workspace.
pub fn cargo() -> Command {
    let mut command = product::cargo();
    command.env("CARGO_TERM_COLOR", "never");
    command
}

/// One that tells tests where the product is.
fn cargo_with(product: &Product) -> Command {
    let mut command = cargo();
    command.env(PRODUCT_DIR_VARIABLE, &product.dir);
    command
}

fn has_nextest() -> bool {
    let mut command = product::cargo();
    command.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs tests, shows what they say, keeps their figures, and wants all of at least one to be as they should.
///
/// # Errors
/// A test failed, could not be built, or none ran.
pub fn all_pass(name: &str, command: &mut Command) -> Result<()> {
    let count = stage(name, command)?;
    ensure!(count.failed == 0, "{name}: {} failed", count.failed);
    Ok(())
}

/// Runs one stage, shows what it says, and counts from the summaries that cargo's and nextest's runners
/// print. A stage that ends badly without a failed test (it did not build, say) is an error of its own.
fn stage(name: &str, command: &mut Command) -> Result<Count> {
    println!("stage: {name}");
    // cargo test reports on stdout and nextest on stderr; both are read, one after the other, through one
    // pipe.
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    // The command keeps copies of the pipe's writing end; without this the reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut count = Count::default();
    for line in BufReader::new(reader).lines() {
        let line = line?;
        let _ = writeln!(std::io::stdout(), "{line}");
        figures::keep(&line);
        if let Some(more) = summary(&line) {
            count.passed += more.passed;
            count.failed += more.failed;
        }
    }
    let status = child.wait()?;
    println!("stage: {name}: {} passed, {} failed", count.passed, count.failed);
    ensure!(status.success() || count.failed > 0, "stage {name} ended with {status}");
    ensure!(count.passed + count.failed > 0, "stage {name} ran nothing");
    Ok(count)
}

/// The counts of a summary line of either runner.
pub fn summary(line: &str) -> Option<Count> {
    // Indented, such a line is what a failed test had printed: nextest shows it, and counts it itself.
    let rest = if let Some(rest) = line.strip_prefix("test result: ") {
        rest.split_once(". ")?.1
    } else {
        line.trim_start().strip_prefix("Summary [")?.split_once("run:")?.1
    };
    let number_before = |word: &str| {
        let words: Vec<&str> = rest.split([' ', ';', ',']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|other| *other == word)?;
        words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
    };
    let failed = ["failed", "timed", "exec"].iter().filter_map(|word| number_before(word)).sum();
    Some(Count { passed: number_before("passed")?, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners() {
        let of = |line| summary(line).map(|count| (count.passed, count.failed));
        assert_eq!(
            of("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out"),
            Some((12, 0))
        );
        assert_eq!(of("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured"), Some((3, 2)));
        assert_eq!(of("     Summary [   0.004s] 2 tests run: 2 passed, 0 skipped"), Some((2, 0)));
        assert_eq!(
            of("     Summary [   1.2s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 0 skipped"),
            Some((5, 4))
        );
        assert_eq!(of("test a ... ok"), None);
        assert_eq!(of("    test result: FAILED. 0 passed; 1 failed; 0 ignored"), None);
    }
}
