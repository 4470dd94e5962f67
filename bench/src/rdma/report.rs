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
/// How often a ratio is measured at most.
pub const TRIES_MAX: usize = 3;

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

/// Two contestants, measured until their ratio is good, at most [`TRIES_MAX`] times.
#[derive(Debug, Serialize)]
pub struct Contest {
    /// What was measured, in order. The last one counts; those before it were missed.
    pub tries: Vec<Pair>,
}

/// One measurement of two contestants in turns.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pair {
    /// The middle value of what is judged.
    pub judged: f64,
    /// The middle value of what it is compared with.
    pub baseline: f64,
    /// What is held to the bound: judged in times of baseline.
    pub ratio: f64,
    /// Values of the judged.
    pub samples: usize,
}

/// Engine (judged) and bare verbs (baseline) at one size.
#[derive(Debug, Serialize)]
pub struct Size {
    /// Bytes of the archive.
    pub bytes: usize,
    /// Post to completion, one at a time, ns.
    pub p50_ns: Contest,
    /// Pushes per second in bursts of 16, by the middle burst. The ratio is the middle one of bursts that
    /// followed each other: soft-RoCE has a fast and a slow way of working, and where both are as frequent,
    /// either may be the middle of one contestant's bursts.
    pub rate: Contest,
}

/// Two copies (judged) and one (baseline).
#[derive(Debug, Serialize)]
pub struct Copies {
    /// Delay on the way.
    pub delay_ms: u32,
    /// First post to last completion, ns.
    pub p50_ns: Contest,
}

impl Pair {
    /// Middle values, compared as they are.
    pub fn of_middles(judged: f64, baseline: f64, samples: usize) -> Self {
        Self { judged, baseline, ratio: judged / baseline, samples }
    }
}

impl Contest {
    /// Measures until the ratio is good, or often enough to say that it is not: a busy moment of the machine
    /// passes, and what the engine costs does not.
    ///
    /// # Errors
    /// If it cannot be measured.
    pub fn run(mut measure: impl FnMut() -> Result<Pair>, is_good: impl Fn(f64) -> bool) -> Result<Self> {
        let mut tries = Vec::with_capacity(TRIES_MAX);
        while tries.len() < TRIES_MAX {
            let pair = measure()?;
            tries.push(pair);
            if is_good(pair.ratio) {
                break;
            }
        }
        Ok(Self { tries })
    }

    /// The measurement that counts; no numbers if there is none.
    fn last(&self) -> Pair {
        self.tries.last().copied().unwrap_or(Pair::of_middles(f64::NAN, f64::NAN, 0))
    }

    fn ratio(&self) -> f64 {
        self.last().ratio
    }

    /// All ratios, for a message.
    fn ratios(&self) -> String {
        let ratios: Vec<String> = self.tries.iter().map(|pair| format!("{:.3}", pair.ratio)).collect();
        ratios.join(", then ")
    }
}

impl Size {
    /// Whether the engine's latency is near enough to bare verbs'. Bounds are written so that a ratio that is
    /// no number is missed, too.
    pub fn is_latency_good(ratio: f64) -> bool {
        ratio <= LATENCY_RATIO_MAX
    }

    /// Whether the engine's rate is near enough to bare verbs'.
    pub fn is_rate_good(ratio: f64) -> bool {
        ratio >= RATE_RATIO_MIN
    }
}

