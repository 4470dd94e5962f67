//! A strict reader of OpenMetrics text, as the specification has it (version 1.0): what it does not take, no
//! scraper has to.

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// One family of a page.
#[derive(Debug, Default)]
pub struct Family {
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: String,
    /// Its help text.
    pub help: String,
    /// Its unit, or nothing.
    pub unit: String,
    /// Names of the labels that its samples have, `le` excepted.
    pub labels: BTreeSet<String>,
    samples: Vec<Sample>,
}

/// One line of values.
#[derive(Debug)]
struct Sample {
    suffix: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads a page.
///
/// # Errors
/// The line that is wrong, and why.
pub fn read(page: &str) -> Result<BTreeMap<String, Family>> {
    let Some(body) = page.strip_suffix("# EOF\n") else { bail!("a page ends with \"# EOF\"") };
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.split_terminator('\n') {
        let read = match line.strip_prefix("# ") {
            Some(about) => read_about(about, &mut families, &mut current),
            None => match families.get_mut(&current) {
                Some(family) => read_sample(line, &current, family),
                None => bail!("a sample of no family: {line}"),
            },
        };
        read.with_context(|| format!("in the line: {line}"))?;
    }
    for (name, family) in &families {
        check(name, family).with_context(|| format!("in family {name}"))?;
    }
    Ok(families)
}

fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let mut bytes = name.bytes();
    bytes.next().is_some_and(letter) && bytes.all(|byte| letter(byte) || byte.is_ascii_digit())
}

fn read_about(about: &str, families: &mut BTreeMap<String, Family>, current: &mut String) -> Result<()> {
    let mut words = about.splitn(3, ' ');
    let (what, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let text = words.next().context("nothing is said")?;
    ensure!(is_name(name), "\"{name}\" is no name of a metric");
    if *current != name {
        ensure!(!families.contains_key(name), "the family stands in two places");
        current.clear();
        current.push_str(name);
    }
    let family = families.entry(name.to_owned()).or_default();
    ensure!(family.samples.is_empty(), "it comes behind samples");
    let field = match what {
        "HELP" => &mut family.help,
        "TYPE" => {
            ensure!(["counter", "gauge", "histogram", "info"].contains(&text), "an unknown type");
            &mut family.kind
        }
        "UNIT" => {
            ensure!(name.ends_with(&format!("_{text}")), "the name does not end with the unit");
            &mut family.unit
        }
        _ => bail!("neither HELP nor TYPE nor UNIT"),
    };
    ensure!(field.is_empty(), "it is said twice");
    text.clone_into(field);
    Ok(())
}

fn read_sample(line: &str, name: &str, family: &mut Family) -> Result<()> {
    let rest = line.strip_prefix(name).context("the sample belongs to another family")?;
    let (suffix, rest) = rest.split_at(rest.find(['{', ' ']).context("no value")?);
    let allowed: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "histogram" => &["_bucket", "_sum", "_count"],
        "info" => &["_info"],
        "gauge" => &[""],
        _ => bail!("the family has no type"),
    };
    ensure!(allowed.contains(&suffix), "a {} has no sample with \"{suffix}\"", family.kind);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(labels) => read_labels(labels)?,
        None => (BTreeMap::new(), rest),
    };
    let value = value.strip_prefix(' ').context("one blank goes before the value")?;
    let value: f64 = value.parse().with_context(|| format!("\"{value}\" is no number"))?;
    ensure!(value.is_finite(), "the value is not finite");
    ensure!(family.kind == "gauge" || value >= 0.0, "less than nothing was counted");
    let name_of = |label: &String| (label != "le").then(|| label.clone());
    family.labels.extend(labels.keys().filter_map(name_of));
    family.samples.push(Sample { suffix: suffix.to_owned(), labels, value });
    Ok(())
}

/// Labels up to the brace that closes them, and what comes behind.
fn read_labels(mut text: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").context("a label without a value")?;
        ensure!(is_name(name) && !name.starts_with("__"), "\"{name}\" is no name of a label");
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next().context("a label's value does not end")? {
                (at, '"') => break at,
                (_, '\\') => match letters.next().context("nothing is escaped")?.1 {
                    'n' => value.push('\n'),
                    letter @ ('"' | '\\') => value.push(letter),
                    letter => bail!("\\{letter} is no escape"),
                },
                (_, letter) => value.push(letter),
            }
        };
        ensure!(labels.insert(name.to_owned(), value).is_none(), "label {name} is there twice");
        text = &rest[end + 1..];
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        text = text.strip_prefix(',').context("neither a comma nor a brace behind a label")?;
    }
}

