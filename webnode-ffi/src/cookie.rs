//! The session cookie: out of a request's `Cookie` header, and into an answer's `Set-Cookie`.

use std::ffi::c_char;

use selvage_fabric::ident::{Cookie, Incarnation, SessionId};

use crate::guard::enter;
use crate::node::selvage_node;
use crate::session::selvage_session;
use crate::status::selvage_status;
use crate::text;

/// The tag of a node's incarnation, as it stands in cookies and in Selvage-Elsewhere headers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_tag {
    /// 13 characters and NULs.
    pub text: [c_char; 16],
}

/// What a valid session cookie says.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_cookie {
    /// The session's id.
    pub id: [u8; 16],
    /// The node incarnation that hosted it when the cookie was made.
    pub host: u64,
}

impl selvage_tag {
    pub(crate) fn of(incarnation: Incarnation) -> Self {
        Self { text: text::field(&incarnation.tag()) }
    }
}

impl From<Cookie> for selvage_cookie {
    fn from(cookie: Cookie) -> Self {
        Self { id: cookie.id.0, host: cookie.host.0 }
    }
}

impl From<selvage_cookie> for Cookie {
    fn from(cookie: selvage_cookie) -> Self {
        Self { id: SessionId(cookie.id), host: Incarnation(cookie.host) }
    }
}

/// Finds the valid session cookie in the value of a Cookie header. Wrong, foreign and unsigned cookies are
/// no cookies. Answers OK, or MISSING with *cookie untouched.
///
/// Thread rule: any. Blocking: never. Ownership: copies. Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `header` is valid for `header_len` bytes; `cookie` is NULL or
/// valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_cookie_read(
    node: *const selvage_node,
    header: *const c_char,
    header_len: usize,
    cookie: *mut selvage_cookie,
) -> selvage_status {
    enter!(required [node, header, cookie], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        // SAFETY: valid for its length by this function's contract.
        let bytes = unsafe { text::bytes("header", header.cast(), header_len) }?;
        // A header may hold other cookies in any bytes; ours are ASCII, so a lossy reading cannot make one
        // up.
        let Some(found) = node.decode_cookie_header(&String::from_utf8_lossy(bytes)) else {
            return Ok(selvage_status::Missing);
        };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { cookie.write(found.into()) };
        Ok(selvage_status::Ok)
    })
}

/// Lends the value of the Set-Cookie header that gives the browser this session on this host. Needed when
/// selvage_session_describe says needs_cookie.
///
/// Thread rule: one thread at a time per session. Blocking: never. Ownership: the text is the session's,
/// valid until the next call on it that is not describe, read or read_at. Errors: FORKED, UNDERWAY.
///
/// # Safety
/// `session` is NULL or an open handle; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_cookie_set(
    session: *mut selvage_session,
    value: *mut *const c_char,
    value_len: *mut usize,
) -> selvage_status {
    enter!(required [session, value, value_len], nullable [], {
        // SAFETY: not NULL (checked above), and an open handle of which this is the only user by this
        // function's contract.
        let session = unsafe { &mut *session };
        let made = session.node.set_cookie(session.open()?);
        let lent = session.lend(made.into_bytes());
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { value.write(lent.0.cast()) };
        // SAFETY: as above.
        unsafe { value_len.write(lent.1) };
        Ok(selvage_status::Ok)
    })
}

/// Lends the value of the Set-Cookie header that removes the cookie: for a session that is gone.
///
/// Thread rule: any. Blocking: never. Ownership: the text is the node handle's, valid until that is closed.
/// Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; the outputs are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_cookie_clear(
    node: *const selvage_node,
    value: *mut *const c_char,
    value_len: *mut usize,
) -> selvage_status {
    enter!(required [node, value, value_len], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node };
        node.checked()?;
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { value.write(node.clear_cookie.as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { value_len.write(node.clear_cookie.len()) };
        Ok(selvage_status::Ok)
    })
}
