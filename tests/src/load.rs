//! Many browsers that count up in their sessions, and the book that says what each was promised.
//!
//! An increment is *acked* when it was answered 200 with `Selvage-Copies` of at least 1. Invariant of the
//! book: a session's counter is at least its acked value and at most the number of increments that were sent.
//! Whatever breaks that is counted as lost, never explained away.

use crate::client::{Answer, Connection, CookieValue};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use selvage_fabric::ident::Incarnation;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const COUNTER: &str = "/session/n";
const INCREMENT: &str = "/session/n/incr";

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Sessions, shared out over the connections.
    pub sessions: usize,
    /// Connections; each has one request under way at a time.
    pub connections: usize,
    /// Pause of a connection between two requests.
    pub think: Duration,
}

/// Browsers at work.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Vec<Visitor>>>,
}

/// A request that was not answered 200.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was sent.
    pub started: Instant,
    /// When it had failed.
    pub ended: Instant,
    /// The node that hosted its session, by its cookie.
    pub host: Incarnation,
    /// What came instead.
    pub why: String,
}

/// A session that was served by another node than before.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// When the answer came.
    pub at: Instant,
    /// The node before.
    pub from: Incarnation,
    /// The node that answered.
    pub to: Incarnation,
}

/// One session and what it was promised.
#[derive(Debug, Clone)]
struct Visitor {
    cookie: CookieValue,
    /// Largest number that was acked.
    acked: i64,
    /// Increments that were sent to this session.
    sent: i64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    requests: AtomicU64,
    unprotected: AtomicU64,
    sessions_lost: AtomicU64,
    increments_lost: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    moves: Mutex<Vec<Move>>,
}

/// The book after the load has ended.
#[derive(Debug)]
pub struct Ledger {
    /// Increments sent.
    pub requests: u64,
    /// Requests that were not answered 200.
    pub failures: Vec<Failure>,
    /// Increments answered 200 with no safe copy.
    pub unprotected: u64,
    /// Sessions served elsewhere.
    pub moves: Vec<Move>,
    sessions_lost: u64,
    increments_lost: u64,
    visitors: Vec<Visitor>,
}

/// What the last reading of every session has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Sessions read.
    pub sessions: u64,
    /// Sessions that were replaced by a new one or cannot be read.
    pub sessions_lost: u64,
    /// Acked increments that are not in the counters.
    pub increments_lost: u64,
    /// Sessions whose counter is higher than the increments sent to it: something was done twice.
    pub counted_twice: u64,
}

impl Load {
    /// Creates the sessions, then begins to count up in them.
    ///
    /// # Errors
    /// A session cannot be created.
    pub async fn start(address: SocketAddr, plan: Plan) -> Result<Self> {
        ensure!(plan.connections > 0 && plan.sessions >= plan.connections, "fewer sessions than connections");
        let mut creating = Vec::new();
        for at in 0..plan.connections {
            let share = plan.sessions / plan.connections + usize::from(at < plan.sessions % plan.connections);
            creating.push(tokio::spawn(async move {
                let mut connection = Connection::to(address);
                let mut visitors = Vec::with_capacity(share);
                for _ in 0..share {
                    visitors.push(Visitor::create(&mut connection).await?);
                }
                anyhow::Ok((connection, visitors))
            }));
        }
        let mut ready = Vec::new();
        for task in creating {
            ready.push(task.await??);
        }
        let shared = Arc::new(Shared::default());
        shared.requests.store(plan.sessions as u64, Ordering::Relaxed);
        let tasks = ready
            .into_iter()
            .map(|(connection, visitors)| {
                tokio::spawn(count_up(Arc::clone(&shared), connection, visitors, plan.think))
            })
            .collect();
        Ok(Self { shared, tasks })
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests failed so far.
    pub fn failed(&self) -> usize {
        locked(&self.shared.failures).len()
    }

    /// The request that failed last, if one has.
    pub fn newest_failure(&self) -> Option<Failure> {
        locked(&self.shared.failures).last().cloned()
    }

    /// Time from `since` until the first session of the node incarnation `from` was served by another one.
    pub fn first_moved(&self, from: Incarnation, since: Instant) -> Option<Duration> {
        let moves = locked(&self.shared.moves);
        let first =
            moves.iter().filter(|moved| moved.from == from && moved.at >= since).map(|moved| moved.at).min();
        first.map(|at| at - since)
    }

    /// Lets the requests under way finish and closes the book.
    ///
    /// # Errors
    /// A browser has panicked.
    pub async fn stop(self) -> Result<Ledger> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut visitors = Vec::new();
        for task in self.tasks {
            visitors.extend(task.await.context("a browser has panicked")?);
        }
        let shared = &self.shared;
        Ok(Ledger {
            requests: shared.requests.load(Ordering::Relaxed),
            failures: std::mem::take(&mut *locked(&shared.failures)),
            unprotected: shared.unprotected.load(Ordering::Relaxed),
            moves: std::mem::take(&mut *locked(&shared.moves)),
            sessions_lost: shared.sessions_lost.load(Ordering::Relaxed),
            increments_lost: shared.increments_lost.load(Ordering::Relaxed),
            visitors,
        })
    }
}

