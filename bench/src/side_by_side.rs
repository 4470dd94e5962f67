//! Redis and Selvage in one run, in turns: the same machine, the same minute, one client each.
//!
//! Each round gives every contestant one slice of time, so that a busy moment of the machine falls on all of
//! them. Redis is measured with server and client on one core and on two, and the better of the two counts.
//! For Selvage the client is pinned to one core too; the session servers and the director run as they are.

use crate::cluster::{BenchCluster, Shape, open, product};
use crate::measure::{Measured, Recorder, cores, pin};
use crate::redis::{Client, Redis, request};
use crate::sample;
use anyhow::{Context, Result, ensure};
use selvage_fabric::archive::Value;
use selvage_fabric::ident::Cookie;
use selvage_fabric::node::{Ack, Node, OpenMode, Session};
use serde::Serialize;
use std::hint::black_box;
use std::time::Duration;

/// Copies of each commit.
pub const COPIES: u32 = 2;
/// Reads of an attribute between two looks at the clock; one takes less than a look.
const READS: u32 = 64;

/// How long a run is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Length {
    /// Rounds.
    pub rounds: u32,
    /// Time of each contestant in each round, ms.
    pub slice_ms: u64,
}

impl Length {
    /// For a look: some ten seconds.
    pub const QUICK: Self = Self { rounds: 8, slice_ms: 100 };
    /// For numbers to keep: a minute or two.
    pub const FULL: Self = Self { rounds: 20, slice_ms: 400 };
}

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Contestant {
    /// One value written.
    RedisSet,
    /// One value read.
    RedisGet,
    /// A web request with the session in Redis: read it, write it back.
    RedisGetSet,
    /// One attribute changed and committed with two copies, in a session that is open for change.
    Commit,
    /// The same with a value of another size, for which the archive is built anew.
    ResizingCommit,
    /// A web request: open for change, read three attributes, change one, commit two copies, close.
    ChangingRequest,
    /// A web request that only reads: open, read three attributes, close.
    ReadingRequest,
    /// One attribute read in an open session.
    Read,
}

impl Contestant {
    /// What it does, for the table.
    pub fn what(self) -> &'static str {
        match self {
            Self::RedisSet => "Redis SET 1 KiB",
            Self::RedisGet => "Redis GET 1 KiB",
            Self::RedisGetSet => "Redis GET + SET 1 KiB",
            Self::Commit => "commit, 2 copies",
            Self::ResizingCommit => "commit of a value of another size, 2 copies",
            Self::ChangingRequest => "request: open, read 3, change 1, commit, close",
            Self::ReadingRequest => "request: open read-only, read 3, close",
            Self::Read => "attribute read in an open session",
        }
    }

    /// What does the same work in Redis.
    pub fn peer(self) -> Option<Self> {
        match self {
            Self::RedisSet | Self::RedisGet | Self::RedisGetSet => None,
            Self::Commit | Self::ResizingCommit => Some(Self::RedisSet),
            Self::ChangingRequest => Some(Self::RedisGetSet),
            Self::ReadingRequest | Self::Read => Some(Self::RedisGet),
        }
    }
}

/// One contestant's result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who.
    pub contestant: Contestant,
    /// Cores of client and server, for Redis.
    pub pinning: Option<&'static str>,
    /// Its latencies.
    pub measured: Measured,
}

/// Runs everything.
///
/// # Errors
/// If a server cannot be started, dies, or a commit reaches fewer copies than it must.
pub fn run(length: Length) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let redis = Redis::start(folder.path())?;
    let cluster = BenchCluster::start(product()?, &Shape { copies: COPIES, ..Shape::default() })?;
    let rows = rounds(length, &redis, &cluster);
    cluster.stop()?;
    rows
}

fn rounds(length: Length, redis: &Redis, cluster: &BenchCluster) -> Result<Vec<Row>> {
    let slice = Duration::from_millis(length.slice_ms);
    let cores = cores()?;
    let mut pinnings = vec![RedisSide::new(redis, "one core", cores[0], cores[0])?];
    if let Some(second) = cores.get(1) {
        pinnings.push(RedisSide::new(redis, "two cores", cores[0], *second)?);
    }
    let attributes = sample::attributes(sample::ARCHIVE_BYTES)?;
    let cookie = cluster.session(&attributes, COPIES)?;
    let mut selvage = SelvageSide::new(cluster.node()?, cookie)?;
    for _ in 0..length.rounds {
        for side in &mut pinnings {
            side.round(redis, slice)?;
        }
        pin(None, &cores[..1])?;
        selvage.round(slice)?;
    }
    pin(None, &cores)?;
    Ok(pinnings.iter().flat_map(RedisSide::rows).chain(selvage.rows()).collect())
}

