//! The figures of `docs/testing.md` and the README: what the stages of `cargo x ci` reach is held against
//! what the pages state.
//!
//! A stage's program says `figure: NAME NUMBER` at the end of a line. The table of figures in
//! `docs/testing.md` has a row for each name: a number is what is reached exactly, `over NUMBER` a lower
//! bound.

use anyhow::{Context, Result, bail, ensure};
use selvage_tests::product::workspace_root;
use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Figure {
    name: String,
    /// As it stands there, such as `over 400,000`.
    stated: String,
}

/// What was told in this process.
static TOLD: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Keeps what a line of a stage's output tells, if it tells a figure.
pub fn keep(line: &str) {
    // Where tests run one at a time, their runner has begun the line.
    let told = line.split_once("figure: ").and_then(|(_, rest)| rest.trim().split_once(' '));
    if let Some((name, Some(reached))) = told.map(|(name, reached)| (name, number(reached))) {
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), reached);
    }
}

/// Holds what was told so far against the table.
///
/// # Errors
/// The table has no such figure, or states another number.
pub fn check() -> Result<()> {
    compare(&TOLD.lock().unwrap_or_else(PoisonError::into_inner), &table()?)
}

/// The same, and every figure of the table was told.
///
/// # Errors
/// As [`check`], or one was not told.
pub fn check_all() -> Result<()> {
    check()?;
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let missing: Vec<Figure> =
        table()?.into_iter().filter(|figure| !told.contains_key(&figure.name)).collect();
    ensure!(missing.is_empty(), "stated in docs/testing.md, but told by no stage: {missing:?}");
    Ok(())
}

fn compare(told: &BTreeMap<String, u64>, table: &[Figure]) -> Result<()> {
    for (name, reached) in told {
        let Some(figure) = table.iter().find(|figure| figure.name == *name) else {
            bail!("docs/testing.md has no figure {name}");
        };
        let stated = &figure.stated;
        ensure!(is_true(stated, *reached)?, "docs/testing.md states {name}: {stated}, reached is {reached}");
    }
    Ok(())
}

fn table() -> Result<Vec<Figure>> {
    let page = fs::read_to_string(workspace_root().join("docs/testing.md")).context("docs/testing.md")?;
    let figures = rows(&page);
    ensure!(!figures.is_empty(), "docs/testing.md has no table of figures");
    Ok(figures)
}

/// The rows under the heading "Figures": `| NAME in back ticks | number | ... |`.
fn rows(page: &str) -> Vec<Figure> {
    let section = page.split("\n## Figures\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.strip_suffix('`')?.to_owned();
        Some(Figure { name, stated: cells.next()?.to_owned() })
    };
    section.lines().filter_map(row).collect()
}

fn is_true(stated: &str, reached: u64) -> Result<bool> {
    let of = |text: &str| number(text).with_context(|| format!("docs/testing.md: no number: {text}"));
    Ok(match stated.strip_prefix("over ") {
        Some(bound) => reached > of(bound)?,
        None => reached == of(stated)?,
    })
}

/// A number with or without commas between its thousands.
fn number(text: &str) -> Option<u64> {
    text.trim().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_bounds() {
        let page = "# a\n\n## Figures\n\n| figure | stated |\n|---|---|\n| `a.b` | over 1,000 | x |\n\
                    | `c` | 7 | y |\n\n## b\n| `d` | 1 |\n";
        let figure = |name: &str, stated: &str| Figure { name: name.into(), stated: stated.into() };
        assert_eq!(rows(page), [figure("a.b", "over 1,000"), figure("c", "7")]);
        assert!(is_true("over 1,000", 1001).unwrap() && !is_true("over 1,000", 1000).unwrap());
        assert!(is_true("7", 7).unwrap() && !is_true("7", 8).unwrap());
        assert!(is_true("many", 7).is_err());
    }

    #[test]
    fn an_unknown_or_wrong_figure_is_refused() {
        let table = [Figure { name: "a".into(), stated: "7".into() }];
        let told = |name: &str, reached| BTreeMap::from([(name.to_owned(), reached)]);
        compare(&told("a", 7), &table).unwrap();
        compare(&told("a", 8), &table).unwrap_err();
        compare(&told("b", 7), &table).unwrap_err();
    }

    /// The numbers in the README's paragraph under "Shown" are what `docs/testing.md` states.
    #[test]
    fn the_readme_states_the_same_figures() {
        let readme = fs::read_to_string(workspace_root().join("README.md")).unwrap();
        let shown = readme.split("\n## Shown, not asserted\n").nth(1).unwrap();
        let shown = shown.trim_start().split("\n\n").next().unwrap();
        let stated: Vec<String> =
            table().unwrap().into_iter().map(|figure| figure.stated.replace("over ", "")).collect();
        let numbers: Vec<&str> = shown
            .split(|c: char| !c.is_ascii_digit() && c != ',')
            .map(|word| word.trim_matches(','))
            .filter(|word| !word.is_empty())
            .collect();
        assert!(numbers.len() > 5, "{numbers:?}");
        for number in numbers {
            assert!(
                stated.iter().any(|stated| stated == number),
                "{number} does not stand in docs/testing.md"
            );
        }
    }
}
