//! The director beside Debian's HAProxy: the same raw requests through both to the same web server, and what
//! the web server and the browser saw of them. Each row of [`table`] says that both did the same, or why not;
//! both claims are checked, and the differences are those that docs/proxy.md lists.

mod peer;
mod table;
mod web;

use peer::{DirectorRow, Haproxy};
use std::fmt::Write as _;
use std::time::Duration;
use table::{Claim, ROWS, Row};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use web::Web;

/// Times of both proxies for what does not come; long enough for a loaded machine.
const TIMEOUT_MS: u64 = 3_000;
/// Longest time for a row: more than all times of the proxies together.
const ROW_WAIT: Duration = Duration::from_secs(15);
/// Longest time for all.
const WAIT: Duration = Duration::from_secs(60);

/// What became of a row through one proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    /// Requests as the web server read them, and bytes that were none.
    web: Vec<String>,
    /// Answers as the browser read them.
    browser: String,
}

impl Outcome {
    fn text(&self) -> String {
        let web = if self.web.is_empty() { "nothing".to_owned() } else { self.web.join("; ") };
        format!("{} ← {web}", self.browser)
    }
}

#[test]
fn the_director_does_what_haproxy_does_or_the_table_says_why_not() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcomes = runtime.block_on(async { tokio::time::timeout(WAIT, compare()).await.expect("in time") });
    let mut faults = String::new();
    for (row, (haproxy, director)) in ROWS.iter().zip(&outcomes) {
        let seen = format!("  HAProxy:  {}\n  director: {}", haproxy.text(), director.text());
        match &row.claim {
            Claim::Same if haproxy != director => {
                let _ = writeln!(faults, "{:?} should be the same:\n{seen}", row.name);
            }
            Claim::Differs(_) if haproxy == director => {
                let _ = writeln!(faults, "{:?} is no difference any more:\n{seen}", row.name);
            }
            _ => {}
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
    assert!(ROWS.len() >= 40, "only {} rows", ROWS.len());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/proxy.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- haproxy: generated -->\n", "<!-- haproxy: end -->");
    let (before, rest) = page.split_once(begin).expect("a place for the table");
    let (table, after) = rest.split_once(end).expect("its end");
    let now = differences(&outcomes);
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        std::fs::write(path, format!("{before}{begin}{now}{end}{after}")).unwrap();
        return;
    }
    assert!(
        table == now,
        "docs/proxy.md does not list the differences; renew it with SELVAGE_BLESS=1:\n{now}"
    );
}

/// All rows at once, through both.
async fn compare() -> Vec<(Outcome, Outcome)> {
    let folder = tempfile::tempdir().unwrap();
    let mut webs = Vec::new();
    for row in ROWS {
        webs.push((Web::start(row.answer).await, Web::start(row.answer).await));
    }
    let haproxy = Haproxy::start(folder.path(), webs.iter().map(|(web, _)| web.address())).await;
    let mut runs = Vec::new();
    for (number, (row, (left, right))) in ROWS.iter().zip(webs).enumerate() {
        let socket = haproxy.socket(number);
        runs.push(tokio::spawn(async move {
            let director = DirectorRow::start(right.address());
            let (left, right) = tokio::join!(
                async { outcome(row, tokio::net::UnixStream::connect(&socket).await.unwrap(), left).await },
                async { outcome(row, director.connect(), right).await },
            );
            (left, right)
        }));
    }
    let mut outcomes = Vec::new();
    for run in runs {
        outcomes.push(run.await.unwrap());
    }
    outcomes
}

/// Sends a row's bytes and reads until the proxy closes, which its times make it do.
async fn outcome(row: &Row, stream: impl AsyncRead + AsyncWrite, web: Web) -> Outcome {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut heard = Vec::new();
    // It may close while bytes are still on their way.
    let _ = to.write_all(&row.bytes()).await;
    if let Some(wait_for) = row.then {
        while !heard.windows(wait_for.0.len()).any(|window| window == wait_for.0.as_bytes()) {
            if from.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                break;
            }
        }
        let _ = to.write_all(wait_for.1.as_bytes()).await;
    }
    let closed = tokio::time::timeout(ROW_WAIT, from.read_to_end(&mut heard)).await;
    let mut browser = web::answers(&heard, &row.methods());
    if closed.is_err() {
        browser.push_str(", open");
    }
    Outcome { web: web.seen(), browser }
}

/// The table of docs/proxy.md.
fn differences(outcomes: &[(Outcome, Outcome)]) -> String {
    let mut table = "| request | HAProxy 2.6 | director | why |\n|---|---|---|---|\n".to_owned();
    for (row, (haproxy, director)) in ROWS.iter().zip(outcomes) {
        if let Claim::Differs(why) = row.claim {
            let cell = |outcome: &Outcome| format!("`{}`", outcome.text().replace('|', "\\|"));
            let _ = writeln!(table, "| {} | {} | {} | {why} |", row.name, cell(haproxy), cell(director));
        }
    }
    table
}