/// What must hold of all lines of a family together.
fn check(name: &str, family: &Family) -> Result<()> {
    ensure!(!family.kind.is_empty(), "it has no type");
    ensure!(family.help.ends_with('.'), "it has no help, or that is no sentence");
    let reserved = ["_total", "_created", "_bucket", "_sum", "_count", "_info"];
    ensure!(!reserved.iter().any(|suffix| name.ends_with(suffix)), "its name ends as a sample's does");
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        ensure!(seen.insert((&sample.suffix, &sample.labels)), "a series twice: {:?}", sample.labels);
    }
    if family.kind == "histogram" {
        check_histogram(family)?;
    }
    Ok(())
}

/// Buckets rise, end with `+Inf`, and agree with the count; a sum is there, and not without counts.
fn check_histogram(family: &Family) -> Result<()> {
    let mut series: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    let (mut sums, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        match (sample.suffix.as_str(), labels.remove("le")) {
            ("_bucket", Some(bound)) => {
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse()? };
                series.entry(labels).or_default().push((bound, sample.value));
            }
            ("_sum", None) => drop(sums.insert(labels, sample.value)),
            ("_count", None) => drop(counts.insert(labels, sample.value)),
            (suffix, le) => bail!("{suffix} with le {le:?}"),
        }
    }
    ensure!(series.len() == sums.len() && series.len() == counts.len(), "sum or count is missing");
    for (labels, buckets) in series {
        let rises = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        ensure!(rises, "buckets of {labels:?} do not rise: {buckets:?}");
        let (bound, all) = *buckets.last().context("no buckets")?;
        ensure!(bound == f64::INFINITY, "the last bucket of {labels:?} is not +Inf");
        ensure!(counts.get(&labels) == Some(&all), "the count of {labels:?} is not its last bucket's");
        let sum = sums.get(&labels).context("no sum")?;
        ensure!(all > 0.0 || *sum == 0.0, "{labels:?} has a sum of nothing");
    }
    Ok(())
}

impl Family {
    /// Names that queries use for its samples.
    pub fn sample_names(&self, name: &str) -> Vec<String> {
        let suffixes: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect()
    }

    /// The sum of all its samples with this suffix whose labels contain these.
    pub fn sum(&self, suffix: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            let all =
                labels.iter().all(|(name, value)| sample.labels.get(*name).is_some_and(|it| it == value));
            sample.suffix == suffix && all
        };
        self.samples.iter().filter(has).map(|sample| sample.value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
        a_seconds_sum{n=\"x\"} 1.5\na_seconds_count{n=\"x\"} 2\na_seconds_bucket{n=\"x\",le=\"1.0\"} 1\n\
        a_seconds_bucket{n=\"x\",le=\"+Inf\"} 2\n# HELP b Things.\n# TYPE b counter\n\
        b_total{n=\"q\\\"\\\\\"} 7\n# EOF\n";

    #[test]
    fn a_good_page_is_read() {
        let families = read(GOOD).unwrap();
        assert_eq!(families["a_seconds"].kind, "histogram");
        assert_eq!(families["b"].sum("_total", &[("n", "q\"\\")]), 7.0);
        assert_eq!(families["a_seconds"].labels, BTreeSet::from(["n".to_owned()]));
    }

    #[test]
    fn each_fault_is_found() {
        for (from, to) in [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n\n"),
            ("1.5\n", "NaN\n"),
            ("b_total{", "b{"),
            (" 7\n", "  7\n"),
            (" 7\n", " -7\n"),
            ("+Inf", "2.0"),
            ("_count{n=\"x\"} 2", "_count{n=\"x\"} 3"),
            ("le=\"1.0\"} 1", "le=\"1.0\"} 3"),
            ("a_seconds_sum{n=\"x\"} 1.5\n", ""),
            ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
            ("Things.", "Things"),
            ("TYPE b counter", "TYPE b number"),
            ("# TYPE b counter\n", ""),
            ("{n=\"q", "{n=\"q\",n=\"q"),
            ("q\\\"\\\\\"", "q\\x\""),
            ("# HELP b Things.\n", "# HELP b Things.\nb_total 1\n"),
            ("# EOF", "# HELP a_seconds Time.\n# EOF"),
            ("# EOF", "b_total{n=\"q\\\"\\\\\"} 7\n# EOF"),
            ("# EOF", "c 1\n# EOF"),
            ("{n=\"q", "{1n=\"q"),
        ] {
            let spoiled = GOOD.replace(from, to);
            assert_ne!(spoiled, GOOD);
            assert!(read(&spoiled).is_err(), "{from:?} -> {to:?} is taken:\n{spoiled}");
        }
    }
}
