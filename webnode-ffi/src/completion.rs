//! Operations under way and their completions.
//!
//! The node library knows an operation by a ticket; the register here knows what C wants to hear about it,
//! and the handle that lends its session to it. Invariants: a ticket is in the register from before its
//! start until its completion is handed out, it ends at once, or it is cancelled; a handle that the
//! register names is alive, because closing it takes its name out first, under the register's lock.
//! Callers: session, finish, owner.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use selvage_fabric::error::Result as FabricResult;
use selvage_fabric::node::{Committed, Node, OpId, Opened, Outcome, Session, Short, Started};

use crate::cookie::selvage_tag;
use crate::guard::{Failure, enter, remember};
use crate::node::selvage_node;
use crate::session::selvage_session;
use crate::signals::Blocked;
use crate::status::selvage_status;

/// A completion of selvage_session_open_start.
pub const SELVAGE_OPERATION_OPEN: u32 = 1;
/// A completion of selvage_session_create_start.
pub const SELVAGE_OPERATION_CREATE: u32 = 2;
/// A completion of selvage_session_commit_start.
pub const SELVAGE_OPERATION_COMMIT: u32 = 3;
/// A completion of selvage_session_destroy_start.
pub const SELVAGE_OPERATION_DESTROY: u32 = 4;
/// A completion of selvage_session_regenerate_start.
pub const SELVAGE_OPERATION_REGENERATE: u32 = 5;
/// A completion of selvage_node_destroy_owner_start.
pub const SELVAGE_OPERATION_DESTROY_OWNER: u32 = 6;

/// The commit reached every copy that is configured.
pub const SELVAGE_SHORT_NOT: u32 = 0;
/// The node has no valid mandate: no director was reached lately.
pub const SELVAGE_SHORT_NO_MANDATE: u32 = 1;
/// Fewer session servers are up or reachable.
pub const SELVAGE_SHORT_SERVERS: u32 = 2;
/// A lease has no room for this session.
pub const SELVAGE_SHORT_LEASE_FULL: u32 = 3;
/// The caller did not want to wait for them.
pub const SELVAGE_SHORT_NOT_AWAITED: u32 = 4;

/// What a commit reached.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_commit {
    /// Servers that have acked this version.
    pub copies: u32,
    /// Why these are fewer than configured: one of SELVAGE_SHORT_*. Copies follow by themselves.
    pub shortfall: u32,
    /// Ownership epoch: the version's higher part.
    pub version_epoch: u32,
    /// Zero.
    pub reserved: u32,
    /// Commits and touches of one owner: the version's lower part.
    pub version_counter: u64,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_completion {
    /// What the caller gave at the start.
    pub user_data: *mut c_void,
    /// The new handle of an open or create that ended OK, NULL otherwise. The caller's until
    /// selvage_session_close.
    pub session: *mut selvage_session,
    /// What the form without _start would have answered. The text of a failure is selvage_last_error's.
    pub status: selvage_status,
    /// Which operation: one of SELVAGE_OPERATION_*.
    pub operation: u32,
    /// What a commit that ended OK reached, zero otherwise.
    pub commit: selvage_commit,
    /// The host of a session for which an open ended ELSEWHERE, empty otherwise.
    pub elsewhere: selvage_tag,
    /// Sessions that a destroy_owner that ended OK has destroyed, zero otherwise.
    pub count: u64,
}

/// Names an operation to the node library. Never 0.
pub type Ticket = u64;

/// What the register knows of an operation.
pub struct Operation {
    user_data: *mut c_void,
    kind: u32,
    /// The handle that lends its session, unless there is none or it was closed.
    lender: *mut selvage_session,
    /// Known once the start has answered that it is pending.
    op: Option<OpId>,
}

// SAFETY: `user_data` is never followed, and `lender` only under the register's lock, while the handle is
// alive.
unsafe impl Send for Operation {}

/// An operation that has ended, for C.
pub struct Ended {
    operation: Operation,
    result: Result<Settled, Failure>,
}

struct Settled {
    status: selvage_status,
    session: *mut selvage_session,
    commit: selvage_commit,
    elsewhere: selvage_tag,
    count: u64,
}

type Register = Mutex<BTreeMap<Ticket, Operation>>;

static REGISTER: AtomicPtr<Register> = AtomicPtr::new(ptr::null_mut());
/// The parent's register, which a child may not use: another thread may have held its lock at the fork.
static INHERITED: AtomicPtr<Register> = AtomicPtr::new(ptr::null_mut());
static TICKETS: AtomicU64 = AtomicU64::new(1);

