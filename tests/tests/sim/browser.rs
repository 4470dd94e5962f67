//! Browsers: each a fiber that asks for pages and knows what it was promised.

use crate::director::{Answer, proxy};
use crate::history::Value;
use crate::request::{Reply, Request};
use crate::schedule::{self, Pid, Random};
use crate::world::{cover, world};
use selvage_fabric::ident::Cookie;
use selvage_fabric::node::OpenMode;
use std::cell::{Cell, RefCell};

thread_local! {
    /// The sessions that browsers know; they share them, so that requests to one meet.
    static COOKIES: RefCell<Vec<Cookie>> = const { RefCell::new(Vec::new()) };
    static VALUE_LAST: Cell<u64> = const { Cell::new(0) };
    static STOP: Cell<bool> = const { Cell::new(false) };
}

/// Starts all browsers.
pub fn start() {
    COOKIES.take();
    VALUE_LAST.set(0);
    STOP.set(false);
    let (count, pid) = world(|world| (world.swarm.browsers, world.new_process(crate::net::Host(0))));
    for _ in 0..count {
        let random = Random::new(world(|world| world.random.next()));
        schedule::spawn(pid, move || browse(pid, random));
    }
}

/// Lets them end.
pub fn stop() {
    STOP.set(true);
}

/// The sessions that browsers know now.
pub fn cookies() -> Vec<Cookie> {
    COOKIES.with_borrow(Clone::clone)
}

fn next_value() -> Value {
    VALUE_LAST.set(VALUE_LAST.get() + 1);
    Value(VALUE_LAST.get())
}

fn browse(_pid: Pid, mut random: Random) {
    while !STOP.get() {
        let pause = world(|world| world.swarm.pause_between);
        schedule::sleep(random.below(2 * pause + 1));
        let cookies = COOKIES.with_borrow(Vec::len);
        let (most, changes) = world(|world| {
            let most = (world.swarm.sessions_max as usize - 2).min(world.swarm.sessions);
            (most, world.swarm.changes)
        });
        let unlocked = random.below(100) < world(|world| world.swarm.unlocked);
        let mode = if unlocked { OpenMode::Unlocked } else { OpenMode::Exclusive };
        let at = random.below(cookies.max(1) as u64) as usize;
        let cookie = COOKIES.with_borrow(|cookies| cookies.get(at).copied());
        let create = cookie.is_none() || (cookies < most && random.chance(150));
        let change = random.below(100) < changes;
        let request = match random.below(50) {
            _ if create => Request::Create { value: next_value() },
            _ if change => Request::Change { value: next_value(), mode },
            0..20 => Request::Read { mode: OpenMode::ReadOnly },
            20..38 => Request::Read { mode },
            38..44 => Request::Destroy { mode },
            _ => Request::Regenerate { mode },
        };
        ask(&request, cookie.filter(|_| !create));
    }
}

/// Asks, and checks the answer against the history. Returns whether it was answered.
pub fn ask(request: &Request, cookie: Option<Cookie>) -> bool {
    let began = schedule::now();
    enter(cookie, 1);
    let answer = proxy(request, cookie);
    enter(cookie, -1);
    let name = match request {
        Request::Create { .. } => "create",
        Request::Read { mode: OpenMode::ReadOnly } => "read",
        Request::Read { .. } => "open",
        Request::Change { mode: OpenMode::Unlocked, .. } => "change without the lock",
        Request::Change { .. } => "change",
        Request::Destroy { .. } => "destroy",
        Request::Regenerate { .. } => "regenerate",
    };
    let who = cookie.map_or_else(|| "-".into(), |cookie| crate::request::short(cookie.id));
    world(|world| world.trace(format!("{name} {who} {request:?}: {answer:?}")));
    match answer {
        Answer::Reply(Reply::Done { found, cookie: now, expiry_ms, .. }) => {
            cover(&format!("answered: {name}"));
            world(|world| {
                world.answered += 1;
                if let (Some(cookie), Some(value)) = (cookie, found) {
                    world.history.observed(cookie.id, value, began);
                }
                if let Some(now) = now {
                    world.history.expires(now.id, expiry_ms);
                    if world.director.view.node(now.host).is_none() {
                        let what = format!("{:x} was ended, and its answer reached a browser", now.host.0);
                        world.fail("one owner", &what);
                    }
                }
                if let (Some(cookie), Request::Destroy { .. } | Request::Regenerate { .. }) =
                    (cookie, request)
                {
                    world.history.gone(cookie.id);
                }
                world.look_at_history();
            });
            remember(cookie, now);
            true
        }
        Answer::Reply(Reply::Missing) => {
            cover("answered: missing");
            if let Some(cookie) = cookie {
                world(|world| {
                    world.answered += 1;
                    let latest_ms = world.latest_ms();
                    world.history.missed(cookie.id, began, latest_ms);
                    world.look_at_history();
                });
            }
            remember(cookie, None);
            true
        }
        Answer::Reply(Reply::Elsewhere(_) | Reply::Refused(_)) | Answer::Unsent(_) | Answer::Lost(_) => {
            world(|world| world.refused += 1);
            false
        }
    }
}

/// Counts the requests to a session.
fn enter(cookie: Option<Cookie>, by: i32) {
    let Some(cookie) = cookie else { return };
    world(|world| {
        let count = world.asked.entry(cookie.id).or_default();
        *count = count.saturating_add_signed(by);
        match *count {
            0 => drop(world.asked.remove(&cookie.id)),
            1 => {}
            _ => world.cover("state: requests to one session at the same time"),
        }
    });
}

/// The browser's cookie after an answer.
fn remember(before: Option<Cookie>, now: Option<Cookie>) {
    COOKIES.with_borrow_mut(|cookies| {
        if let Some(before) = before {
            cookies.retain(|cookie| cookie.id != before.id);
        }
        cookies.extend(now);
    });
}
