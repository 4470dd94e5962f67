//! [`OpenSession`]: an open session and what can be done with it; and how it comes to be open.
//!
//! Opening goes in steps, so that the same code serves callers that block and callers that must not:
//! [`begin`] either ends at once, or leaves a place in the queue for the lock ([`Step::Wait`], then
//! [`granted`]), or needs a thread that may block ([`Step::Slow`], then [`blocking`]).
//!
//! Unsafe code: reading an archive where it lies in the cache, without a check (invariant 7).

use super::fetch;
use super::host::{Host, Plan};
use super::push::{Cargo, Stamp, protect};
use super::{OpenMode, destroy};
use crate::archive::{ArchivedSession, Changes, Value, ValueRef, trusted};
use crate::cache::{self, EntryInfo, EntryInit, EntryState, Hold, Inserted, Pin, Waited};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Cookie, Incarnation, SessionId, Version};
use crate::limits;
use crate::numbers::{NodeCounter, NodeTime};
use crate::rules::{Rule, holds};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What holds the session open.
pub(super) enum Access {
    /// The lock; of an unlocked handle also what is left of it between two times that it had it.
    Hold(Hold),
    /// A pinned version.
    Pin(Pin),
}

/// A session's state beside its attributes, as the handle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub id: SessionId,
    pub version: Version,
    pub created_ms: u64,
    pub absolute_ms: u64,
    pub expiry_ms: u64,
    pub copies: u32,
    pub adopted: bool,
}

impl Facts {
    /// What its cells shall say.
    pub fn stamp(&self) -> Stamp {
        Stamp { id: self.id, version: self.version, expiry_ms: self.expiry_ms }
    }
}

/// An open session of one incarnation.
pub(super) struct OpenSession {
    pub host: Arc<Host>,
    pub access: Access,
    /// What it was opened for.
    pub mode: OpenMode,
    pub facts: Facts,
    /// `Some` if the owner was changed and not committed.
    pub owner: Option<Option<Box<str>>>,
    pub changes: Changes,
    pub needs_cookie: bool,
}

/// What an open found.
pub(super) enum Found {
    Session(OpenSession),
    Missing,
    Elsewhere(Incarnation),
}

/// Where an open stands.
pub(super) enum Step {
    /// It has ended.
    Found(Found),
    /// The lock will be granted in its turn.
    Wait(Hold),
    /// It needs a thread that may block.
    Slow,
}

/// Begins to open the session that a cookie names. Never waits for a lock; talks to servers only if it
/// `may_block`, and that only to end a session whose time is over.
pub(super) fn begin(host: &Arc<Host>, cookie: &Cookie, mode: OpenMode, may_block: bool) -> Result<Step> {
    host.check()?;
    if mode != OpenMode::Exclusive
        && let Some(pin) = host.cache.open_read(&cookie.id)?
    {
        if !may_block && is_touch_due(host, pin.expiry_ms(), pin.absolute_ms()) && host.plan().is_slow() {
            return Ok(Step::Slow);
        }
        if let Some(session) = pinned(host, cookie, mode, pin, false)? {
            return Ok(Step::Found(Found::Session(session)));
        }
    }
    if host.config.session.regenerate_grace_ms != 0
        && let Some(session) = graced(host, cookie)?
    {
        return Ok(Step::Found(Found::Session(session)));
    }
    match host.cache.open_exclusive(&cookie.id)? {
        cache::Opened::Granted(hold) => match granted(host, cookie, mode, hold, may_block)? {
            Some(found) => Ok(Step::Found(found)),
            None => Ok(Step::Slow),
        },
        cache::Opened::Waiting(hold) => Ok(Step::Wait(hold)),
        cache::Opened::Busy => Err(busy(host)),
        cache::Opened::Missing => Ok(missing(host, cookie)),
    }
}

/// What a cookie means whose session is not in the cache: decided from the view alone.
fn missing(host: &Host, cookie: &Cookie) -> Step {
    if cookie.host == host.incarnation() {
        return Step::Found(Found::Missing);
    }
    match host.plan().view.node(cookie.host) {
        Some(node) => Step::Found(Found::Elsewhere(node.incarnation)),
        None => Step::Slow,
    }
}

