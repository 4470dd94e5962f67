//! Requests, and what a web node's worker does with one.

use crate::director;
use crate::history::{self, Value};
use crate::mutant::{Broken, What};
use crate::net::Host;
use crate::schedule::{self, FiberId, MS, Pid, Time};
use crate::world::{cover, world};
use selvage_fabric::archive::{self, ValueRef};
use selvage_fabric::error::Error;
use selvage_fabric::ident::{Cookie, Incarnation, SessionId};
use selvage_fabric::node::inside::{self, Found, Handle};
use selvage_fabric::node::{Ack, OpenMode};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a browser asks for.
#[derive(Clone, Debug)]
pub enum Request {
    Create { value: Value },
    Read { mode: OpenMode },
    Change { value: Value, mode: OpenMode },
    Destroy { mode: OpenMode },
    Regenerate { mode: OpenMode },
}

/// What a node answers.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "why a request failed is for the trace")]
pub enum Reply {
    /// Done; what was found in the session, and what its cookie and expiry are now.
    Done {
        found: Option<Value>,
        cookie: Option<Cookie>,
        expiry_ms: u64,
        copies: u32,
    },
    Missing,
    Elsewhere(Incarnation),
    Refused(String),
}

/// How a send to a node ended.
pub enum Sent {
    Answered(Reply),
    /// Nothing can have reached it.
    Unsent,
    Lost,
}

impl Request {
    /// What may be done twice is sent again.
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Destroy { .. })
    }
}

/// An answer on its way.
#[derive(Default)]
struct Slot {
    reply: Option<Reply>,
    waiting: Option<FiberId>,
}

/// Connecting to a node that does not answer takes so long at most.
const CONNECT_WAIT: Time = 1000 * MS;

/// Sends a request to the node of this incarnation's name, and waits for its answer, as one connection does:
/// it ends when the process does, or when the director cuts the node off.
pub fn send(node: Incarnation, request: Request, cookie: Option<Cookie>) -> Sent {
    let Some((index, host)) = world(|world| {
        let view = &world.director.view;
        let name = &view.node(node)?.name;
        let index = world.nodes.iter().position(|known| known.name == *name)?;
        Some((index, world.nodes[index].host))
    }) else {
        return Sent::Unsent;
    };
    let began = schedule::now();
    schedule::sleep(world(|world| world.delay(director::HOST, host)));
    while !world(|world| world.net.reaches(director::HOST, host) && world.net.reaches(host, director::HOST)) {
        if schedule::now() > began + CONNECT_WAIT {
            return Sent::Unsent;
        }
        schedule::sleep(20 * MS);
    }
    let process = world(|world| {
        let processes: Vec<Pid> = world.nodes[index].processes.keys().copied().collect();
        let at = world.random.below(processes.len() as u64) as usize;
        processes.get(at).copied()
    });
    let Some(pid) = process else { return Sent::Unsent };
    let slot = Rc::new(RefCell::new(Slot { reply: None, waiting: schedule::current() }));
    let (answer, deadline) = (Rc::clone(&slot), schedule::now() + 30_000 * MS);
    schedule::spawn(pid, move || {
        let reply = serve(index, pid, &request, cookie);
        let delay = world(|world| world.delay(host, director::HOST));
        schedule::after(delay, move || arrive(host, reply, answer));
    });
    loop {
        if let Some(reply) = slot.borrow_mut().reply.take() {
            return Sent::Answered(reply);
        }
        let is_cut = world(|world| {
            let zombies = world.mutant == Some(What::Other(Broken::ZombieAnswers));
            world.director.view.node(node).is_none() && !zombies
        });
        if !schedule::is_alive(pid) || is_cut || schedule::now() >= deadline {
            if is_cut {
                cover("state: request cut with its node");
            }
            return Sent::Lost;
        }
        schedule::park(20 * MS);
    }
}

fn arrive(host: Host, reply: Reply, answer: Rc<RefCell<Slot>>) {
    if !world(|world| world.net.reaches(host, director::HOST)) {
        schedule::after(20 * MS, move || arrive(host, reply, answer));
        return;
    }
    let mut slot = answer.borrow_mut();
    slot.reply = Some(reply);
    slot.waiting.into_iter().for_each(schedule::wake);
}