impl Copies {
    /// What two copies may cost, in times of one.
    pub fn ratio_max(delay_ms: u32) -> f64 {
        if delay_ms == 0 { COPIES_RATIO_MAX } else { COPIES_DELAYED_RATIO_MAX }
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
        let mut judge = |good: bool, contest: &Contest, what: String| {
            if !good {
                let (tries, ratios) = (contest.tries.len(), contest.ratios());
                missed.push(format!("{what} (in {tries} tries: {ratios})"));
            }
        };
        for Size { bytes, p50_ns, rate } in &self.sizes {
            let what = format!("{bytes} B: latency in times of bare verbs', at most {LATENCY_RATIO_MAX}");
            judge(Size::is_latency_good(p50_ns.ratio()), p50_ns, what);
            let what = format!("{bytes} B: rate in times of bare verbs', at least {RATE_RATIO_MIN}");
            judge(Size::is_rate_good(rate.ratio()), rate, what);
        }
        for Copies { delay_ms, p50_ns } in &self.copies {
            let most = Copies::ratio_max(*delay_ms);
            let what = format!("{delay_ms} ms delay: two copies in times of one, at most {most}");
            judge(p50_ns.ratio() <= most, p50_ns, what);
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
            "{:<10}{:>14}{:>14}{:>8}{:>6}{:>14}{:>14}{:>8}{:>6}",
            "archive", "engine p50", "bare p50", "ratio", "try", "engine /s", "bare /s", "ratio", "try"
        )?;
        for size in &self.sizes {
            let (p50_ns, rate) = (size.p50_ns.last(), size.rate.last());
            writeln!(
                text,
                "{:<10}{:>11.1} us{:>11.1} us{:>8.3}{:>6}{:>14.0}{:>14.0}{:>8.3}{:>6}",
                format!("{} B", size.bytes),
                p50_ns.judged / 1e3,
                p50_ns.baseline / 1e3,
                p50_ns.ratio,
                size.p50_ns.tries.len(),
                rate.judged,
                rate.baseline,
                rate.ratio,
                size.rate.tries.len()
            )?;
        }
        writeln!(text)?;
        for Copies { delay_ms, p50_ns } in &self.copies {
            let last = p50_ns.last();
            writeln!(
                text,
                "delay {delay_ms} ms: one copy {:.1} us, two {:.1} us, ratio {:.2} (at most {}), try {}",
                last.baseline / 1e3,
                last.judged / 1e3,
                last.ratio,
                Copies::ratio_max(*delay_ms),
                p50_ns.tries.len()
            )?;
        }
        writeln!(
            text,
            "Rates: middle bursts, and the middle ratio of neighbours. A missed ratio is measured again, in \
             {TRIES_MAX} tries at most."
        )?;
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

    fn contest(judged: f64) -> Contest {
        Contest { tries: vec![Pair::of_middles(judged, 1000.0, 1)] }
    }

    fn report(engine_p50_ns: f64, engine_rate: f64, two_p50_ns: f64) -> Report {
        let size = |bytes| Size { bytes, p50_ns: contest(engine_p50_ns), rate: contest(engine_rate) };
        let copies = |delay_ms| Copies { delay_ms, p50_ns: contest(two_p50_ns) };
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
        let mut unmeasured = report(1090.0, 910.0, 1290.0);
        unmeasured.copies[0].p50_ns.tries.clear();
        assert_eq!(unmeasured.missed().len(), 1);
    }

    #[test]
    fn a_missed_ratio_is_measured_again_and_missed_when_every_try_misses() {
        let tries = |ratios: &[f64]| {
            let mut ratios = ratios.iter();
            let measure = || Ok(Pair::of_middles(*ratios.next().unwrap(), 1.0, 1));
            Contest::run(measure, Size::is_latency_good).unwrap()
        };
        assert_eq!(tries(&[1.05]).tries.len(), 1, "what is good is not measured again");
        let second = tries(&[1.2, 1.05]);
        assert_eq!((second.tries.len(), second.ratio()), (2, 1.05));
        let never = tries(&[1.2, f64::NAN, 1.11]);
        assert_eq!(never.tries.len(), TRIES_MAX);
        let mut report = report(1090.0, 910.0, 1290.0);
        report.sizes[0].p50_ns = never;
        let missed = report.missed();
        assert_eq!(missed.len(), 1);
        assert!(missed[0].contains("in 3 tries: 1.200, then NaN, then 1.110"), "{missed:?}");
        assert!(Contest::run(|| anyhow::bail!("no device"), Size::is_rate_good).is_err());
    }
}
