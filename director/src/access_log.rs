//! The access log: a line for each request, written when its answer has ended, by a thread of its own.
//!
//! Nobody waits for the log: lines that find its queue full are lost, and counted. No line has a cookie or
//! anything else that opens a session. The file is opened anew on demand, so that it can be moved away.
//! Callers: [`crate::proxy::listen`] writes, [`crate::daemon`] opens.

use crate::limits;
use crate::metrics::Outcome;
use crate::proxy::client::Client;
use arc_swap::{ArcSwap, ArcSwapOption};
use hyper::header::{HeaderName, REFERER, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Version};
use jiff::ZonedDateTime;
use prometheus_client::metrics::counter::Counter;
use selvage_fabric::config::{AccessLogFormat, Director};
use selvage_fabric::error::{Error, Origin, Result};
use serde_json::json;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Status of a request whose browser went away before there was an answer, as nginx has it.
const GONE: u16 = 499;

/// The log, which may be off.
#[derive(Debug)]
pub struct AccessLog {
    open: ArcSwapOption<Open>,
    /// Lines that were not written.
    lost: Counter,
}

/// An open log.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    format: AccessLogFormat,
    queue: NonBlocking,
    /// Lines that found the queue full, as far as they are in `lost`.
    dropped: AtomicUsize,
    sink: Sink,
    /// Writes what waits when it is dropped.
    _writer: WorkerGuard,
}

/// Where lines go: a file that can be replaced by another, or standard output.
#[derive(Clone, Debug)]
struct Sink(Option<Arc<ArcSwap<File>>>);

/// The writing thread's end of the queue.
struct Lines {
    sink: Sink,
    waiting: Vec<u8>,
    lost: Counter,
}

/// What a request goes through. The proxy's phases write it, the log reads it when the answer has ended.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Way>);

#[derive(Clone, Debug, Default)]
struct Way {
    node: Option<String>,
    sends: u32,
    elsewhere: u32,
    queued: Duration,
    outcome: Option<Outcome>,
    is_no_request: bool,
}

/// A request that will be a line when this is dropped.
#[derive(Debug)]
pub struct Entry {
    log: Arc<AccessLog>,
    begun: Instant,
    at: ZonedDateTime,
    client: IpAddr,
    tls: Option<&'static str>,
    method: Method,
    target: String,
    version: Version,
    referer: Vec<u8>,
    agent: Vec<u8>,
    notes: Arc<Notes>,
    /// Of the answer.
    pub status: u16,
    /// Of the answer's body, that were handed on.
    pub bytes: u64,
    /// The answer's body has ended as it should.
    pub whole: bool,
}

impl AccessLog {
    /// Nothing is logged.
    pub fn off() -> Arc<Self> {
        Arc::new(Self { open: ArcSwapOption::empty(), lost: Counter::default() })
    }

    /// As configured.
    ///
    /// # Errors
    /// `Os` if the file cannot be opened.
    pub fn new(config: &Director, lost: Counter) -> Result<Arc<Self>> {
        let log = Self { open: ArcSwapOption::empty(), lost };
        log.configure(config)?;
        Ok(Arc::new(log))
    }

    /// Takes another configuration, and opens the file anew.
    ///
    /// # Errors
    /// `Os` if the file cannot be opened; then nothing is changed.
    pub fn configure(&self, config: &Director) -> Result<()> {
        let is_same = |open: &Arc<Open>| {
            config.access_log.as_ref() == Some(&open.path) && config.access_log_format == open.format
        };
        if self.open.load().as_ref().is_some_and(is_same) {
            return self.reopen();
        }
        let open = match &config.access_log {
            Some(path) => Some(Arc::new(Open::new(path, config.access_log_format, &self.lost)?)),
            None => None,
        };
        // Requests that hold the old one still write there, and then it ends.
        self.open.store(open);
        Ok(())
    }

    /// Nothing more comes: writes what waits. Blocks for a moment.
    pub fn close(&self) {
        self.open.store(None);
    }

    /// Opens the file anew: the old one was moved away.
    ///
    /// # Errors
    /// `Os` if that cannot be done; then the old one is written on.
    pub fn reopen(&self) -> Result<()> {
        let open = self.open.load();
        let Some((path, Sink(Some(file)))) = open.as_ref().map(|open| (&open.path, &open.sink)) else {
            return Ok(());
        };
        file.store(Arc::new(append(path)?));
        Ok(())
    }

    /// A request has come; `None` if nothing is logged. The phases get the notes with it.
    pub fn begin<B>(self: &Arc<Self>, request: &mut Request<B>, client: &Client) -> Option<Entry> {
        self.open.load().as_ref()?;
        let notes = Arc::new(Notes::default());
        let text = |name: &HeaderName, headers: &HeaderMap| {
            let value = headers.get(name).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
            cut(value)
        };
        let target =
            request.uri().path_and_query().map_or_else(|| request.uri().to_string(), ToString::to_string);
        let entry = Entry {
            log: Arc::clone(self),
            begun: Instant::now(),
            at: ZonedDateTime::now(),
            client: client.address,
            tls: client.tls,
            method: request.method().clone(),
            target,
            version: request.version(),
            referer: text(&REFERER, request.headers()),
            agent: text(&USER_AGENT, request.headers()),
            notes: Arc::clone(&notes),
            status: GONE,
            bytes: 0,
            whole: false,
        };
        request.extensions_mut().insert(notes);
        Some(entry)
    }