/// Goes on when the lock was granted. `None`: the entry is not what it was; begin again, with a thread that
/// may block.
pub(super) fn granted(
    host: &Arc<Host>,
    cookie: &Cookie,
    mode: OpenMode,
    mut hold: Hold,
    may_block: bool,
) -> Result<Option<Found>> {
    let info = match behind(host, &mut hold, may_block)? {
        Behind::Live(info) => info,
        // It may have been given a new id while this one waited for it.
        Behind::Gone => return Ok(Some(graced(host, cookie)?.map_or(Found::Missing, Found::Session))),
        Behind::Unknown => return Ok(None),
    };
    if mode != OpenMode::Exclusive {
        drop(hold);
        let Some(pin) = host.cache.open_read(&cookie.id)? else { return Ok(None) };
        return Ok(pinned(host, cookie, mode, pin, true)?.map(Found::Session));
    }
    let mut facts = facts_of(&host.plan(), &info);
    if !may_block && is_touch_due(host, facts.expiry_ms, facts.absolute_ms) && host.plan().is_slow() {
        return Ok(None);
    }
    touch(host, &mut hold, &mut facts)?;
    Ok(Some(Found::Session(OpenSession::new(host, cookie, mode, facts, Access::Hold(hold)))))
}

/// What is behind a lock that was granted.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request")]
pub(super) enum Behind {
    /// A session whose time is not over.
    Live(EntryInfo),
    /// None any more, and its tombstones are acked.
    Gone,
    /// It is not what it was, or its end needs a thread that may block.
    Unknown,
}

/// Looks at what a lock that was granted stands for; ends what is at its end (R9, R14).
pub(super) fn behind(host: &Host, hold: &mut Hold, may_block: bool) -> Result<Behind> {
    hold.check()?;
    let info = hold.info()?;
    match info.state {
        EntryState::Live => {}
        EntryState::Gone => {
            if !destroy::is_finished(host, hold)? {
                if !may_block && !can_end_at_once(host, info.adopted) {
                    return Ok(Behind::Unknown);
                }
                destroy::finish(host, hold, host.deadline())?;
            }
            return Ok(Behind::Gone);
        }
        // Its fetch failed: it disappears with this hold.
        EntryState::Adopting => return Ok(Behind::Unknown),
    }
    if is_expired(host, &info) {
        if !may_block && !can_end_at_once(host, info.adopted) {
            return Ok(Behind::Unknown);
        }
        // R14: the tombstone is acked before the answer.
        destroy::expire(host, hold, &info)?;
        return Ok(Behind::Gone);
    }
    Ok(Behind::Live(info))
}

/// Opens, waiting as long as it takes, at most until `deadline`.
pub(super) fn blocking(
    host: &Arc<Host>,
    cookie: &Cookie,
    mode: OpenMode,
    deadline: Instant,
) -> Result<Found> {
    loop {
        match begin(host, cookie, mode, true)? {
            Step::Found(found) => return Ok(found),
            Step::Wait(hold) => match wait(host, &hold, deadline)? {
                Waited::Granted => {
                    if let Some(found) = granted(host, cookie, mode, hold, true)? {
                        return Ok(found);
                    }
                }
                Waited::Revoked => return Err(lock_lost()),
                Waited::Timeout => return Err(timed_out(host, "the session's lock")),
            },
            Step::Slow => match fetch::fetch(host, cookie, deadline)? {
                fetch::Fetched::Hosted => {}
                fetch::Fetched::Missing => return Ok(Found::Missing),
                fetch::Fetched::Elsewhere(node) => return Ok(Found::Elsewhere(node)),
            },
        }
        if Instant::now() >= deadline {
            return Err(timed_out(host, "the session"));
        }
    }
}

/// Waits for the lock, and takes in how long that took.
pub(super) fn wait(host: &Host, hold: &Hold, deadline: Instant) -> Result<Waited> {
    let since_ns = host.clock.monotonic_ns();
    let waited = hold.wait(deadline);
    host.observe_since(NodeTime::LockWait, since_ns);
    waited
}

/// A new session, locked and not committed.
pub(super) fn create(host: &Arc<Host>, owner: Option<&str>) -> Result<OpenSession> {
    create_as(host, SessionId::random()?, owner)
}

