//! `cargo x fuzz`: inputs from outside, guided by what of the code they reach (fuzz/). libFuzzer comes with
//! the crate libfuzzer-sys, and rustc's own LLVM instruments the code, so a stable compiler is enough.

use crate::figures;
use anyhow::{Context, Result, bail, ensure};
use selvage_tests::product::{cargo, workspace_root};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// What libFuzzer needs to see: counters at the edges of the control flow, and what is compared.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Targets that run at once.
const AT_ONCE: usize = 2;
/// An input that takes longer is a finding, s.
const INPUT_SECONDS_MAX: u64 = 20;
/// A process that needs more memory is a finding, MiB.
const MEMORY_MIB_MAX: u64 = 1024;
/// Lines of a failed target's output that are shown.
const LINES_SHOWN: usize = 40;

/// Options of `cargo x fuzz`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Only this target: a folder's name in fuzz/corpus
    pub target: Option<String>,
    /// How long each target runs, beside its corpus
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Put what a run has found into the corpus, as few inputs as reach the same
    #[arg(long)]
    pub keep: bool,
    /// Write what the product really makes into the corpus, to begin with
    #[arg(long)]
    pub seeds: bool,
    /// Run only this input, such as one that was kept in fuzz/artifacts
    #[arg(long, requires = "target")]
    pub replay: Option<PathBuf>,
}

/// What a target's run has done.
struct Run {
    name: String,
    executions: u64,
    /// Edges of the control flow that were reached.
    coverage: u64,
    corpus: usize,
    found: usize,
    seconds: u64,
}

/// Runs the command.
///
/// # Errors
/// An input broke a property, or a target ran nothing.
pub fn main(arguments: &Arguments) -> Result<()> {
    let program = build()?;
    let targets = match &arguments.target {
        Some(name) => vec![Target::new(&program, name)?],
        None => all(&program)?,
    };
    if arguments.seeds {
        return targets.iter().try_for_each(Target::seed);
    }
    if let (Some(input), [target]) = (&arguments.replay, &targets[..]) {
        let status = target.command().arg(fs::canonicalize(input)?).status().context("cannot start it")?;
        ensure!(status.success(), "the input ended with {status}");
        println!("{}: the input is good", target.name);
        return Ok(());
    }
    let waiting = Mutex::new(targets.iter());
    let work = || {
        let mut ended = Vec::new();
        loop {
            let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
            let Some(target) = next else { return ended };
            ended.push(target.run(arguments.seconds));
        }
    };
    let ended: Vec<Result<Run>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    report(&ended);
    ensure!(ended.len() == targets.len(), "only {} of {} targets were run", ended.len(), targets.len());
    let clean = ended.into_iter().collect::<Result<Vec<Run>>>()?.len();
    if arguments.target.is_none() {
        figures::keep(&format!("figure: fuzz.targets {clean}"));
    }
    if arguments.keep {
        targets.iter().try_for_each(Target::keep)?;
    }
    Ok(())
}

fn report(ended: &[Result<Run>]) {
    println!(
        "{:10} {:>12} {:>8} {:>7} {:>6} {:>8}",
        "target", "executions", "edges", "corpus", "new", "seconds"
    );
    for run in ended {
        match run {
            Ok(Run { name, executions, coverage, corpus, found, seconds }) => {
                println!("{name:10} {executions:>12} {coverage:>8} {corpus:>7} {found:>6} {seconds:>8}");
            }
            Err(error) => println!("{error:#}"),
        }
    }
}

/// Builds the program of all targets, in a folder of its own: instrumented code is of no use to others.
fn build() -> Result<PathBuf> {
    let began = Instant::now();
    let (root, host) = (workspace_root(), host()?);
    let folder = root.join("target/fuzz");
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target", &host])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", INSTRUMENTED)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the build ended with {status}");
    println!("built in {} s", began.elapsed().as_secs());
    Ok(folder.join(host).join("release/fuzz"))
}

/// The name of this kind of host. With it cargo instruments only what is run there, and no build script.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say which host this is")?.to_owned())
}

/// Each folder of the corpus is a target.
fn all(program: &Path) -> Result<Vec<Target>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace_root().join("fuzz/corpus")).context("there is no fuzz/corpus")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    ensure!(!names.is_empty(), "fuzz/corpus has no targets");
    names.iter().map(|name| Target::new(program, name)).collect()
}

struct Target {
    name: String,
    program: PathBuf,
    /// Committed inputs.
    corpus: PathBuf,
    /// Inputs that runs have found and that reach something new.
    found: PathBuf,
    /// Inputs that broke a property.
    artifacts: PathBuf,
}

