//! Work requests: the chains that a link posts, and the seam at which they leave our code ([`Wire`]).
//!
//! Invariants that the unsafe code rests on:
//! - *Requests live over the call.* Chains and their element lists are locals of the posting function; verbs
//!   copies them before `ibv_post_send` returns (ibv_post_send(3)), and inline data, too.
//! - *Named memory stays registered.* Elements without `INLINE` name memory by a local key of a region that
//!   the link keeps until its queue pair is destroyed. If the memory changes before the completion, the other
//!   end gets a mixture, which its checksum tells (invariant 14); nothing here reads it.

use crate::lease::CELL_BYTES;
use rdma_mummy_sys as sys;
use std::mem::MaybeUninit;
use std::time::Duration;

/// Completions that are fetched at once.
pub const COMPLETIONS_MAX: usize = 16;

/// Where completions are put, so that nothing is cleared for each look.
pub struct Completions([MaybeUninit<sys::ibv_wc>; COMPLETIONS_MAX]);

/// The send queue and the completion queue of one connection: what lies below this transport's own code.
///
/// # Safety
/// [`Self::poll`] returns entries that were written; nothing of a chain is used after [`Self::post`] has
/// returned but the memory that its elements without `INLINE` name.
pub unsafe trait Wire: Send + Sync {
    /// Posts a chain. On an error, `refused` is set to the first request that was not taken, or null if that
    /// is unknown.
    ///
    /// # Safety
    /// `first` begins a chain of whole requests: each names the next one or null, and a list of as many
    /// elements as it says; memory of inline elements is readable.
    unsafe fn post(&self, first: *mut sys::ibv_send_wr, refused: &mut *mut sys::ibv_send_wr) -> i32;
    /// Fetches completions into the front of `room`.
    fn poll<'a>(&self, room: &'a mut Completions) -> &'a [sys::ibv_wc];
    /// Asks for an event at the next completion.
    fn arm(&self);
    /// Sleeps until an event comes, and takes it.
    fn sleep(&self, timeout: Duration);
    /// Whether device or port have become useless. A system call or two.
    fn is_lost(&self) -> bool;
}

/// Why a chain was not posted, with the error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// None of it was taken.
    All(u32),
    /// A part may have been taken.
    Part(u32),
}

/// A piece of registered memory of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local {
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) key: u32,
}

/// A place at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote {
    pub(super) address: u64,
    pub(super) key: u32,
}

impl Completions {
    /// Room for [`COMPLETIONS_MAX`].
    #[inline]
    pub fn new() -> Self {
        Self([MaybeUninit::uninit(); COMPLETIONS_MAX])
    }

    /// The first entry, to write to.
    pub fn first(&mut self) -> *mut sys::ibv_wc {
        self.0.as_mut_ptr().cast()
    }

    /// The front of it.
    ///
    /// # Safety
    /// The first `count` entries were written; a larger count counts as all.
    #[inline]
    pub unsafe fn written(&self, count: usize) -> &[sys::ibv_wc] {
        // SAFETY: the entries were written (contract), and `MaybeUninit` has the layout of what it holds.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), count.min(COMPLETIONS_MAX)) }
    }
}

impl Default for Completions {
    fn default() -> Self {
        Self::new()
    }
}

/// A push: the archive from where it lies, if there is one, and then the cell, which alone is signalled.
#[inline]
pub(super) fn push(
    wire: &impl Wire,
    archive: Option<(Local, Remote)>,
    cell: &[u8; CELL_BYTES],
    at: Remote,
    (id, part_id): (u64, u64),
) -> Result<(), Refused> {
    let mut cell_element = inline(cell);
    let mut cell_request = write(id, &raw mut cell_element, at, SIGNALED | INLINE);
    let Some((local, remote)) = archive else {
        // SAFETY: one whole request with one element, whose memory is `cell`.
        return unsafe { post(wire, &raw mut cell_request) };
    };
    let mut element = element(local);
    let mut request = write(part_id, &raw mut element, remote, 0);
    request.next = &raw mut cell_request;
    // SAFETY: two whole requests with one element each; the inline one's memory is `cell`.
    unsafe { post(wire, &raw mut request) }
}

/// A beat: `words` are written to `to`, and then `from` is read into `page`; the read alone is signalled.
pub(super) fn beat(
    wire: &impl Wire,
    words: &[u8; 16],
    to: Remote,
    from: Remote,
    page: Local,
    (id, part_id): (u64, u64),
) -> Result<(), Refused> {
    let mut element_in = element(page);
    let mut request_in = write(id, &raw mut element_in, from, SIGNALED);
    request_in.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
    let mut element_out = inline(words);
    let mut request_out = write(part_id, &raw mut element_out, to, INLINE);
    request_out.next = &raw mut request_in;
    // SAFETY: two whole requests with one element each; the inline one's memory is `words`.
    unsafe { post(wire, &raw mut request_out) }
}

/// A read.
pub(super) fn read(wire: &impl Wire, from: Remote, into: Local, id: u64) -> Result<(), Refused> {
    let mut element = element(into);
    let mut request = write(id, &raw mut element, from, SIGNALED);
    request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
    // SAFETY: one whole request with one element, none of it inline.
    unsafe { post(wire, &raw mut request) }
}

const SIGNALED: u32 = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
const INLINE: u32 = sys::ibv_send_flags::IBV_SEND_INLINE.0;

#[inline]
fn element(local: Local) -> sys::ibv_sge {
    sys::ibv_sge { addr: local.address, length: local.bytes, lkey: local.key }
}

#[inline]
fn inline(bytes: &[u8]) -> sys::ibv_sge {
    // The callers' arrays are far shorter than 4 GiB. Inline data needs no key.
    sys::ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey: 0 }
}

#[inline]
fn write(id: u64, element: *mut sys::ibv_sge, at: Remote, flags: u32) -> sys::ibv_send_wr {
    sys::ibv_send_wr {
        wr_id: id,
        next: std::ptr::null_mut(),
        sg_list: element,
        num_sge: 1,
        opcode: sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        send_flags: flags,
        imm_data_invalidated_rkey_union: sys::imm_data_invalidated_rkey_union_t { imm_data: 0 },
        wr: sys::wr_t { rdma: sys::rdma_t { remote_addr: at.address, rkey: at.key } },
        qp_type: sys::qp_type_t { xrc: sys::xrc_t { remote_srqn: 0 } },
        bind_mw_tso_union: sys::bind_mw_tso_union_t {
            tso: sys::tso_t { hdr: std::ptr::null_mut(), hdr_sz: 0, mss: 0 },
        },
    }
}

/// # Safety
/// As [`Wire::post`].
#[inline]
unsafe fn post(wire: &impl Wire, first: *mut sys::ibv_send_wr) -> Result<(), Refused> {
    let mut refused = std::ptr::null_mut();
    // SAFETY: the caller's contract is the same.
    let result = unsafe { wire.post(first, &mut refused) };
    if result == 0 {
        return Ok(());
    }
    // Old drivers answer -1 and set errno.
    let errno =
        if result == -1 { std::io::Error::last_os_error().raw_os_error().unwrap_or(result) } else { result };
    let errno = errno.unsigned_abs();
    Err(if refused == first { Refused::All(errno) } else { Refused::Part(errno) })
}