/// A worker's part, in a fiber of its process.
fn serve(index: usize, pid: Pid, request: &Request, cookie: Option<Cookie>) -> Reply {
    let host = world(|world| world.nodes[index].processes.get(&pid)?.host.clone());
    let Some(host) = host else {
        schedule::sleep(20 * MS);
        return Reply::Refused("not joined".into());
    };
    let was_over = host.cache.is_poisoned();
    let served = match (request, cookie) {
        (Request::Create { value }, _) => create(&host, *value),
        (_, None) => return Reply::Missing,
        (Request::Read { mode }, Some(cookie)) => read(&host, &cookie, *mode),
        (Request::Change { value, mode }, Some(cookie)) => change(&host, &cookie, *value, *mode),
        (Request::Destroy { mode }, Some(cookie)) => destroy(&host, &cookie, *mode),
        (Request::Regenerate { mode }, Some(cookie)) => regenerate(&host, &cookie, *mode),
    };
    if was_over {
        let done = matches!(served, Ok(Reply::Done { .. }));
        is_over(done, "a request of an incarnation that is over was served");
        // Its process waits for the next one before it serves again.
        schedule::sleep(20 * MS);
    }
    served.unwrap_or_else(|error| {
        world(|world| world.cover(&format!("error: {:?}", error.kind)));
        Reply::Refused(error.to_string())
    })
}

/// Nothing is begun and done in an incarnation that is over (guarantee 2).
fn is_over(done: bool, what: &str) {
    cover("state: request in an incarnation that is over");
    if done {
        world(|world| world.fail("one owner", what));
    }
}

fn create(host: &Arc<inside::Host>, value: Value) -> Result<Reply, Error> {
    let mut session = inside::create(host, None)?;
    write(&mut session, value)?;
    let copies = commit(host, &mut session, value)?;
    Ok(done(&session, None, copies))
}

/// How often who waits for a lock looks.
const LOOK: Duration = Duration::from_millis(1);

fn deadline(host: &inside::Host) -> Instant {
    Instant::now() + Duration::from_millis(host.config.session.wait_ms)
}

/// Opens a session, or says why there is nothing to open.
fn open(host: &Arc<inside::Host>, cookie: &Cookie, mode: OpenMode) -> Result<Result<Handle, Reply>, Error> {
    Ok(match inside::open(host, cookie, mode, deadline(host), LOOK)? {
        Found::Session(session) => Ok(session),
        Found::Missing => Err(Reply::Missing),
        Found::Elsewhere(node) => Err(Reply::Elsewhere(node)),
    })
}

fn read(host: &Arc<inside::Host>, cookie: &Cookie, mode: OpenMode) -> Result<Reply, Error> {
    let session = match open(host, cookie, mode)? {
        Ok(session) => session,
        Err(reply) => return Ok(reply),
    };
    let found = value_of(&session);
    world(|world| {
        world.history.touched(session.id(), session.copies(), session.expiry_ms());
        world.look_at_history();
    });
    think();
    let reply = done(&session, found, 0);
    if world(|world| world.mutant == Some(What::Other(Broken::LockKept)) && world.random.chance(20)) {
        std::mem::forget(session);
    }
    Ok(reply)
}

fn change(host: &Arc<inside::Host>, cookie: &Cookie, value: Value, mode: OpenMode) -> Result<Reply, Error> {
    let mut session = match open(host, cookie, mode)? {
        Ok(session) => session,
        Err(reply) => return Ok(reply),
    };
    let found = value_of(&session);
    think();
    write(&mut session, value)?;
    session.lock(deadline(host), LOOK)?;
    if committed_value(&session) != found {
        cover("state: merged into a newer version");
    }
    let copies = commit(host, &mut session, value)?;
    Ok(done(&session, found, copies))
}

fn destroy(host: &Arc<inside::Host>, cookie: &Cookie, mode: OpenMode) -> Result<Reply, Error> {
    let mut session = match open(host, cookie, mode)? {
        Ok(session) => session,
        Err(reply) => return Ok(reply),
    };
    let found = value_of(&session);
    session.lock(deadline(host), LOOK)?;
    let expiry_ms = session.expiry_ms();
    world(|world| world.history.ending(session.id()));
    session.destroy()?;
    Ok(Reply::Done { found, cookie: None, expiry_ms, copies: 0 })
}

