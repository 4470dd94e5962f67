//! What a run has shown: the table, the checks, and the raw results.

use crate::machine::Machine;
use crate::side_by_side::{Contestant, Length, Row};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// A commit of 1 KiB with two copies is at least so many times faster than Redis `SET` of 1 KiB.
pub const COMMIT_RATIO_MIN: f64 = 15.0;
/// Goals that are told and not enforced, ns.
const GOALS: [(Contestant, f64); 2] = [(Contestant::Commit, 800.0), (Contestant::ReadingRequest, 120.0)];

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// When it began, Unix s.
    pub unix_s: u64,
    /// Where.
    pub machine: Machine,
    /// How long.
    pub length: Length,
    /// Bytes of the session's archive and of Redis's value.
    pub archive_bytes: usize,
    /// Everybody's result.
    pub rows: Vec<Row>,
}

impl Report {
    /// The row of a contestant with the best middle latency over the pinnings.
    pub fn best(&self, contestant: Contestant) -> Option<&Row> {
        let rows = self.rows.iter().filter(|row| row.contestant == contestant);
        rows.min_by(|a, b| a.measured.p50_ns.total_cmp(&b.measured.p50_ns))
    }

    /// How many times faster than its peer in Redis a contestant is, at the middle latency.
    pub fn ratio(&self, contestant: Contestant) -> Option<f64> {
        let peer = self.best(contestant.peer()?)?;
        Some(peer.measured.p50_ns / self.best(contestant)?.measured.p50_ns)
    }

    /// Whether what must be reached was reached.
    pub fn good(&self) -> bool {
        self.ratio(Contestant::Commit).is_some_and(|ratio| ratio >= COMMIT_RATIO_MIN)
    }

    /// The table and the checks, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Length { rounds, slice_ms } = self.length;
        writeln!(text, "machine: {}", self.machine)?;
        writeln!(
            text,
            "session: 12 attributes, archive of {} bytes; {rounds} rounds of {slice_ms} ms each, in turns; \
             every latency contains one look at the clock\n",
            self.archive_bytes
        )?;
        writeln!(
            text,
            "{:<58}{:>10}{:>10}{:>10}{:>10}{:>10}  vs Redis",
            "", "p50", "p99", "p99.9", "mean", "count"
        )?;
        for row in &self.rows {
            let what = row.contestant.what();
            let name = row.pinning.map_or(what.to_owned(), |pinning| format!("{what}, {pinning}"));
            let m = &row.measured;
            write!(text, "{name:<58}{:>10}{:>10}", time(m.p50_ns), time(m.p99_ns))?;
            write!(text, "{:>10}{:>10}{:>10}", time(m.p999_ns), time(m.mean_ns), m.count)?;
            match self.ratio(row.contestant) {
                Some(ratio) => writeln!(text, "  {ratio:.1}x")?,
                None => writeln!(text)?,
            }
        }
        writeln!(text)?;
        let ratio = self.ratio(Contestant::Commit).unwrap_or(0.0);
        let verdict = if self.good() { "ok" } else { "MISSED" };
        writeln!(
            text,
            "{verdict}: a commit with two copies is {ratio:.1} times faster than Redis SET; \
             it must be {COMMIT_RATIO_MIN}"
        )?;
        for (contestant, goal_ns) in GOALS {
            let Some(row) = self.best(contestant) else { continue };
            let (p50, what) = (row.measured.p50_ns, contestant.what());
            let reached = if p50 <= goal_ns { "reached" } else { "not reached" };
            writeln!(text, "goal {reached}: {what}: {} of {}", time(p50), time(goal_ns))?;
        }
        Ok(())
    }

    /// Writes the raw results.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))
    }
}

/// A time with three digits and its unit.
fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measured;

    fn row(contestant: Contestant, pinning: Option<&'static str>, p50_ns: f64) -> Row {
        let measured = Measured {
            min_ns: p50_ns,
            p50_ns,
            p99_ns: p50_ns,
            p999_ns: p50_ns,
            max_ns: p50_ns,
            mean_ns: p50_ns,
            count: 1,
            round_p50_ns: vec![p50_ns],
        };
        Row { contestant, pinning, measured }
    }

    fn report(commit_ns: f64) -> Report {
        Report {
            unix_s: 0,
            machine: Machine::this().unwrap(),
            length: Length::QUICK,
            archive_bytes: 1024,
            rows: vec![
                row(Contestant::RedisSet, Some("one core"), 12_600.0),
                row(Contestant::RedisSet, Some("two cores"), 20_000.0),
                row(Contestant::Commit, None, commit_ns),
            ],
        }
    }

    #[test]
    fn the_best_pinning_counts_and_a_miss_is_a_miss() {
        let good = report(840.0);
        assert_eq!(good.ratio(Contestant::Commit), Some(15.0));
        assert!(good.good());
        assert!(good.text().contains("ok: a commit with two copies is 15.0 times"), "{}", good.text());
        // 20 us / 850 ns would be enough; Redis at its best is not that slow.
        let missed = report(850.0);
        assert!(!missed.good());
        assert!(missed.text().contains("MISSED"), "{}", missed.text());
        assert!(!Report { rows: Vec::new(), ..report(1.0) }.good(), "nothing measured is not good");
    }

    #[test]
    fn raw_results_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        report(700.0).write_json(&file).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(json["rows"][2]["contestant"], "commit");
        assert_eq!(json["rows"][2]["measured"]["p50_ns"], 700.0);
        assert_eq!(json["rows"][1]["pinning"], "two cores");
    }
}