impl Target {
    fn new(program: &Path, name: &str) -> Result<Self> {
        let root = workspace_root();
        let target = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            corpus: root.join("fuzz/corpus").join(name),
            found: root.join("target/fuzz/found").join(name),
            artifacts: root.join("fuzz/artifacts").join(name),
        };
        ensure!(target.corpus.is_dir(), "fuzz/corpus has no {name}");
        for folder in [&target.found, &target.artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(target)
    }

    fn command(&self) -> Command {
        let mut prefix = self.artifacts.as_os_str().to_owned();
        prefix.push("/");
        let mut artifacts = std::ffi::OsString::from("-artifact_prefix=");
        artifacts.push(prefix);
        let mut command = Command::new(&self.program);
        command
            .env("SELVAGE_FUZZ_TARGET", &self.name)
            .arg(artifacts)
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .stdin(Stdio::null());
        command
    }

    fn seed(&self) -> Result<()> {
        let status =
            self.command().env("SELVAGE_FUZZ_SEEDS", &self.corpus).status().context("cannot start it")?;
        ensure!(status.success(), "{}: writing seeds ended with {status}", self.name);
        println!("{}: {} inputs", self.name, files(&self.corpus)?.len());
        Ok(())
    }

    /// The corpus, what was found before, and new inputs for `seconds`.
    fn run(&self, seconds: u64) -> Result<Run> {
        let began = Instant::now();
        let mut command = self.command();
        command.arg(format!("-max_total_time={seconds}")).args(["-print_final_stats=1", "-reload=0"]);
        command.arg(&self.found).arg(&self.corpus).stdout(Stdio::null()).stderr(Stdio::piped());
        let before = files(&self.found)?.len();
        let mut child = command.spawn().with_context(|| format!("{}: cannot start it", self.name))?;
        let (mut executions, mut coverage, mut lines) = (0, 0, Vec::new());
        let errors = child.stderr.take().context("its output is piped")?;
        for line in BufReader::new(errors).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            coverage = number_after(&line, "cov: ").unwrap_or(coverage);
            executions = number_after(&line, "stat::number_of_executed_units: ").unwrap_or(executions);
            lines.push(line);
        }
        let status = child.wait()?;
        if !status.success() {
            let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            let kept = lines.iter().rev().find_map(|line| line.split_once("Test unit written to "));
            let replay = kept.map_or(String::new(), |(_, path)| {
                format!("; again with: cargo x fuzz {} --replay {}", self.name, path.trim())
            });
            bail!("{shown}\n{} ended with {status}{replay}", self.name);
        }
        let corpus = files(&self.corpus)?.len();
        ensure!(corpus > 0, "{} has no corpus", self.name);
        ensure!(executions > corpus as u64 && coverage > 0, "{} executed nothing", self.name);
        let found = files(&self.found)?.len().saturating_sub(before);
        Ok(Run {
            name: self.name.clone(),
            executions,
            coverage,
            corpus,
            found,
            seconds: began.elapsed().as_secs(),
        })
    }

    /// Makes the corpus the fewest inputs that reach all edges that it and what was found reach.
    fn keep(&self) -> Result<()> {
        let merged = self.found.with_extension("merged");
        if merged.exists() {
            fs::remove_dir_all(&merged)?;
        }
        fs::create_dir(&merged)?;
        let mut command = self.command();
        // How often an edge is passed does not count here: those inputs are many, and quickly found again.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).args([&merged, &self.corpus, &self.found]);
        let output = command.output().context("cannot start it")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{said}\n{}: merging ended with {}", self.name, output.status);
        let kept = files(&merged)?;
        ensure!(!kept.is_empty(), "{said}\n{}: nothing is left", self.name);
        for old in files(&self.corpus)? {
            // What was put there by hand has a name of its own, and stays.
            let is_found = old.file_name().is_some_and(|name| name.len() == 40);
            let is_seed = old.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-"));
            if is_found || is_seed {
                fs::remove_file(old)?;
            }
        }
        let mut bytes = 0;
        for file in &kept {
            let name = file.file_name().context("a file has a name")?;
            bytes += fs::copy(file, self.corpus.join(name))?;
        }
        println!("{}: {} inputs kept, {bytes} bytes", self.name, kept.len());
        Ok(())
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn number_after(line: &str, word: &str) -> Option<u64> {
    let (_, rest) = line.split_once(word)?;
    rest.trim_start().split(|end: char| !end.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_libfuzzers_lines() {
        let line = "#20361\tDONE   cov: 2153 ft: 4060 corp: 258/11Kb lim: 317 exec/s: 5090 rss: 46Mb";
        assert_eq!(number_after(line, "cov: "), Some(2153));
        let line = "stat::number_of_executed_units: 20361";
        assert_eq!(number_after(line, "stat::number_of_executed_units: "), Some(20361));
        assert_eq!(number_after("#2 INITED cov: x", "cov: "), None);
    }
}