const NOTHING: selvage_commit = selvage_commit {
    copies: 0,
    shortfall: SELVAGE_SHORT_NOT,
    version_epoch: 0,
    reserved: 0,
    version_counter: 0,
};

/// In a forked child, before any of its code: begins a register of its own.
pub fn forget_parent() {
    let parents = REGISTER.swap(ptr::null_mut(), Ordering::Relaxed);
    INHERITED.store(parents, Ordering::Relaxed);
}

fn register() -> MutexGuard<'static, BTreeMap<Ticket, Operation>> {
    let mut known = REGISTER.load(Ordering::Acquire);
    if known.is_null() {
        let made = Box::into_raw(Box::new(Mutex::new(BTreeMap::new())));
        match REGISTER.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => known = made,
            Err(others) => {
                // SAFETY: made by Box::into_raw just above and shared with nobody, for another thread was
                // faster.
                drop(unsafe { Box::from_raw(made) });
                known = others;
            }
        }
    }
    // SAFETY: not null; a register that was published (Release above, Acquire here) is never freed.
    let register = unsafe { &*known };
    register.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Operation {
    /// An operation that has no session yet, or none at all.
    pub fn opening(user_data: *mut c_void, kind: u32) -> Self {
        Self { user_data, kind, lender: ptr::null_mut(), op: None }
    }

    /// An operation on a session that the handle lends.
    pub fn lending(user_data: *mut c_void, kind: u32, lender: *mut selvage_session) -> Self {
        Self { user_data, kind, lender, op: None }
    }
}

/// Starts an operation under a new ticket. `None`: it is pending.
///
/// # Errors
/// What refused the start.
pub fn start(
    node: &Node,
    operation: Operation,
    begin: impl FnOnce(Ticket) -> FabricResult<Started>,
) -> Result<Option<Ended>, Failure> {
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    let lender = operation.lender;
    if !lender.is_null() {
        // SAFETY: the caller's handle, alive during this call; only its atomic word is touched.
        let underway = unsafe { &(*lender).underway };
        underway.store(ticket, Ordering::Release);
    }
    register().insert(ticket, operation);
    let begun = {
        let _blocked = Blocked::new();
        begin(ticket)
    };
    let outcome = match begun {
        Ok(Started::Pending(op)) => {
            if let Some(operation) = register().get_mut(&ticket) {
                operation.op = Some(op);
            }
            return Ok(None);
        }
        Ok(Started::Now(outcome)) => Ok(outcome),
        Err(error) => Err(error),
    };
    let mut register = register();
    let operation = register.remove(&ticket).ok_or_else(|| lost(ticket))?;
    match outcome {
        Ok(outcome) => Ok(Some(settle(node, operation, outcome))),
        Err(error) => {
            give_back(&operation, None);
            Err(error.into())
        }
    }
}

/// The handle of this operation is being closed: the operation goes on without it.
pub fn abandon(ticket: Ticket) {
    if let Some(operation) = register().get_mut(&ticket) {
        operation.lender = ptr::null_mut();
    }
}

/// Tells C how an operation that was started stands: `*now` is filled for an expected outcome, untouched
/// otherwise.
///
/// # Safety
/// `now` is valid for writing.
pub unsafe fn answer(ended: Option<Ended>, now: *mut selvage_completion) -> Result<selvage_status, Failure> {
    let Some(ended) = ended else { return Ok(selvage_status::Pending) };
    let settled = ended.result?;
    // SAFETY: valid for writing by this function's contract.
    unsafe { now.write(to_c(&ended.operation, &settled)) };
    Ok(settled.status)
}

/// The numbers of a commit for C.
pub fn commit_to_c(committed: &Committed) -> selvage_commit {
    selvage_commit {
        copies: committed.copies,
        shortfall: match committed.short {
            None => SELVAGE_SHORT_NOT,
            Some(Short::NoMandate) => SELVAGE_SHORT_NO_MANDATE,
            Some(Short::Servers) => SELVAGE_SHORT_SERVERS,
            Some(Short::LeaseFull) => SELVAGE_SHORT_LEASE_FULL,
            Some(Short::NotAwaited) => SELVAGE_SHORT_NOT_AWAITED,
        },
        version_epoch: committed.version.epoch,
        reserved: 0,
        version_counter: committed.version.counter,
    }
}

fn lost(ticket: Ticket) -> Failure {
    Failure::new(selvage_status::Internal, format!("operation {ticket} is not in the register"))
}