/// Redis with one choice of cores.
struct RedisSide {
    client: Client,
    pinning: &'static str,
    client_core: usize,
    server_core: usize,
    set: Recorder,
    get: Recorder,
    get_set: Recorder,
}

impl RedisSide {
    fn new(redis: &Redis, pinning: &'static str, client_core: usize, server_core: usize) -> Result<Self> {
        let client = redis.client()?;
        let (set, get, get_set) = (Recorder::new(1)?, Recorder::new(1)?, Recorder::new(1)?);
        Ok(Self { client, pinning, client_core, server_core, set, get, get_set })
    }

    fn round(&mut self, redis: &Redis, slice: Duration) -> Result<()> {
        pin(Some(redis.pid()), &[self.server_core])?;
        pin(None, &[self.client_core])?;
        let value = sample::archive(&sample::attributes(sample::ARCHIVE_BYTES)?)?;
        let set = request(&[b"SET", b"session:4711", &value]);
        let get = request(&[b"GET", b"session:4711"]);
        let client = &mut self.client;
        self.set.slice(slice, || client.call(&set).map(drop))?;
        self.get.slice(slice, || {
            let bytes = client.call(&get)?;
            ensure!(bytes == value.len(), "GET answered {bytes} bytes, not {}", value.len());
            Ok(())
        })?;
        self.get_set.slice(slice, || {
            client.call(&get)?;
            client.call(&set).map(drop)
        })
    }

    fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let rows = [
            (Contestant::RedisSet, &self.set),
            (Contestant::RedisGet, &self.get),
            (Contestant::RedisGetSet, &self.get_set),
        ];
        let pinning = Some(self.pinning);
        rows.map(|(contestant, recorder)| Row { contestant, pinning, measured: recorder.finish() })
            .into_iter()
    }
}

/// Selvage, as a web server's worker process uses it.
struct SelvageSide<'a> {
    node: &'a Node,
    cookie: Cookie,
    visits: i64,
    commit: Recorder,
    resizing: Recorder,
    changing: Recorder,
    reading: Recorder,
    read: Recorder,
}

impl<'a> SelvageSide<'a> {
    fn new(node: &'a Node, cookie: Cookie) -> Result<Self> {
        let new = || Recorder::new(1);
        let (commit, resizing, changing, reading) = (new()?, new()?, new()?, new()?);
        Ok(Self { node, cookie, visits: 0, commit, resizing, changing, reading, read: Recorder::new(READS)? })
    }

    fn round(&mut self, slice: Duration) -> Result<()> {
        let Self { node, cookie, visits, .. } = self;
        let mut session = open(node, cookie, OpenMode::Exclusive)?;
        self.commit.slice(slice, || change(&mut session, visits))?;
        let messages = ["", "Your order is on its way"];
        self.resizing.slice(slice, || {
            let message = messages[*visits as usize % messages.len()].to_owned();
            session.set(sample::RESIZED, Value::Text(message))?;
            change(&mut session, visits)
        })?;
        drop(session);
        self.changing.slice(slice, || {
            let mut session = open(node, cookie, OpenMode::Exclusive)?;
            read(&session);
            change(&mut session, visits)
        })?;
        self.reading.slice(slice, || {
            read(&open(node, cookie, OpenMode::ReadOnly)?);
            Ok(())
        })?;
        let session = open(node, cookie, OpenMode::ReadOnly)?;
        ensure!(session.get(sample::CHANGED).is_some_and(|value| value == Value::I64(*visits).as_ref()));
        self.read.slice(slice, || {
            black_box(session.get(black_box(sample::READ[0])));
            Ok(())
        })
    }

    fn rows(&self) -> impl Iterator<Item = Row> + use<> {
        let rows = [
            (Contestant::Commit, &self.commit),
            (Contestant::ResizingCommit, &self.resizing),
            (Contestant::ChangingRequest, &self.changing),
            (Contestant::ReadingRequest, &self.reading),
            (Contestant::Read, &self.read),
        ];
        rows.map(|(contestant, recorder)| Row { contestant, pinning: None, measured: recorder.finish() })
            .into_iter()
    }
}

#[inline]
fn read(session: &Session) {
    for name in sample::READ {
        black_box(session.get(name));
    }
}

#[inline]
fn change(session: &mut Session, visits: &mut i64) -> Result<()> {
    *visits += 1;
    session.set(sample::CHANGED, Value::I64(*visits))?;
    let committed = session.commit(Ack::All)?;
    ensure!(committed.copies == COPIES, "a commit reached {} copies: {committed:?}", committed.copies);
    Ok(())
}