/// As [`create`], with an id of the caller's choice, which no session has had.
pub(super) fn create_as(host: &Arc<Host>, id: SessionId, owner: Option<&str>) -> Result<OpenSession> {
    host.check()?;
    check_owner(owner)?;
    let now_ms = host.clock.unix_ms();
    let absolute_ms = now_ms + host.config.session.absolute_s * 1000;
    let init = EntryInit { created_ms: now_ms, absolute_ms, adopted: false };
    let Inserted::Granted(hold) = host.cache.insert(&id, init)? else {
        return Err(Error::new(ErrorKind::Conflict, Origin::Node, "a new random id exists already"));
    };
    host.count(NodeCounter::Creates, 1);
    let facts = Facts {
        id,
        // R12: the ownership epoch of a new session is the view's number.
        version: Version { epoch: host.plan().view.epoch.number, counter: 0 },
        created_ms: now_ms,
        absolute_ms,
        expiry_ms: host.next_expiry_ms(absolute_ms),
        copies: 0,
        adopted: false,
    };
    let cookie = Cookie { id, host: Incarnation::NONE };
    let mut session = OpenSession::new(host, &cookie, OpenMode::Exclusive, facts, Access::Hold(hold));
    session.owner = owner.map(|owner| Some(owner.into()));
    Ok(session)
}

/// Opens without the lock. `None`: the session has to be opened by its lock first, because its time is over
/// or, unless `had_lock`, because it is just being adopted and its copies are not made yet.
fn pinned(
    host: &Arc<Host>,
    cookie: &Cookie,
    mode: OpenMode,
    pin: Pin,
    had_lock: bool,
) -> Result<Option<OpenSession>> {
    let now_ms = host.clock.unix_ms();
    if pin.expiry_ms() <= now_ms {
        // Only the holder of the lock may end it.
        return Ok(None);
    }
    if is_touch_due(host, pin.expiry_ms(), pin.absolute_ms()) {
        touch_if_free(host, &cookie.id)?;
    }
    let Some(info) = host.cache.find(&cookie.id)? else { return Ok(None) };
    let mut facts = facts_of(&host.plan(), &info);
    if !had_lock && facts.adopted && facts.copies == 0 && info.locked {
        return Ok(None);
    }
    if facts.version != pin.version() {
        facts.copies = 0;
        facts.version = pin.version();
    }
    facts.expiry_ms = facts.expiry_ms.max(pin.expiry_ms());
    Ok(Some(OpenSession::new(host, cookie, mode, facts, Access::Pin(pin))))
}

/// Opens an id that its session does not have any more, as it was when it was given another one: read-only,
/// whatever is asked, here only, and for a moment (R15: nothing that came after shows, and nothing leads to
/// the new id).
fn graced(host: &Arc<Host>, cookie: &Cookie) -> Result<Option<OpenSession>> {
    let Some(pin) = host.cache.open_graced(&cookie.id)? else { return Ok(None) };
    let until_ms = pin.expiry_ms();
    if until_ms <= host.clock.unix_ms() {
        drop(pin);
        host.cache.end_grace(&cookie.id)?;
        return Ok(None);
    }
    let mut facts = Facts {
        id: cookie.id,
        version: Version::default(),
        created_ms: 0,
        absolute_ms: until_ms,
        expiry_ms: until_ms,
        copies: 0,
        adopted: false,
    };
    let mut session = OpenSession::new(host, cookie, OpenMode::ReadOnly, facts, Access::Pin(pin));
    if let Some(archive) = session.archive() {
        (facts.version, facts.created_ms) = (archive.version(), archive.created_ms());
    }
    // The browser is about to get the new one from somebody else.
    (session.facts, session.needs_cookie) = (facts, false);
    Ok(Some(session))
}

/// A reader has no lock; who has it at the moment has touched the session already.
fn touch_if_free(host: &Host, id: &SessionId) -> Result<()> {
    if let cache::Opened::Granted(mut hold) = host.cache.try_exclusive(id)? {
        let info = hold.info()?;
        if info.state == EntryState::Live && !is_expired(host, &info) {
            touch(host, &mut hold, &mut facts_of(&host.plan(), &info))?;
        }
    }
    Ok(())
}

/// Whether a session's time is over. It goes by the expiry that its copies have (R13); without copies by the
/// cache's.
pub(super) fn is_expired(host: &Host, info: &EntryInfo) -> bool {
    let has_copies = info.places.iter().any(|place| place.acked.is_some());
    let expiry_ms = if has_copies && holds(Rule::R13Touch) { info.pushed_expiry_ms } else { info.expiry_ms };
    let now_ms = host.clock.unix_ms();
    now_ms >= expiry_ms.min(info.absolute_ms)
}

