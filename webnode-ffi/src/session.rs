//! The session handle: creating, opening, describing and closing.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use selvage_fabric::ident::Cookie;
use selvage_fabric::node::{Node, OpenMode, Opened, Session};

use crate::completion::{self, Operation, selvage_completion};
use crate::cookie::{selvage_cookie, selvage_tag};
use crate::guard::{Failure, enter};
use crate::json;
use crate::node::selvage_node;
use crate::process;
use crate::status::selvage_status;
use crate::text;

/// Open for reading and changing: the session's lock is held until the handle is closed.
pub const SELVAGE_OPEN_EXCLUSIVE: u32 = 1;
/// Open for reading the version that is current now; never waits for a lock.
pub const SELVAGE_OPEN_READ_ONLY: u32 = 2;
/// Open for reading the version that is current now and for changing; never waits for a lock. Changes are
/// collected in the handle; a commit takes the lock for itself and applies them (set, removed, added to, the
/// owner) to the version that is current then, which the handle sees from there on. So requests that change
/// different attributes keep all changes, and all increments count; of two that set one attribute the later
/// commit counts. The same is true of destroy and regenerate.
pub const SELVAGE_OPEN_UNLOCKED: u32 = 3;

/// An open session.
pub struct selvage_session {
    /// `None` while an operation is under way, and after destroy.
    pub(crate) session: Option<Session>,
    pub(crate) node: Node,
    pub(crate) generation: u64,
    /// The ticket of the operation that is under way, or 0. Whoever reads 0 (Acquire) sees the session that
    /// the operation brought back: `completion` writes it first and 0 last (Release).
    pub(crate) underway: AtomicU64,
    /// What was lent last: JSON, a cookie, a rendered value.
    lent: Vec<u8>,
}

/// What selvage_session_describe answers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_session_info {
    /// The id as text, ended by a NUL.
    pub id: [c_char; 32],
    /// What the session's cookie on this host says.
    pub cookie: selvage_cookie,
    /// Ownership epoch: the version's higher part.
    pub version_epoch: u32,
    /// Servers that hold the version that this handle sees.
    pub copies: u32,
    /// Commits and touches of one owner: the version's lower part.
    pub version_counter: u64,
    /// When it was created, Unix ms.
    pub created_ms: u64,
    /// When it expires unless it is used, Unix ms.
    pub expiry_ms: u64,
    /// Number of attributes, changes included.
    pub attribute_count: u32,
    /// Opened read-only.
    pub read_only: bool,
    /// The browser must be given the cookie: the session is new, was adopted or has a new id.
    pub needs_cookie: bool,
    /// Zero.
    pub reserved: [u8; 2],
}

impl selvage_session {
    pub(crate) fn new(node: Node, session: Session) -> Box<Self> {
        Box::new(Self {
            session: Some(session),
            node,
            generation: process::generation(),
            underway: AtomicU64::new(0),
            lent: Vec::new(),
        })
    }

    /// Refuses a handle that is another process's, or busy.
    fn at_rest(&self) -> Result<(), Failure> {
        process::same(self.generation)?;
        if self.underway.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        Err(Failure::new(selvage_status::Underway, "an operation on this session is not complete yet"))
    }

    /// The session, unless the handle is another process's, busy or empty.
    pub(crate) fn open(&self) -> Result<&Session, Failure> {
        self.at_rest()?;
        self.session.as_ref().ok_or_else(empty)
    }

    /// The session, to be handed to an operation; the handle is empty afterwards.
    pub(crate) fn take(&mut self) -> Result<Session, Failure> {
        self.writable()?;
        self.session.take().ok_or_else(empty)
    }

    /// The session for changes.
    pub(crate) fn writable(&mut self) -> Result<&mut Session, Failure> {
        if self.open()?.is_read_only() {
            return Err(Failure::new(
                selvage_status::ReadOnly,
                "this session was opened read-only, or by an id that it had before: open it with \
                 SELVAGE_OPEN_EXCLUSIVE or SELVAGE_OPEN_UNLOCKED, by its own id, to change it",
            ));
        }
        self.session.as_mut().ok_or_else(empty)
    }

    /// Keeps bytes for C until the next loan.
    pub(crate) fn lend(&mut self, bytes: Vec<u8>) -> (*const u8, usize) {
        self.lent = bytes;
        (self.lent.as_ptr(), self.lent.len())
    }
}

fn empty() -> Failure {
    Failure::new(selvage_status::Gone, "this handle gave its session up to destroy it")
}

fn mode_of(mode: u32) -> Result<OpenMode, Failure> {
    match mode {
        SELVAGE_OPEN_EXCLUSIVE => Ok(OpenMode::Exclusive),
        SELVAGE_OPEN_READ_ONLY => Ok(OpenMode::ReadOnly),
        SELVAGE_OPEN_UNLOCKED => Ok(OpenMode::Unlocked),
        other => Err(Failure::new(selvage_status::Invalid, format!("{other} is no mode of opening"))),
    }
}