/// Gives the handle its session back, if it still wants it. Called under the register's lock.
fn give_back(operation: &Operation, session: Option<Session>) {
    if operation.lender.is_null() {
        return;
    }
    // SAFETY: the register named this handle until now and its lock is held, so it is not closed.
    let place = unsafe { &raw mut (*operation.lender).session };
    // SAFETY: as above, and nobody else uses this field before `underway` is 0. It holds None, which needs
    // no drop.
    unsafe { place.write(session) };
    // SAFETY: as above; the word is atomic. Release: whoever reads 0 sees the session.
    let underway = unsafe { &(*operation.lender).underway };
    underway.store(0, Ordering::Release);
}

/// Turns an outcome into what C hears. Called under the register's lock.
fn settle(node: &Node, operation: Operation, outcome: Outcome) -> Ended {
    let mut settled = Settled {
        status: selvage_status::Ok,
        session: ptr::null_mut(),
        commit: NOTHING,
        elsewhere: selvage_tag { text: [0; 16] },
        count: 0,
    };
    let error = match outcome {
        Outcome::Opened(Ok(Opened::Session(session))) => {
            settled.session = Box::into_raw(selvage_session::new(node.clone(), session));
            None
        }
        Outcome::Opened(Ok(Opened::Missing)) => {
            settled.status = selvage_status::Missing;
            None
        }
        Outcome::Opened(Ok(Opened::Elsewhere(host))) => {
            settled.status = selvage_status::Elsewhere;
            settled.elsewhere = selvage_tag::of(host);
            None
        }
        Outcome::Committed(session, result) => {
            give_back(&operation, Some(session));
            result.map(|committed| settled.commit = commit_to_c(&committed)).err()
        }
        Outcome::Destroyed(result) => {
            give_back(&operation, None);
            result.err()
        }
        Outcome::OwnerDestroyed(result) => result.map(|sessions| settled.count = sessions).err(),
        Outcome::Regenerated(session, result) => {
            give_back(&operation, Some(session));
            result.err()
        }
        Outcome::Opened(Err(error)) => Some(error),
    };
    let result = match error {
        None => Ok(settled),
        Some(error) => Err(error.into()),
    };
    Ended { operation, result }
}

fn to_c(operation: &Operation, settled: &Settled) -> selvage_completion {
    selvage_completion {
        user_data: operation.user_data,
        session: settled.session,
        status: settled.status,
        operation: operation.kind,
        commit: settled.commit,
        elsewhere: settled.elsewhere,
        count: settled.count,
    }
}

/// Writes the next completion, of any session of this process. Answers OK, or EMPTY; after EMPTY the
/// descriptor of selvage_node_completion_fd is not readable until another completion comes. If the
/// operation failed, its number is in completion->status and its text is selvage_last_error's.
///
/// Thread rule: any. Blocking: never. Ownership: completion->session is the caller's. Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `completion` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_next_completion(
    node: *const selvage_node,
    completion: *mut selvage_completion,
) -> selvage_status {
    enter!(required [node, completion], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        let Some(fetched) = node.next_completion() else { return Ok(selvage_status::Empty) };
        let ended = {
            let mut register = register();
            let operation = register.remove(&fetched.user_data).ok_or_else(|| lost(fetched.user_data))?;
            settle(node, operation, fetched.outcome)
        };
        let settled = ended.result.unwrap_or_else(|failure| {
            remember(&failure.text);
            Settled {
                status: failure.status,
                session: ptr::null_mut(),
                commit: NOTHING,
                elsewhere: selvage_tag { text: [0; 16] },
                count: 0,
            }
        });
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion.write(to_c(&ended.operation, &settled)) };
        Ok(selvage_status::Ok)
    })
}

/// Gives up an open or create that is under way. Answers OK: no completion will come; or MISSING: nothing
/// of this user_data can be given up (any more), and if it was started its completion comes.
///
/// Thread rule: any. Blocking: never. Ownership: none. Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_cancel(
    node: *const selvage_node,
    user_data: *const c_void,
) -> selvage_status {
    enter!(required[node], nullable[user_data], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        let mut register = register();
        let found = register.iter().find_map(|(ticket, operation)| {
            let wanted = operation.lender.is_null()
                && matches!(operation.kind, SELVAGE_OPERATION_OPEN | SELVAGE_OPERATION_CREATE)
                && ptr::eq(operation.user_data, user_data);
            operation.op.filter(|_| wanted).map(|op| (*ticket, op))
        });
        match found {
            Some((ticket, op)) if node.cancel(op) => {
                register.remove(&ticket);
                Ok(selvage_status::Ok)
            }
            _ => Ok(selvage_status::Missing),
        }
    })
}