    fn write(&self, entry: &Entry) {
        let open = self.open.load();
        let Some(open) = open.as_ref() else { return };
        let way = entry.notes.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let line = match open.format {
            AccessLogFormat::Combined => combined(entry, &way),
            AccessLogFormat::Json => json_line(entry, &way),
        };
        // Never fails: what finds no room is counted.
        let _ = open.queue.clone().write_all(line.as_bytes());
        let dropped = open.queue.error_counter().dropped_lines();
        let before = open.dropped.fetch_max(dropped, Ordering::Relaxed);
        self.lost.inc_by(dropped.saturating_sub(before) as u64);
    }
}

impl Open {
    fn new(path: &Path, format: AccessLogFormat, lost: &Counter) -> Result<Self> {
        let sink = match path == Path::new("-") {
            true => Sink(None),
            false => Sink(Some(Arc::new(ArcSwap::from_pointee(append(path)?)))),
        };
        let lines = Lines { sink: sink.clone(), waiting: Vec::new(), lost: lost.clone() };
        let (queue, writer) = NonBlockingBuilder::default()
            .buffered_lines_limit(limits::LOG_LINES_MAX)
            .thread_name("access-log")
            .finish(lines);
        let path = path.to_owned();
        Ok(Self { path, format, queue, dropped: AtomicUsize::new(0), sink, _writer: writer })
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
        let what = format!("cannot open the access log {}", path.display());
        Error::os(Origin::Director, what, error)
    })
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= limits::LOG_BUFFER_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    /// Whole lines at a time, so that a file that is replaced ends with one. Called when none waits.
    fn flush(&mut self) -> io::Result<()> {
        let written = match &self.sink.0 {
            Some(file) => (&**file.load()).write_all(&self.waiting),
            None => io::stdout().write_all(&self.waiting).and_then(|()| io::stdout().flush()),
        };
        if written.is_err() {
            let lines = self.waiting.iter().filter(|byte| **byte == b'\n').count();
            self.lost.inc_by(lines as u64);
        }
        self.waiting.clear();
        Ok(())
    }
}

impl Notes {
    fn note(&self, what: impl FnOnce(&mut Way)) {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// It is sent to a node.
    pub fn sent(&self, node: &str) {
        self.note(|way| {
            way.node = Some(node.to_owned());
            way.sends += 1;
        });
    }

    /// A node says that the session is elsewhere.
    pub fn elsewhere(&self) {
        self.note(|way| way.elsewhere += 1);
    }

    /// It has waited for a node.
    pub fn queued(&self, time: Duration) {
        self.note(|way| way.queued += time);
    }

    /// How it ended.
    pub fn ended(&self, outcome: Outcome) {
        self.note(|way| way.outcome = Some(outcome));
    }

    /// What came was no request, and what stands for it says nothing.
    pub fn is_no_request(&self) {
        self.note(|way| way.is_no_request = true);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.log.write(self);
    }
}

impl Entry {
    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_09 => "HTTP/0.9",
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_3 => "HTTP/3.0",
            _ => "HTTP/1.1",
        }
    }
}

/// `client - - [time] "request" status bytes "referer" "agent"`.
fn combined(entry: &Entry, way: &Way) -> String {
    let time = entry.at.strftime("%d/%b/%Y:%H:%M:%S %z");
    let mut line = format!("{} - - [{time}] \"", entry.client);
    match way.is_no_request {
        true => line.push('-'),
        false => {
            let request = format!("{} {} {}", entry.method, entry.target, entry.protocol());
            escape(&mut line, &cut(request.into_bytes()));
        }
    }
    // Writing into a string cannot fail.
    let _ = write!(line, "\" {} {} \"", entry.status, entry.bytes);
    for (text, end) in [(&entry.referer, "\" \""), (&entry.agent, "\"\n")] {
        match text.is_empty() || way.is_no_request {
            true => line.push('-'),
            false => escape(&mut line, text),
        }
        line.push_str(end);
    }
    line
}

fn json_line(entry: &Entry, way: &Way) -> String {
    let text = |bytes: &[u8]| (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned());
    let of_request = |value: Option<String>| value.filter(|_| !way.is_no_request);
    let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
    let line = json!({
        "time": entry.at.timestamp().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
        "client": entry.client.to_string(),
        "method": of_request(Some(entry.method.to_string())),
        "target": of_request(text(&cut(entry.target.clone().into_bytes()))),
        "protocol": of_request(Some(entry.protocol().to_owned())),
        "tls": entry.tls,
        "status": entry.status,
        "bytes": entry.bytes,
        "whole": entry.whole,
        "duration_ms": ms(entry.begun.elapsed()),
        "queued_ms": ms(way.queued),
        "referer": of_request(text(&entry.referer)),
        "agent": of_request(text(&entry.agent)),
        "node": way.node,
        "sends": way.sends,
        "elsewhere": way.elsewhere,
        "outcome": way.outcome.map(Outcome::name),
    });
    format!("{line}\n")
}

fn cut(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(limits::LOG_TEXT_BYTES_MAX);
    text
}

/// As the web servers do it: nothing can end the quotes or the line.
fn escape(line: &mut String, text: &[u8]) {
    for byte in text {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f..=0xff => {
                let _ = write!(line, "\\x{byte:02X}");
            }
            _ => line.push(char::from(*byte)),
        }
    }
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