impl Ledger {
    /// Reads every session once more and compares it with the book.
    ///
    /// # Errors
    /// The director cannot be reached at all.
    pub async fn verify(&self, address: SocketAddr, connections: usize) -> Result<Verdict> {
        let mut tasks = Vec::new();
        let piece = self.visitors.len().div_ceil(connections.max(1)).max(1);
        for visitors in self.visitors.chunks(piece).map(<[Visitor]>::to_vec) {
            tasks.push(tokio::spawn(async move {
                let mut connection = Connection::to(address);
                let mut verdict = Verdict::default();
                for visitor in visitors {
                    let answer =
                        connection.send(Method::GET, COUNTER, Some(&visitor.header()), Bytes::new()).await?;
                    visitor.judge(&answer, &mut verdict);
                }
                anyhow::Ok(verdict)
            }));
        }
        let mut verdict = Verdict {
            sessions_lost: self.sessions_lost,
            increments_lost: self.increments_lost,
            ..Verdict::default()
        };
        for task in tasks {
            let part = task.await??;
            verdict.sessions += part.sessions;
            verdict.sessions_lost += part.sessions_lost;
            verdict.increments_lost += part.increments_lost;
            verdict.counted_twice += part.counted_twice;
        }
        Ok(verdict)
    }

    /// Failures of requests that were not under way at any moment between `from` and `to`.
    pub fn failures_outside(&self, from: Instant, to: Instant) -> Vec<&Failure> {
        self.failures.iter().filter(|failure| failure.started > to || failure.ended < from).collect()
    }

    /// The sessions' cookies.
    pub fn cookies(&self) -> impl Iterator<Item = &CookieValue> {
        self.visitors.iter().map(|visitor| &visitor.cookie)
    }
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.sessions > 0 && self.sessions_lost == 0 && self.increments_lost == 0 && self.counted_twice == 0
    }
}

impl Visitor {
    async fn create(connection: &mut Connection) -> Result<Self> {
        let answer = connection.send(Method::POST, INCREMENT, None, Bytes::new()).await?;
        let (number, cookie) = (answer.number(), answer.cookie());
        let (Some(1), Some(cookie), true) = (number, cookie, answer.status.is_success()) else {
            anyhow::bail!("a new session answers {}: {}", answer.status, answer.text());
        };
        let acked = i64::from(answer.copies().unwrap_or(0) >= 1);
        Ok(Self { cookie, acked, sent: 1 })
    }

    fn header(&self) -> String {
        format!("selvage={}", self.cookie.text)
    }