/// Moves the expiry if it is due, in the cache and in the copies (R13).
pub(super) fn touch(host: &Host, hold: &mut Hold, facts: &mut Facts) -> Result<bool> {
    let Some(before) = raise(host, hold, facts)? else { return Ok(false) };
    let reach =
        protect(host, hold, &host.plan(), &facts.stamp(), Cargo::Missing { same_since: Some(before) })?;
    kill_point!("touch.pushed");
    facts.copies = reach.copies;
    Ok(true)
}

/// Whether the expiry is due to be moved.
pub(super) fn is_touch_due(host: &Host, expiry_ms: u64, absolute_ms: u64) -> bool {
    host.next_expiry_ms(absolute_ms) > expiry_ms + host.touch_step_ms()
}

/// Moves the expiry in the cache if it is due, and gives the version before.
pub(super) fn raise(host: &Host, hold: &mut Hold, facts: &mut Facts) -> Result<Option<Version>> {
    if !is_touch_due(host, facts.expiry_ms, facts.absolute_ms) {
        return Ok(None);
    }
    let expiry_ms = host.next_expiry_ms(facts.absolute_ms);
    let before = facts.version;
    let raised = Version { counter: before.counter + 1, ..before };
    let version = if holds(Rule::R13Touch) { raised } else { before };
    hold.touch(version, expiry_ms)?;
    kill_point!("touch.raised");
    host.count(NodeCounter::Touches, 1);
    facts.version = version;
    facts.expiry_ms = expiry_ms;
    Ok(Some(before))
}

/// What a snapshot says, with the copies that count by this view (R6).
pub(super) fn facts_of(plan: &Plan, info: &EntryInfo) -> Facts {
    let counts = |place: &&cache::PlaceInfo| {
        let up = plan.view.server(place.server).is_some() || !holds(Rule::R6AckIncarnation);
        up && place.acked == Some(info.version) && place.block.is_some()
    };
    Facts {
        id: info.id,
        version: info.version,
        created_ms: info.created_ms,
        absolute_ms: info.absolute_ms,
        expiry_ms: info.expiry_ms,
        copies: info.places.iter().filter(counts).count() as u32,
        adopted: info.adopted,
    }
}

pub(super) fn check_owner(owner: Option<&str>) -> Result<()> {
    let bytes = owner.map_or(0, str::len);
    if bytes > limits::OWNER_BYTES_MAX {
        let context = format!("the owner has {bytes} bytes, the limit is {}", limits::OWNER_BYTES_MAX);
        return Err(Error::new(ErrorKind::TooLarge, Origin::Node, context));
    }
    Ok(())
}

pub(super) fn lock_lost() -> Error {
    Error::new(
        ErrorKind::LockLost,
        Origin::Node,
        "the session's lock was held too long and was given to another request",
    )
}

pub(super) fn busy(host: &Host) -> Error {
    let context = format!("{} requests wait for this session already", host.config.session.waiters_max);
    Error::new(ErrorKind::Busy, Origin::Node, context)
}

pub(super) fn timed_out(host: &Host, what: &str) -> Error {
    let context = format!("waited {} ms for {what}", host.config.session.wait_ms);
    Error::new(ErrorKind::Timeout, Origin::Node, context)
}

/// Whether tombstones need neither a control call nor a wait: nobody else can have a copy, and every link is
/// open and acks at once.
fn can_end_at_once(host: &Host, adopted: bool) -> bool {
    let plan = host.plan();
    !adopted && plan.is_linked() && !plan.is_slow()
}

/// Whether what comes after the grant of this lock needs a thread that may block: the end of a session, or a
/// touch over a link that does not ack at once.
pub(super) fn must_block(host: &Host, hold: &Hold) -> Result<bool> {
    let info = hold.info()?;
    if info.state != EntryState::Live {
        let open = info.state == EntryState::Gone && !destroy::is_finished(host, hold)?;
        return Ok(open && !can_end_at_once(host, info.adopted));
    }
    if is_expired(host, &info) {
        return Ok(!can_end_at_once(host, info.adopted));
    }
    Ok(is_touch_due(host, info.expiry_ms, info.absolute_ms) && host.plan().is_slow())
}

impl OpenSession {
    /// Whether destroying or regenerating it needs neither a control call nor a wait.
    pub fn can_end_at_once(&self) -> bool {
        can_end_at_once(&self.host, self.facts.adopted)
    }

    fn new(host: &Arc<Host>, cookie: &Cookie, mode: OpenMode, facts: Facts, access: Access) -> Self {
        Self {
            needs_cookie: cookie.host != host.incarnation(),
            host: host.clone(),
            access,
            mode,
            facts,
            owner: None,
            changes: Changes::default(),
        }
    }

