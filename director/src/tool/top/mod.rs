//! `selvage top`: the cluster, live.
//!
//! A thread asks the director at each interval and sends what it says; the screen is drawn from the last two
//! answers, so that a director that hangs does not hang the keys. Without a terminal, `--batch` prints the
//! same as lines.

mod rates;
mod screen;

use super::call::Caller;
use super::{Common, usage};
use clap::Args;
use hyper::Method;
use rates::{Picture, Sample};
use selvage_fabric::error::Result;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How it is shown.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Print plain lines instead of a live screen.
    #[arg(long, short)]
    batch: bool,
    /// Stop after so many pictures; without it, go on. Needs --batch.
    #[arg(long, short = 'n', value_name = "COUNT", requires = "batch")]
    count: Option<u64>,
    /// Seconds between two pictures.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
}

/// Shows the cluster until it is told to stop.
pub(super) fn run(common: &Common, arguments: &Arguments) -> Result<String> {
    let (caller, interval) = (Caller::new(common.url()?)?, Duration::from_secs_f64(arguments.interval));
    if arguments.batch || common.json {
        batch(common, &caller, interval, arguments.count)?;
        return Ok(String::new());
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(usage("top draws on a terminal, and this is none; say --batch for plain lines"));
    }
    // The first answer before the screen changes: most mistakes are seen here.
    let first = sample(&caller)?;
    let (news, samples) = sync_channel(1);
    std::thread::spawn(move || keep_asking(&caller, interval, &news));
    screen::run(first, &samples)?;
    Ok(String::new())
}

/// One picture after another, as lines.
fn batch(common: &Common, caller: &Caller, interval: Duration, count: Option<u64>) -> Result<()> {
    let mut before = sample(caller)?;
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        std::thread::sleep(interval);
        let now = sample(caller)?;
        let picture = Picture::new(&before, &now);
        let text = match common.json {
            // One line each, for programs that read along.
            true => serde_json::to_string(&picture).unwrap_or_default() + "\n",
            false => rates::describe(&picture),
        };
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Whoever reads has seen enough.
            return Ok(());
        }
        (before, printed) = (now, printed + 1);
    }
    Ok(())
}

fn sample(caller: &Caller) -> Result<Sample> {
    let status = caller.json(Method::GET, "/admin/view")?;
    let metrics = caller.text(Method::GET, "/metrics")?;
    Ok(Sample { at: Instant::now(), status, requests: rates::requests(&metrics) })
}

/// Asks until nobody listens.
fn keep_asking(caller: &Caller, interval: Duration, news: &SyncSender<Result<Sample>>) {
    loop {
        std::thread::sleep(interval);
        if news.send(sample(caller)).is_err() {
            return;
        }
    }
}

/// What the thread that asks sends.
type Samples = Receiver<Result<Sample>>;

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("it must be 0.1 to 3600 seconds".to_owned()),
    }
}