    /// Enters the answer to an increment into the book.
    fn enter(&mut self, answer: &Answer, started: Instant, shared: &Shared) {
        if let Some(cookie) = answer.cookie() {
            if cookie.id != self.cookie.id {
                shared.sessions_lost.fetch_add(1, Ordering::Relaxed);
                shared.increments_lost.fetch_add(self.acked.cast_unsigned(), Ordering::Relaxed);
                (self.acked, self.sent) = (0, 1);
            } else if cookie.host != self.cookie.host {
                let moved = Move { at: Instant::now(), from: self.cookie.host, to: cookie.host };
                locked(&shared.moves).push(moved);
            }
            self.cookie = cookie;
        }
        let (true, Some(number)) = (answer.status.is_success(), answer.number()) else {
            let why = format!("{}: {}", answer.status, answer.text().trim());
            return self.fail(why, started, shared);
        };
        let lost = self.acked + 1 - number;
        if lost > 0 {
            shared.increments_lost.fetch_add(lost.cast_unsigned(), Ordering::Relaxed);
        }
        if answer.copies().unwrap_or(0) >= 1 {
            self.acked = number;
        } else {
            shared.unprotected.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fail(&self, why: String, started: Instant, shared: &Shared) {
        let failure = Failure { started, ended: Instant::now(), host: self.cookie.host, why };
        locked(&shared.failures).push(failure);
    }

    /// Compares what is read at the end.
    fn judge(&self, answer: &Answer, verdict: &mut Verdict) {
        verdict.sessions += 1;
        let same =
            answer.cookie().is_none_or(|cookie| cookie.id == self.cookie.id) && !answer.clears_cookie();
        let number = answer.number().filter(|_| answer.status.is_success() && same);
        let Some(number) = number else {
            // A session of which nothing was ever acked may be gone with its host.
            verdict.sessions_lost += u64::from(self.acked > 0);
            verdict.increments_lost += self.acked.cast_unsigned();
            return;
        };
        verdict.increments_lost += (self.acked - number).max(0).cast_unsigned();
        verdict.counted_twice += u64::from(number > self.sent);
    }
}

async fn count_up(
    shared: Arc<Shared>,
    mut connection: Connection,
    mut visitors: Vec<Visitor>,
    think: Duration,
) -> Vec<Visitor> {
    while !shared.stop.load(Ordering::Relaxed) {
        for visitor in &mut visitors {
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            visitor.sent += 1;
            let started = Instant::now();
            let answer =
                connection.send(Method::POST, INCREMENT, Some(&visitor.header()), Bytes::new()).await;
            shared.requests.fetch_add(1, Ordering::Relaxed);
            match answer {
                Ok(answer) => visitor.enter(&answer, started, &shared),
                Err(error) => visitor.fail(format!("{error:#}"), started, &shared),
            }
            if !think.is_zero() {
                tokio::time::sleep(think).await;
            }
        }
    }
    visitors
}

/// The lists stay whole when a browser panics while it holds one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, StatusCode, header};
    use selvage_fabric::ident::{Cookie, CookieKey, SessionId};

    fn cookie(id: u8, host: u64) -> CookieValue {
        let cookie = Cookie { id: SessionId([id; 16]), host: Incarnation(host) };
        CookieValue::parse(&cookie.encode(&[CookieKey(vec![1; 32])])).unwrap()
    }

    fn answer(status: u16, body: &str, copies: u32, set: Option<&CookieValue>) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("selvage-copies", HeaderValue::from(copies));
        if let Some(set) = set {
            let value = format!("selvage={}; Path=/; HttpOnly", set.text);
            headers.insert(header::SET_COOKIE, HeaderValue::from_str(&value).unwrap());
        }
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::from(body.to_owned()) }
    }

    fn visitor(acked: i64, sent: i64) -> Visitor {
        Visitor { cookie: cookie(1, 7), acked, sent }
    }

    fn entered(visitor: &mut Visitor, answer: &Answer) -> Shared {
        let shared = Shared::default();
        visitor.enter(answer, Instant::now(), &shared);
        shared
    }

    #[test]
    fn an_acked_number_that_comes_again_is_a_lost_increment() {
        let mut it = visitor(5, 6);
        let shared = entered(&mut it, &answer(200, "5", 2, None));
        assert_eq!(shared.increments_lost.into_inner(), 1);
        let shared = entered(&mut it, &answer(200, "6", 2, None));
        assert_eq!((shared.increments_lost.into_inner(), it.acked), (0, 6));
    }

    #[test]
    fn an_answer_without_copies_is_not_acked() {
        let mut it = visitor(5, 6);
        let shared = entered(&mut it, &answer(200, "6", 0, None));
        assert_eq!((it.acked, shared.unprotected.into_inner()), (5, 1));
        let shared = entered(&mut it, &answer(200, "6", 1, None));
        assert_eq!((it.acked, shared.increments_lost.into_inner()), (6, 0));
    }

    #[test]
    fn another_id_is_a_lost_session_and_another_host_a_move() {
        let mut it = visitor(5, 6);
        let shared = entered(&mut it, &answer(200, "6", 2, Some(&cookie(1, 8))));
        assert_eq!((locked(&shared.moves).len(), shared.sessions_lost.into_inner()), (1, 0));
        let shared = entered(&mut it, &answer(200, "1", 2, Some(&cookie(2, 8))));
        assert_eq!((shared.sessions_lost.into_inner(), shared.increments_lost.into_inner()), (1, 6));
    }

    #[test]
    fn the_last_reading_finds_loss_and_double_work() {
        let judged = |answer: &Answer| {
            let mut verdict = Verdict::default();
            visitor(5, 7).judge(answer, &mut verdict);
            verdict
        };
        assert!(judged(&answer(200, "5", 2, None)).is_clean());
        assert!(judged(&answer(200, "7", 2, Some(&cookie(1, 9)))).is_clean());
        assert_eq!(judged(&answer(200, "8", 2, None)).counted_twice, 1);
        assert_eq!(judged(&answer(200, "3", 2, None)).increments_lost, 2);
        assert_eq!(judged(&answer(404, "", 2, None)).sessions_lost, 1);
        assert_eq!(judged(&answer(200, "5", 2, Some(&cookie(2, 9)))).sessions_lost, 1);
        assert!(!Verdict::default().is_clean(), "nothing read is not clean");
    }
}