    /// The bytes of the archive as it was committed last; empty before the first commit.
    pub fn archive_bytes(&self) -> &[u8] {
        match &self.access {
            Access::Hold(hold) => hold.bytes(),
            Access::Pin(pin) => pin.bytes(),
        }
    }

    /// The archive as it was committed last; `None` before the first commit.
    pub fn archive(&self) -> Option<&ArchivedSession> {
        archive_in(self.archive_bytes())
    }

    /// The lock; `Invalid` for a handle that has none.
    pub fn hold(&mut self) -> Result<&mut Hold> {
        match &mut self.access {
            Access::Hold(hold) => Ok(hold),
            Access::Pin(_) => Err(not_locked(self.mode)),
        }
    }

    pub fn is_read_only(&self) -> bool {
        self.mode == OpenMode::ReadOnly
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_read_only() { Err(not_locked(self.mode)) } else { Ok(()) }
    }

    pub fn owner(&self) -> Option<&str> {
        match &self.owner {
            Some(owner) => owner.as_deref(),
            None => self.archive().and_then(ArchivedSession::owner),
        }
    }

    pub fn set_owner(&mut self, owner: Option<&str>) -> Result<()> {
        self.check_writable()?;
        check_owner(owner)?;
        self.owner = Some(owner.map(Into::into));
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<ValueRef<'_>> {
        match self.changes.get(name) {
            Some(changed) => changed,
            None => self.archive()?.get(name),
        }
    }

    pub fn set(&mut self, name: &str, value: Value) -> Result<()> {
        self.check_writable()?;
        check_name(name)?;
        let bytes = match &value {
            Value::Bytes(bytes) => bytes.len(),
            Value::Text(text) => text.len(),
            _ => 0,
        };
        let limit = self.host.config.session.archive_bytes_max;
        if bytes > limit {
            let context = format!("attribute \"{name}\" has {bytes} bytes, a session may have {limit}");
            return Err(Error::new(ErrorKind::TooLarge, Origin::Node, context));
        }
        self.changes.set(name, value);
        Ok(())
    }

    pub fn remove(&mut self, name: &str) -> Result<bool> {
        self.check_writable()?;
        let existed = self.get(name).is_some();
        // Without the lock somebody else may set it before the commit: what was asked for is that it is gone.
        if existed || self.mode == OpenMode::Unlocked {
            self.changes.remove(name);
        }
        Ok(existed)
    }

    pub fn incr(&mut self, name: &str, by: i64) -> Result<i64> {
        self.check_writable()?;
        check_name(name)?;
        let mut changes = std::mem::take(&mut self.changes);
        let sum = changes.add(self.archive(), name, by);
        self.changes = changes;
        sum
    }
}

fn not_locked(mode: OpenMode) -> Error {
    let context = match mode {
        OpenMode::ReadOnly => "the session was opened read-only",
        _ => "the session's lock is not held",
    };
    Error::new(ErrorKind::Invalid, Origin::Node, context)
}

/// The archive that a pin keeps.
pub(super) fn pinned_archive(pin: &Pin) -> Option<&ArchivedSession> {
    archive_in(pin.bytes())
}

/// The archive in the bytes of a hold or a pin; `None` before the first commit. For these bytes only.
fn archive_in(bytes: &[u8]) -> Option<&ArchivedSession> {
    if bytes.is_empty() {
        return None;
    }
    // SAFETY: the bytes are a whole archive, built by this node's processes or validated when they were
    // fetched (invariant 7), aligned to the 256 bytes of a block; a block is immutable while it is an
    // entry's or pinned (invariant 2), which hold and pin keep up while they are borrowed.
    Some(unsafe { trusted(bytes) })
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, Origin::Node, "an attribute's name is empty"));
    }
    if name.len() > limits::ATTRIBUTE_NAME_BYTES_MAX {
        let limit = limits::ATTRIBUTE_NAME_BYTES_MAX;
        let context = format!("an attribute's name has {} bytes, the limit is {limit}", name.len());
        return Err(Error::new(ErrorKind::TooLarge, Origin::Node, context));
    }
    Ok(())
}

/// The idle and absolute lifetimes that archives carry.
pub(super) fn lifetimes_ms(host: &Host) -> (u64, u64) {
    let seconds = |s: u64| Duration::from_secs(s).as_millis() as u64;
    (seconds(host.config.session.idle_s), seconds(host.config.session.absolute_s))
}
