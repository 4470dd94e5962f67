//! The node handle: attaching a process, and what it says about itself.

use std::ffi::{c_char, c_int};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use selvage_fabric::config::Config;
use selvage_fabric::node::{AttachOptions, Node};

use crate::cookie::selvage_tag;
use crate::guard::{Failure, enter};
use crate::log;
use crate::process;
use crate::signals::Blocked;
use crate::status::selvage_status;
use crate::text;

/// This process's attachment to its web node.
pub struct selvage_node {
    pub(crate) node: Node,
    pub(crate) generation: u64,
    /// The header value that clears the cookie; lent to C, so it must not move or change.
    pub(crate) clear_cookie: String,
}

/// What selvage_node_describe answers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct selvage_node_info {
    /// The node's configured name, ended by a NUL.
    pub name: [c_char; 40],
    /// The tag of the node's present incarnation; an empty text while it has not joined the cluster.
    pub tag: selvage_tag,
    /// Largest archive of a session, bytes.
    pub archive_bytes_max: u64,
    /// The node has joined the cluster.
    pub joined: bool,
    /// Zero.
    pub reserved: [u8; 7],
}

impl selvage_node {
    /// Refuses a handle of another process.
    pub(crate) fn checked(&self) -> Result<&Node, Failure> {
        process::same(self.generation)?;
        Ok(&self.node)
    }
}

/// Reads and checks a configuration and whether it names the node, without attaching: for a server's own
/// configuration check. config_path may be NULL: SELVAGE_CONFIG, or else the default path. node_name may be
/// NULL: SELVAGE_NODE, or else the only node of the configuration.
///
/// Thread rule: any. Blocking: reads one file. Ownership: keeps nothing. Errors: INVALID with file, line
/// and key; OS if the file cannot be read.
///
/// # Safety
/// The texts are NULL or end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_config_check(
    config_path: *const c_char,
    node_name: *const c_char,
) -> selvage_status {
    enter!(required [], nullable [config_path, node_name], {
        // SAFETY: NULL or NUL-terminated by this function's contract.
        let path = unsafe { text::optional("config_path", config_path) }?;
        // SAFETY: as above.
        let name = unsafe { text::optional("node_name", node_name) }?;
        let config = Config::load(&Config::resolve_path(path.map(Path::new)))?;
        let name = name.map(str::to_owned).or_else(|| std::env::var("SELVAGE_NODE").ok());
        let why = match name {
            Some(name) if config.node(&name).is_none() => format!("no node is named \"{name}\""),
            None if config.nodes.len() != 1 => {
                format!("{} nodes are configured: say which one this is", config.nodes.len())
            }
            _ => return Ok(selvage_status::Ok),
        };
        Err(Failure::new(selvage_status::Invalid, format!("{}: {why}", config.path.display())))
    })
}

/// Attaches this process to its web node and writes the handle to *node. NULL for config_path and node_name
/// as in selvage_config_check. wait_ms says how long to wait until the node has joined the cluster; with 0
/// it returns at once, the process joins in the background, and the functions that may wait then wait for
/// that, too. Attaching again in one process shares the attachment. If the variable SELVAGE_LOG is set (warn,
/// info, debug), the library writes its log to standard error.
///
/// Thread rule: any. Blocking: at most wait_ms, and start-up work on files. Ownership: *node is the
/// caller's until selvage_node_close. Errors: INVALID for the configuration; TIMEOUT; DENIED for a user
/// that may not be this node; OS.
///
/// # Safety
/// The texts are NULL or end with a NUL; `node` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_attach(
    config_path: *const c_char,
    node_name: *const c_char,
    wait_ms: u32,
    node: *mut *mut selvage_node,
) -> selvage_status {
    enter!(required [node], nullable [config_path, node_name], {
        // SAFETY: NULL or NUL-terminated by this function's contract.
        let path = unsafe { text::optional("config_path", config_path) }?;
        // SAFETY: as above.
        let name = unsafe { text::optional("node_name", node_name) }?;
        process::watch()?;
        log::begin();
        let options = AttachOptions { wait: Duration::from_millis(wait_ms.into()) };
        let attached = {
            let _blocked = Blocked::new();
            Node::attach(path.map(Path::new), name, options)?
        };
        let clear_cookie = attached.clear_cookie();
        let handle = selvage_node { node: attached, generation: process::generation(), clear_cookie };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { node.write(Box::into_raw(Box::new(handle))) };
        Ok(selvage_status::Ok)
    })
}

/// Gives the attachment back. Sessions that are still open stay usable; the process leaves the node with
/// the last handle. NULL is fine. In a forked child it does nothing.
///
/// Thread rule: any, but no other call on this handle may be under way or follow. Blocking: when it is the
/// last handle, waits (bounded) for operations under way. Ownership: takes the handle. Errors: none.
///
/// # Safety
/// `node` is NULL or a handle that was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_close(node: *mut selvage_node) -> selvage_status {
    enter!(required [], nullable [node], {
        if node.is_null() {
            return Ok(selvage_status::Ok);
        }
        // SAFETY: made by Box::into_raw in attach, and not closed before by this function's contract.
        let handle = unsafe { Box::from_raw(node) };
        if handle.generation != process::generation() {
            // What it shares belongs to the parent: leave it all alone.
            std::mem::forget(handle);
        }
        Ok(selvage_status::Ok)
    })
}

/// Says which node this is, in what state.
///
/// Thread rule: any. Blocking: never. Ownership: copies. Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `info` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_describe(
    node: *const selvage_node,
    info: *mut selvage_node_info,
) -> selvage_status {
    enter!(required [node, info], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        let incarnation = node.incarnation();
        let answer = selvage_node_info {
            name: text::field(node.name()),
            tag: incarnation.map_or(selvage_tag { text: [0; 16] }, selvage_tag::of),
            archive_bytes_max: node.config().session.archive_bytes_max as u64,
            joined: incarnation.is_some(),
            reserved: [0; 7],
        };
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { info.write(answer) };
        Ok(selvage_status::Ok)
    })
}

/// Writes the descriptor that is readable while completions wait: one per process, for poll, epoll or an
/// event loop. Never read from it and never close it.
///
/// Thread rule: any. Blocking: never. Ownership: the descriptor stays the library's, until the process has
/// detached. Errors: FORKED.
///
/// # Safety
/// `node` is NULL or an open handle; `fd` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn selvage_node_completion_fd(
    node: *const selvage_node,
    fd: *mut c_int,
) -> selvage_status {
    enter!(required [node, fd], nullable [], {
        // SAFETY: not NULL (checked above) and an open handle by this function's contract.
        let node = unsafe { &*node }.checked()?;
        let raw = node.completion_fd()?.as_raw_fd();
        // SAFETY: not NULL (checked above) and valid for writing by this function's contract.
        unsafe { fd.write(raw) };
        Ok(selvage_status::Ok)
    })
}