fn regenerate(host: &Arc<inside::Host>, cookie: &Cookie, mode: OpenMode) -> Result<Reply, Error> {
    let mut session = match open(host, cookie, mode)? {
        Ok(session) => session,
        Err(reply) => return Ok(reply),
    };
    let found = value_of(&session);
    session.lock(deadline(host), LOOK)?;
    let old = session.id();
    let carried = committed_value(&session);
    world(|world| {
        world.history.ending(old);
        if let Some(value) = carried.filter(|_| world.swarm.grace_ms > 0) {
            world.history.graced(old, value);
        }
    });
    session.regenerate()?;
    if let Some(value) = carried {
        world(|world| {
            let sum = world.history.sum(old, Some(value));
            world.history.began(session.id(), sum, value, host.incarnation());
            world.history.committed(session.id(), value, session.version());
        });
    }
    Ok(done(&session, found, 0))
}

/// What a web page does between reading and writing.
fn think() {
    let time = world(|world| world.random.below(world.swarm.think + 1));
    schedule::sleep(time);
}

/// Commits a session whose lock is held.
fn commit(host: &Arc<inside::Host>, session: &mut Handle, value: Value) -> Result<u32, Error> {
    let (id, before) = (session.id(), committed_value(session));
    world(|world| {
        let sum = world.history.sum(id, before) + 1;
        world.history.began(id, sum, value, host.incarnation());
    });
    let was_over = host.cache.is_poisoned();
    let committed = session.commit(Ack::All);
    if was_over {
        is_over(committed.is_ok(), "a session was changed in an incarnation that is over");
    }
    let mut committed = committed?;
    world(|world| {
        if world.mutant == Some(What::Other(Broken::AckBeforeQuorum)) && committed.copies > 0 {
            committed.copies = world.swarm.copies;
        }
        world.history.committed(id, value, committed.version);
        if let Some(short) = committed.short {
            world.cover(&format!("state: short commit, {short:?}"));
        }
        world.history.reported(id, value, committed.copies, host.incarnation());
    });
    Ok(committed.copies)
}

/// Writes a value, and counts it.
fn write(session: &mut Handle, value: Value) -> Result<(), Error> {
    session.set("n", archive::Value::I64(value.0 as i64))?;
    session.incr("sum", 1)?;
    session.set("blob", archive::Value::Bytes(blob(value)))
}

fn done(session: &Handle, found: Option<Value>, copies: u32) -> Reply {
    Reply::Done { found, cookie: Some(session.cookie()), expiry_ms: session.expiry_ms(), copies }
}

fn blob(value: Value) -> Vec<u8> {
    history::blob(value, world(|world| world.swarm.blob_bytes))
}

/// The value of the version that a handle goes by.
fn committed_value(session: &Handle) -> Option<Value> {
    match session.committed("n") {
        Some(ValueRef::I64(number)) => Some(Value(number as u64)),
        _ => None,
    }
}

/// The session's value; whoever reads a mix, or a sum in which a change is missing, finds it out here.
fn value_of(session: &Handle) -> Option<Value> {
    let Some(ValueRef::I64(number)) = session.get("n") else {
        world(|world| world.fail("whole versions", &format!("session {} has no value", session.id())));
        return None;
    };
    let value = Value(number as u64);
    match session.get("blob") {
        Some(ValueRef::Bytes(bytes)) if bytes == blob(value) => {
            let sum = match session.get("sum") {
                Some(ValueRef::I64(sum)) => sum,
                _ => 0,
            };
            world(|world| world.history.counted(session.id(), value, sum));
            Some(value)
        }
        _ => {
            let what = format!("session {} mixes versions: its value is {}", session.id(), value.0);
            world(|world| world.fail("whole versions", &what));
            None
        }
    }
}

/// A session's id, for people.
pub fn short(id: SessionId) -> String {
    id.to_string().chars().take(6).collect()
}
