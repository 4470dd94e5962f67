//! Commit, destroy and regenerate, each in its waiting and its asynchronous form.

use std::ffi::c_void;

use selvage_fabric::node::Ack;

use crate::completion::{self, Operation, selvage_commit, selvage_completion};
use crate::guard::{Failure, enter};
use crate::session::selvage_session;
use crate::status::selvage_status;

/// Wait for every server of the session's placement that is up.
pub const SELVAGE_ACK_ALL: u32 = 1;
/// Wait for one of them.
pub const SELVAGE_ACK_ONE: u32 = 2;
/// Wait for none: copies are made as far as that needs no waiting, and later in the background.
pub const SELVAGE_ACK_NONE: u32 = 3;

fn ack_of(ack: u32) -> Result<Ack, Failure> {
    match ack {
        SELVAGE_ACK_ALL => Ok(Ack::All),
        SELVAGE_ACK_ONE => Ok(Ack::One),
        SELVAGE_ACK_NONE => Ok(Ack::None),
        other => Err(Failure::new(selvage_status::Invalid, format!("{other} is no kind of ack"))),
    }
}

/// Makes the changes the session's new version, in the node's cache and in its copies, and writes what it
/// reached. ack is SELVAGE_ACK_ALL, _ONE or _NONE. With fewer servers up it succeeds with fewer copies:
/// read commit->copies. commit may be NULL. The handle stays open. On an unlocked handle it waits for the
/// session's lock, as opening exclusively does, applies the changes to the version that is current then, and
/// gives the lock back; without changes it waits for nothing.
///
/// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
/// bounded. Ownership: none. Errors: TOO_LARGE and FULL (nothing was changed, the changes are still there);
/// of an unlocked handle BUSY and TIMEOUT (the same), and WRONG_TYPE if it adds to an attribute that somebody
/// else has made no integer (the same); OWNERSHIP_LOST, LOCK_LOST and GONE (nobody will see the changes);
/// INVALID, READ_ONLY, FORKED, UNDERWAY.
///
/// # Safety
/// `session` is NULL or an open handle; `commit` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_commit(
    session: *mut selvage_session,
    ack: u32,
    commit: *mut selvage_commit,
) -> selvage_status {
    enter!(required[session], nullable[commit], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let session = unsafe { &mut *session }.writable()?;
        let committed = session.commit(ack_of(ack)?)?;
        if !commit.is_null() {
            // SAFETY: not NULL and valid for writing by this function's contract.
            unsafe { commit.write(completion::commit_to_c(&committed)) };
        }
        Ok(selvage_status::Ok)
    })
}

/// As selvage_session_commit, without waiting: at once with OK and now->commit, or PENDING and later a
/// completion.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
/// caller's. Errors: as selvage_session_commit; they leave *now untouched.
///
/// # Safety
/// `session` is NULL or an open handle; `now` is NULL or valid for writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_commit_start(
    session: *mut selvage_session,
    ack: u32,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [session, now], nullable [user_data], {
        let ack = ack_of(ack)?;
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let handle = unsafe { &mut *session };
        let node = handle.node.clone();
        let taken = handle.take()?;
        let operation = Operation::lending(user_data, completion::SELVAGE_OPERATION_COMMIT, session);
        let ended = completion::start(&node, operation, |ticket| taken.commit_start(ack, ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}

/// Ends the session for ever: when it returns OK, every server that ever had a copy has its tombstone or
/// has left the cluster. The handle stays to be closed, whatever the answer is.
///
/// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
/// bounded. Ownership: none. Errors: OWNERSHIP_LOST, LOCK_LOST; TIMEOUT (it is gone here, its tombstones
/// follow in the background); of an unlocked handle BUSY and TIMEOUT also if the lock was not to be had
/// (nothing was changed; open it again); READ_ONLY, FORKED, UNDERWAY, GONE.
///
/// # Safety
/// `session` is NULL or an open handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_destroy(session: *mut selvage_session) -> selvage_status {
    enter!(required [session], nullable [], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        unsafe { &mut *session }.take()?.destroy()?;
        Ok(selvage_status::Ok)
    })
}

/// As selvage_session_destroy, without waiting: at once with OK, or PENDING and later a completion.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
/// caller's. Errors: as selvage_session_destroy; they leave *now untouched.
///
/// # Safety
/// `session` is NULL or an open handle; `now` is NULL or valid for writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_destroy_start(
    session: *mut selvage_session,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [session, now], nullable [user_data], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let handle = unsafe { &mut *session };
        let node = handle.node.clone();
        let taken = handle.take()?;
        let operation = Operation::lending(user_data, completion::SELVAGE_OPERATION_DESTROY, session);
        let ended = completion::start(&node, operation, |ticket| taken.destroy_start(ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}

/// Gives the session a new id, for a change of privilege: when it returns OK the copies under the new id
/// and the tombstone of the old one are acked. Uncommitted changes stay uncommitted and go with the new id.
/// The browser needs the new cookie. The absolute lifetime goes on: a new id does not renew it.
///
/// Thread rule: one thread at a time per session. Blocking: for the acks, and the lock of an unlocked handle,
/// bounded. Ownership: none. Errors: as selvage_session_commit. The session then has its old id, or already
/// its new one, while the tombstone of the old one follows in the background (TIMEOUT, OWNERSHIP_LOST,
/// LOCK_LOST): needs_cookie of selvage_session_describe says so, and the browser needs the new cookie with
/// the error, too.
///
/// # Safety
/// `session` is NULL or an open handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_regenerate(session: *mut selvage_session) -> selvage_status {
    enter!(required [session], nullable [], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        unsafe { &mut *session }.writable()?.regenerate()?;
        Ok(selvage_status::Ok)
    })
}

/// As selvage_session_regenerate, without waiting: at once with OK, or PENDING and later a completion.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the handle stays the
/// caller's. Errors: as selvage_session_regenerate; they leave *now untouched.
///
/// # Safety
/// `session` is NULL or an open handle; `now` is NULL or valid for writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_session_regenerate_start(
    session: *mut selvage_session,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [session, now], nullable [user_data], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let handle = unsafe { &mut *session };
        let node = handle.node.clone();
        let taken = handle.take()?;
        let operation = Operation::lending(user_data, completion::SELVAGE_OPERATION_REGENERATE, session);
        let ended = completion::start(&node, operation, |ticket| taken.regenerate_start(ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}
