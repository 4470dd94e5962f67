//! What the run over two devices has shown: table, checks, raw results.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// Middle latency of the engine against bare verbs, at most.
pub const LATENCY_RATIO_MAX: f64 = 1.10;
/// Message rate of the engine against bare verbs, at least.
pub const RATE_RATIO_MIN: f64 = 0.90;
/// Two copies against one, at most: as it is, where processors do the network cards' work.
pub const COPIES_RATIO_MAX: f64 = 2.2;
/// The same with 1 ms of delay on the way: the copies overlap.
pub const COPIES_DELAYED_RATIO_MAX: f64 = 1.3;

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Device, port and MTU.
    pub path: String,
    /// Turns of each contestant.
    pub rounds: u32,
    /// One turn, ms.
    pub slice_ms: u64,
    /// Engine and bare verbs, by bytes of the archive.
    pub sizes: Vec<Size>,
    /// One and two copies.
    pub copies: Vec<Copies>,
}

/// Engine and bare verbs at one size.
#[derive(Debug, Serialize)]
pub struct Size {
    /// Bytes of the archive.
    pub bytes: usize,
    /// Pushes of the engine whose latency was measured.
    pub pushes: usize,
    /// Post to completion, one at a time.
    pub engine_p50_ns: f64,
    /// The same of bare verbs.
    pub bare_p50_ns: f64,
    /// Pushes per second in bursts of 16, by the middle burst.
    pub engine_rate: f64,
    /// The same of bare verbs.
    pub bare_rate: f64,
}

/// One and two copies.
#[derive(Debug, Serialize)]
pub struct Copies {
    /// Delay on the way.
    pub delay_ms: u32,
    /// Commits with two copies.
    pub commits: usize,
    /// Post to completion.
    pub one_p50_ns: f64,
    /// First post to last completion.
    pub two_p50_ns: f64,
}

impl Size {
    fn latency_ratio(&self) -> f64 {
        self.engine_p50_ns / self.bare_p50_ns
    }

    fn rate_ratio(&self) -> f64 {
        self.engine_rate / self.bare_rate
    }
}

impl Copies {
    fn ratio(&self) -> f64 {
        self.two_p50_ns / self.one_p50_ns
    }

    fn ratio_max(&self) -> f64 {
        if self.delay_ms == 0 { COPIES_RATIO_MAX } else { COPIES_DELAYED_RATIO_MAX }
    }
}

impl Report {
    /// What was missed; empty if all is well. Nothing measured is a miss.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let is_whole = self.sizes.len() == super::SIZES.len() && self.copies.len() == 2;
        if !is_whole {
            missed.push("not everything was measured".to_owned());
        }
        // Written so that a ratio that is no number is missed, too.
        let mut judge = |good: bool, what: String| {
            if !good {
                missed.push(what);
            }
        };
        for size in &self.sizes {
            let (bytes, latency, rate) = (size.bytes, size.latency_ratio(), size.rate_ratio());
            let what =
                format!("{bytes} B: latency {latency:.3} times bare verbs; at most {LATENCY_RATIO_MAX}");
            judge(latency <= LATENCY_RATIO_MAX, what);
            let what = format!("{bytes} B: rate {rate:.3} times bare verbs; at least {RATE_RATIO_MIN}");
            judge(rate >= RATE_RATIO_MIN, what);
        }
        for copies in &self.copies {
            let (ratio, most, delay) = (copies.ratio(), copies.ratio_max(), copies.delay_ms);
            judge(
                ratio <= most,
                format!("two copies, {delay} ms delay: {ratio:.2} times one; at most {most}"),
            );
        }
        missed
    }

    /// The table and the checks, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "path: {}", self.path)?;
        writeln!(text, "{} rounds of {} ms each, in turns\n", self.rounds, self.slice_ms)?;
        writeln!(
            text,
            "{:<10}{:>14}{:>14}{:>8}{:>14}{:>14}{:>8}",
            "archive", "engine p50", "bare p50", "ratio", "engine /s", "bare /s", "ratio"
        )?;
        for size in &self.sizes {
            writeln!(
                text,
                "{:<10}{:>11.1} us{:>11.1} us{:>8.3}{:>14.0}{:>14.0}{:>8.3}",
                format!("{} B", size.bytes),
                size.engine_p50_ns / 1e3,
                size.bare_p50_ns / 1e3,
                size.latency_ratio(),
                size.engine_rate,
                size.bare_rate,
                size.rate_ratio()
            )?;
        }
        writeln!(text)?;
        for copies in &self.copies {
            writeln!(
                text,
                "delay {} ms: one copy {:.1} us, two copies {:.1} us, ratio {:.2} (at most {})",
                copies.delay_ms,
                copies.one_p50_ns / 1e3,
                copies.two_p50_ns / 1e3,
                copies.ratio(),
                copies.ratio_max()
            )?;
        }
        let missed = self.missed();
        for what in &missed {
            writeln!(text, "MISSED: {what}")?;
        }
        if missed.is_empty() {
            writeln!(
                text,
                "ok: latency at most {LATENCY_RATIO_MAX}, rate at least {RATE_RATIO_MIN} times bare verbs"
            )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(engine_p50_ns: f64, engine_rate: f64, two_p50_ns: f64) -> Report {
        let size = |bytes| Size {
            bytes,
            pushes: 1,
            engine_p50_ns,
            bare_p50_ns: 1000.0,
            engine_rate,
            bare_rate: 1000.0,
        };
        let copies = |delay_ms| Copies { delay_ms, commits: 1, one_p50_ns: 1000.0, two_p50_ns };
        let sizes = super::super::SIZES.map(size).into();
        Report { path: String::new(), rounds: 1, slice_ms: 1, sizes, copies: vec![copies(0), copies(1)] }
    }

    #[test]
    fn every_bound_is_held_to() {
        assert_eq!(report(1090.0, 910.0, 1290.0).missed(), Vec::<String>::new());
        assert_eq!(report(1110.0, 910.0, 1290.0).missed().len(), 4);
        assert_eq!(report(1090.0, 890.0, 1290.0).missed().len(), 4);
        assert_eq!(report(1090.0, 910.0, 1310.0).missed().len(), 1, "only with the delay");
        assert_eq!(report(1090.0, 910.0, 2210.0).missed().len(), 2);
        assert_eq!(report(f64::NAN, 910.0, 1290.0).missed().len(), 4);
        let nothing = Report { sizes: Vec::new(), copies: Vec::new(), ..report(1.0, 1.0, 1.0) };
        assert_eq!(nothing.missed().len(), 1);
        assert!(nothing.text().contains("MISSED"));
        assert!(report(1090.0, 910.0, 1290.0).text().contains("ok:"));
    }
}