/// Owner given by C: NULL is none.
///
/// # Safety
/// As [`text::text`].
unsafe fn owner_of<'a>(owner: *const c_char, owner_len: usize) -> Result<Option<&'a str>, Failure> {
    if owner.is_null() {
        return Ok(None);
    }
    // SAFETY: this function's contract is the same.
    unsafe { text::text("owner", owner, owner_len) }.map(Some)
}

/// Makes a new session with a new id, hosted here and locked. Nobody else sees it before its first commit;
/// closing it uncommitted leaves nothing. owner is the user that it belongs to, or NULL.
///
/// Thread rule: any. Blocking: only while the node joins the cluster, bounded. Ownership: *session is the
/// caller's until selvage_session_close. Errors: TOO_LARGE for the owner; FULL; TIMEOUT; FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `owner` is NULL or valid for `owner_len` bytes; `session` is
/// NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_create(
    node: *const selvage_node,
    owner: *const c_char,
    owner_len: usize,
    session: *mut *mut selvage_session,
) -> selvage_status {
    enter!(required [node, session], nullable [owner], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: NULL or valid for its length by this function's contract.
        let owner = unsafe { owner_of(owner, owner_len) }?;
        let handle = selvage_session::new(node.clone(), node.create(owner)?);
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { session.write(Box::into_raw(handle)) };
        Ok(selvage_status::Ok)
    })
}

/// As selvage_session_create, without waiting: at once with OK and now->session, or PENDING and later a
/// completion.
///
/// Thread rule: any. Blocking: never. Ownership: the session in *now or in the completion is the caller's
/// until selvage_session_close. Errors: as selvage_session_create; INTERNAL aside, they leave *now
/// untouched.
///
/// # Safety
/// As selvage_session_create; `now` is NULL or valid for writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_create_start(
    node: *const selvage_node,
    owner: *const c_char,
    owner_len: usize,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [node, now], nullable [owner, user_data], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: NULL or valid for its length by this function's contract.
        let owner = unsafe { owner_of(owner, owner_len) }?;
        let operation = Operation::opening(user_data, completion::SELVAGE_OPERATION_CREATE);
        let ended = completion::start(node, operation, |ticket| node.create_start(owner, ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}

/// Opens the session that a cookie names: from the node's cache, or from the session servers if its host is
/// dead. mode is SELVAGE_OPEN_EXCLUSIVE, SELVAGE_OPEN_READ_ONLY or SELVAGE_OPEN_UNLOCKED. Answers OK with
/// *session; MISSING if there is no such session (any more); ELSEWHERE with the other node's tag in
/// *elsewhere, which may be NULL.
///
/// If regenerate_grace_ms is configured, the id that a session had before selvage_session_regenerate opens
/// for that time, at the same node, what the session was before; read-only whatever mode is asked for (see
/// read_only of selvage_session_describe).
///
/// Thread rule: any. Blocking: for the lock (exclusive), a fetch or the join, each bounded. Ownership:
/// *session is the caller's until selvage_session_close. Errors: BUSY, TIMEOUT, NOT_YET, FULL, CORRUPT,
/// INVALID for the mode, FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `cookie` is NULL or valid; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_open(
    node: *const selvage_node,
    cookie: *const selvage_cookie,
    mode: u32,
    session: *mut *mut selvage_session,
    elsewhere: *mut selvage_tag,
) -> selvage_status {
    enter!(required [node, cookie, session], nullable [elsewhere], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: not NULL (checked above) and valid by this function's contract.
        let cookie: Cookie = unsafe { cookie.read() }.into();
        match node.open(&cookie, mode_of(mode)?)? {
            Opened::Session(opened) => {
                let handle = selvage_session::new(node.clone(), opened);
                // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
                unsafe { session.write(Box::into_raw(handle)) };
                Ok(selvage_status::Ok)
            }
            Opened::Missing => Ok(selvage_status::Missing),
            Opened::Elsewhere(incarnation) => {
                if !elsewhere.is_null() {
                    // SAFETY: not NULL and valid for writing by this function's contract.
                    unsafe { elsewhere.write(selvage_tag::of(incarnation)) };
                }
                Ok(selvage_status::Elsewhere)
            }
        }
    })
}

