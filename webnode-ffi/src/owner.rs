//! Owners: all sessions of one at once.

use std::ffi::{c_char, c_void};

use crate::completion::{self, Operation, selvage_completion};
use crate::guard::enter;
use crate::node::selvage_node;
use crate::status::selvage_status;
use crate::text;

/// Destroys every session of an owner, at whatever node it is ("log me out everywhere"): each that had this
/// owner by a commit that returned before this call. When it returns OK they are gone for ever, whatever dies
/// afterwards, and *count says how many there were, as far as the nodes could tell; count may be NULL. A
/// session that the caller itself has open for changes must be destroyed or closed before: this call waits
/// for the lock of each session. Requests to sessions of the owner that are created or changed meanwhile are
/// not waited for.
///
/// Thread rule: any. Blocking: for the director, all nodes and, if a node has just died, the adoption of its
/// sessions, at most the configuration's wait_ms. Ownership: none. Errors: INVALID (the owner is empty or not
/// UTF-8), TOO_LARGE for the owner; NOT_YET (some sessions may be left; the text says where; call again);
/// UNREACHABLE, TIMEOUT (no director); FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `owner` is NULL or valid for `owner_len` bytes; `count` is NULL or valid
/// for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_destroy_owner(
    node: *const selvage_node,
    owner: *const c_char,
    owner_len: usize,
    count: *mut u64,
) -> selvage_status {
    enter!(required [node, owner], nullable [count], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: valid for its length by this function's contract.
        let owner = unsafe { text::text("owner", owner, owner_len) }?;
        let sessions = node.destroy_owner(owner)?;
        if !count.is_null() {
            // SAFETY: not NULL, and valid for writing by this function's contract.
            unsafe { count.write(sessions) };
        }
        Ok(selvage_status::Ok)
    })
}

/// As selvage_node_destroy_owner, without waiting: always PENDING and later a completion, whose count says
/// how many sessions there were.
///
/// Thread rule: any. Blocking: never. Ownership: keeps nothing of the arguments. Errors: FORKED at once;
/// others in the completion. *now is left untouched.
///
/// # Safety
/// As selvage_node_destroy_owner; `now` is NULL or valid for writing; `user_data` is not followed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_destroy_owner_start(
    node: *const selvage_node,
    owner: *const c_char,
    owner_len: usize,
    user_data: *mut c_void,
    now: *mut selvage_completion,
) -> selvage_status {
    enter!(required [node, owner, now], nullable [user_data], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: valid for its length by this function's contract.
        let owner = unsafe { text::text("owner", owner, owner_len) }?;
        let operation = Operation::opening(user_data, completion::SELVAGE_OPERATION_DESTROY_OWNER);
        let ended = completion::start(node, operation, |ticket| node.destroy_owner_start(owner, ticket))?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { completion::answer(ended, now) }
    })
}