/// As selvage_session_open, without waiting. If it ends at once, the status is the same as
/// selvage_session_open's and *now is filled for OK (session) and ELSEWHERE (elsewhere); PENDING means that
/// a completion will come.
///
/// Thread rule: any. Blocking: never. Ownership: the session in *now or in the completion is the caller's
/// until selvage_session_close. Errors: as selvage_session_open; they leave *now untouched.
///
/// # Safety
/// `node` is NULL or an open handle; `cookie` is NULL or valid; `now` is NULL or valid for
/// writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_open_start(
    node: *const selvage_node,
    cookie: *const selvage_cookie,
    mode: u32,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [node, cookie, now], nullable [user_data], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: not NULL (checked above) and valid by this function's contract.
        let cookie: Cookie = unsafe { cookie.read() }.into();
        let mode = mode_of(mode)?;
        let operation = Operation::opening(user_data, completion::SELVAGE_OPERATION_OPEN);
        let ended = completion::start(node, operation, |ticket| node.open_start(&cookie, mode, ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}

/// Closes a session: its lock is released and uncommitted changes are forgotten. NULL is fine. While an
/// operation is under way the handle is gone at once, the operation goes on, and its completion comes with
/// session NULL. In a forked child it does nothing.
///
/// Thread rule: no other call on this handle may be under way or follow. Blocking: never. Ownership: takes
/// the handle. Errors: none.
///
/// # Safety
/// `session` is NULL or a handle that was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_close(session: *mut selvage_session) -> selvage_status {
    enter!(required [], nullable [session], {
        if session.is_null() {
            return Ok(selvage_status::Ok);
        }
        // SAFETY: an open handle by this function's contract. A completion may write to other fields of it
        // meanwhile, so only these two are touched before no completion can find it any more.
        let made_in = unsafe { (*session).generation };
        // SAFETY: as above.
        let underway = unsafe { &(*session).underway };
        if made_in != process::generation() {
            // What it shares belongs to the parent: leave it all alone.
            return Ok(selvage_status::Ok);
        }
        let ticket = underway.load(Ordering::Acquire);
        if ticket != 0 {
            completion::abandon(ticket);
        }
        // SAFETY: made by Box::into_raw, not closed before by this function's contract, and no completion
        // knows it.
        drop(unsafe { Box::from_raw(session) });
        Ok(selvage_status::Ok)
    })
}

/// Says what is known about the session beside its attributes.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: FORKED,
/// UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `info` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_describe(
    session: *const selvage_session,
    info: *mut selvage_session_info,
) -> selvage_status {
    enter!(required [session, info], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let session = unsafe { &*session }.open()?;
        let version = session.version();
        let answer = selvage_session_info {
            id: text::field(&session.id().to_string()),
            cookie: session.cookie().into(),
            version_epoch: version.epoch,
            copies: session.copies(),
            version_counter: version.counter,
            created_ms: session.created_ms(),
            expiry_ms: session.expiry_ms(),
            attribute_count: u32::try_from(session.iter().count()).unwrap_or(u32::MAX),
            read_only: session.is_read_only(),
            needs_cookie: session.needs_cookie(),
            reserved: [0; 2],
        };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { info.write(answer) };
        Ok(selvage_status::Ok)
    })
}

/// Lends the whole session as one JSON object: "id" (text), "node" (text), "copies" (number), "version"
/// (text, "epoch.counter"), "attributes" (object, sorted by name). Texts, numbers and truth values stand as
/// themselves; bytes as {"base64":"..."} with RFC 4648's alphabet and padding; a number that JSON cannot
/// say (NaN, infinity) as null.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
/// valid until the next call on it that is not describe, read or read_at; a NUL does not end it. Errors:
/// FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_json(
    session: *mut selvage_session,
    json: *mut *const c_char,
    json_len: *mut usize,
) -> selvage_status {
    enter!(required [session, json, json_len], nullable [], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let session = unsafe { &mut *session };
        let made = json::of(session.open()?, session.node.name())?;
        let lent = session.lend(made);
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { json.write(lent.0.cast()) };
        // SAFETY: as above.
        unsafe { json_len.write(lent.1) };
        Ok(selvage_status::Ok)
    })
}

/// Lends the user that the session belongs to. Answers OK, or MISSING if it belongs to nobody.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
/// valid until the next call on it that is not describe, read or read_at; a NUL does not end it. Errors:
/// FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_owner(
    session: *const selvage_session,
    owner: *mut *const c_char,
    owner_len: *mut usize,
) -> selvage_status {
    enter!(required [session, owner, owner_len], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let session = unsafe { &*session }.open()?;
        let Some(name) = session.owner() else { return Ok(selvage_status::Missing) };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { owner.write(name.as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { owner_len.write(name.len()) };
        Ok(selvage_status::Ok)
    })
}

/// Says which user the session belongs to; NULL: nobody. Counts with the next commit.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: copies. Errors: TOO_LARGE,
/// INVALID if it is not UTF-8, READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle; `owner` is NULL or valid for `owner_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_set_owner(
    session: *mut selvage_session,
    owner: *const c_char,
    owner_len: usize,
) -> selvage_status {
    enter!(required[session], nullable[owner], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let session = unsafe { &mut *session }.writable()?;
        // SAFETY: NULL or valid for its length by this function's contract.
        session.set_owner(unsafe { owner_of(owner, owner_len) }?)?;
        Ok(selvage_status::Ok)
    })
}
