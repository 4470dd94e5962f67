//! The verbs objects that this transport makes itself: memory region, completion queue with its channel,
//! queue pair. Each is one pointer of libibverbs, destroyed once, after everything that needs it.
//!
//! Why not sideway's: it drops the answer of `ibv_dereg_mr`, which is the fence (R2); it panics when a
//! destroy call fails, as it does on a device that has gone; its basic polling allocates; and posting needs
//! `&mut`, where several threads post. Device lists, contexts, queries and protection domains are sideway's.
//!
//! Invariants: `raw` came from the matching `ibv_create_…`/`ibv_reg_…` call and was not destroyed. Whatever
//! the object refers to (domain, queue, channel, memory) is owned through an `Arc`, so it goes later.
//! libibverbs locks inside: one object may be used by several threads. A destroy call that fails leaks the
//! object *and what it refers to*, since the card may still use it; it is logged, and nothing else happens:
//! a library in a web server must not end it. A forked child leaks what it inherits, for its commands would
//! act on the parent's objects.

use crate::transport::Region;
use rdma_mummy_sys as sys;
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// What a card may do with a memory region. Never with relaxed ordering: an ack promises that the bytes of
/// a push are in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Sources of writes: the card of this process reads.
    Local,
    /// Targets of this process's own reads.
    Landing,
    /// A lease: its node writes and reads.
    Lease,
    /// A staging buffer: the node reads.
    RemoteRead,
}

impl Access {
    pub(super) fn flags(self) -> i32 {
        use sys::ibv_access_flags as flag;
        let bits = match self {
            Self::Local => 0,
            Self::Landing => flag::IBV_ACCESS_LOCAL_WRITE.0,
            Self::Lease => {
                flag::IBV_ACCESS_LOCAL_WRITE.0
                    | flag::IBV_ACCESS_REMOTE_WRITE.0
                    | flag::IBV_ACCESS_REMOTE_READ.0
            }
            Self::RemoteRead => flag::IBV_ACCESS_REMOTE_READ.0,
        };
        bits.cast_signed()
    }
}

/// The process that made an object, and alone may destroy it.
struct Maker(u32);

impl Maker {
    fn this() -> Self {
        Self(std::process::id())
    }

    fn is_other(&self) -> bool {
        self.0 != std::process::id()
    }
}

/// Memory that the card knows.
pub(super) struct Mr {
    raw: NonNull<sys::ibv_mr>,
    maker: Maker,
    region: ManuallyDrop<Arc<dyn Region>>,
    pd: ManuallyDrop<Arc<ProtectionDomain>>,
}

// SAFETY: libibverbs locks inside (module head).
unsafe impl Send for Mr {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mr {}

impl Mr {
    /// Pins and registers all of a region.
    pub(super) fn register(
        pd: &Arc<ProtectionDomain>,
        region: Arc<dyn Region>,
        access: Access,
    ) -> io::Result<Self> {
        // SAFETY: the pointer is used while `pd` is borrowed.
        let domain = unsafe { pd.pd() };
        // SAFETY: the domain lives; the region is mapped for its length until it is dropped (contract of
        // `Region`), which is after it was deregistered.
        let raw = unsafe {
            sys::ibv_reg_mr(domain.as_ptr(), region.address().cast(), region.bytes(), access.flags())
        };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let (region, pd) = (ManuallyDrop::new(region), ManuallyDrop::new(pd.clone()));
        Ok(Self { raw, maker: Maker::this(), region, pd })
    }

    /// The key for this process's own work requests.
    pub(super) fn lkey(&self) -> u32 {
        // SAFETY: `raw` is a live memory region, whose keys never change.
        unsafe { (*self.raw.as_ptr()).lkey }
    }

    /// The key for the peer.
    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: as for `lkey`.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    /// What is registered.
    pub(super) fn region(&self) -> &Arc<dyn Region> {
        &self.region
    }

    /// Takes the memory away from the card. When it returns `Ok`, nothing that came with this region's keys
    /// can be written any more: the call waits for every reference. On an error the region may still be in
    /// use, and comes back.
    pub(super) fn deregister(self) -> Result<(), (Self, io::Error)> {
        let mut this = ManuallyDrop::new(self);
        match this.deregister_once() {
            Ok(()) => Ok(()),
            Err(error) => Err((ManuallyDrop::into_inner(this), error)),
        }
    }

    /// Called until it returns `Ok`, and never after that.
    fn deregister_once(&mut self) -> io::Result<()> {
        if self.maker.is_other() {
            return Ok(());
        }
        // SAFETY: `raw` is live; on success it is never used again: both callers forget the object.
        let result = unsafe { sys::ibv_dereg_mr(self.raw.as_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result.abs()));
        }
        // SAFETY: dropped once, here, and not used afterwards (as above).
        unsafe { ManuallyDrop::drop(&mut self.region) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.pd) };
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        if let Err(error) = self.deregister_once() {
            let bytes = self.region.bytes();
            tracing::error!(%error, bytes, "cannot deregister memory; it stays mapped");
        }
    }
}

/// The channel by which a completion queue wakes a sleeper. Its descriptor never blocks.
struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
}

/// A completion queue, with a channel if asked for.
pub(super) struct Cq {
    raw: NonNull<sys::ibv_cq>,
    maker: Maker,
    channel: Option<CompletionChannel>,
    context: ManuallyDrop<Arc<DeviceContext>>,
}

// SAFETY: libibverbs locks inside (module head).
unsafe impl Send for Cq {}
// SAFETY: as for `Send`.
unsafe impl Sync for Cq {}

impl Cq {
    /// Makes one for at least `entries` completions.
    pub(super) fn new(context: &Arc<DeviceContext>, entries: u32, with_channel: bool) -> io::Result<Self> {
        // SAFETY: the pointer is used while `context` is borrowed.
        let device = unsafe { context.context() };
        let channel = if with_channel { Some(CompletionChannel::new(device)?) } else { None };
        let channel_raw = channel.as_ref().map_or(ptr::null_mut(), |channel| channel.raw.as_ptr());
        let entries = i32::try_from(entries).unwrap_or(i32::MAX);
        // SAFETY: device and channel live; vector 0 exists on every device.
        let raw = unsafe { sys::ibv_create_cq(device.as_ptr(), entries, ptr::null_mut(), channel_raw, 0) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, maker: Maker::this(), channel, context: ManuallyDrop::new(context.clone()) })
    }

    /// For posting and polling code that goes by pointers; valid as long as `self`.
    pub(super) fn raw(&self) -> NonNull<sys::ibv_cq> {
        self.raw
    }

    /// Asks for one event on the channel at the next completion. Poll once more after it: what completed
    /// before it makes no event.
    pub(super) fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue lives.
        match unsafe { sys::ibv_req_notify_cq(self.raw.as_ptr(), 0) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.abs())),
        }
    }

    /// The channel's descriptor: readable when an event waits. `None` without a channel.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let channel = self.channel.as_ref()?;
        // SAFETY: the channel lives as long as `self`, and its descriptor never changes.
        let fd = unsafe { (*channel.raw.as_ptr()).fd };
        // SAFETY: the descriptor is open until the channel is destroyed, which `self` outlives.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Takes and acknowledges the events that wait on the channel; returns how many. Never blocks.
    pub(super) fn take_events(&self) -> u32 {
        let Some(channel) = &self.channel else { return 0 };
        let mut count = 0;
        loop {
            let (mut queue, mut user) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel lives, its descriptor does not block, and both results are writable.
            if unsafe { sys::ibv_get_cq_event(channel.raw.as_ptr(), &raw mut queue, &raw mut user) } != 0 {
                break;
            }
            count += 1;
        }
        if count > 0 {
            // SAFETY: only this queue uses the channel, so all the events taken above were its own. Each is
            // acknowledged once, or destroying would wait for ever.
            unsafe { sys::ibv_ack_cq_events(self.raw.as_ptr(), count) };
        }
        count
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        if self.maker.is_other() {
            std::mem::forget(self.channel.take());
            return;
        }
        self.take_events();
        // SAFETY: `raw` is live and not used afterwards; no queue pair uses it any more (each owns an `Arc`
        // of it), and all events are acknowledged.
        let result = unsafe { sys::ibv_destroy_cq(self.raw.as_ptr()) };
        if result != 0 {
            let error = io::Error::from_raw_os_error(result.abs());
            tracing::error!(%error, "cannot destroy a completion queue; it is left");
            // It refers to the channel still.
            std::mem::forget(self.channel.take());
            return;
        }
        drop(self.channel.take());
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.context) };
    }
}

impl CompletionChannel {
    /// `device` must be open, and stay so for the channel's life: its only user, [`Cq`], owns the context.
    fn new(device: NonNull<sys::ibv_context>) -> io::Result<Self> {
        // SAFETY: the device is open (contract above).
        let raw = unsafe { sys::ibv_create_comp_channel(device.as_ptr()) };
        let channel = Self { raw: NonNull::new(raw).ok_or_else(io::Error::last_os_error)? };
        // SAFETY: the channel lives.
        let fd = unsafe { (*channel.raw.as_ptr()).fd };
        // SAFETY: the descriptor is open as long as `channel`.
        set_nonblocking(unsafe { BorrowedFd::borrow_raw(fd) })?;
        Ok(channel)
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: `raw` is live and not used afterwards; its queue has gone before.
        let result = unsafe { sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if result != 0 {
            let error = io::Error::from_raw_os_error(result.abs());
            tracing::error!(%error, "cannot destroy a completion channel; it is left");
        }
    }
}

/// Reads from it answer "would block" instead of waiting.
pub(super) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// What a queue pair can hold, as asked for and as given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QpCaps {
    /// Work requests posted and not yet completed.
    pub(super) send_wrs: u32,
    /// Bytes that a work request can carry in itself.
    pub(super) inline_bytes: u32,
}

/// A reliable connected queue pair. It has one unused receive entry, since some drivers refuse none.
pub(super) struct Qp {
    raw: NonNull<sys::ibv_qp>,
    maker: Maker,
    caps: QpCaps,
    cq: ManuallyDrop<Arc<Cq>>,
    pd: ManuallyDrop<Arc<ProtectionDomain>>,
}

// SAFETY: libibverbs locks inside (module head).
unsafe impl Send for Qp {}
// SAFETY: as for `Send`.
unsafe impl Sync for Qp {}

impl Qp {
    /// Makes one in state RESET. Only work requests that ask for it are signalled.
    pub(super) fn new(pd: &Arc<ProtectionDomain>, cq: &Arc<Cq>, wanted: QpCaps) -> io::Result<Self> {
        let mut init = sys::ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: cq.raw.as_ptr(),
            recv_cq: cq.raw.as_ptr(),
            srq: ptr::null_mut(),
            cap: sys::ibv_qp_cap {
                max_send_wr: wanted.send_wrs,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: wanted.inline_bytes,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: the pointer is used while `pd` is borrowed.
        let domain = unsafe { pd.pd() };
        // SAFETY: domain and queue live, and both are kept until the queue pair is destroyed.
        let raw = unsafe { sys::ibv_create_qp(domain.as_ptr(), &raw mut init) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let caps = QpCaps { send_wrs: init.cap.max_send_wr, inline_bytes: init.cap.max_inline_data };
        let (cq, pd) = (ManuallyDrop::new(cq.clone()), ManuallyDrop::new(pd.clone()));
        Ok(Self { raw, maker: Maker::this(), caps, cq, pd })
    }

    /// For posting code that goes by pointers; valid as long as `self`.
    pub(super) fn raw(&self) -> NonNull<sys::ibv_qp> {
        self.raw
    }

    /// What it can hold.
    pub(super) fn caps(&self) -> QpCaps {
        self.caps
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: `raw` is a live queue pair, whose number never changes.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Changes what `mask` names.
    pub(super) fn modify(
        &self,
        mut attributes: sys::ibv_qp_attr,
        mask: sys::ibv_qp_attr_mask,
    ) -> io::Result<()> {
        // SAFETY: the queue pair lives, and the attributes are a whole structure.
        let result =
            unsafe { sys::ibv_modify_qp(self.raw.as_ptr(), &raw mut attributes, mask.0.cast_signed()) };
        match result {
            0 => Ok(()),
            // Old drivers answer -1 and set errno.
            -1 => Err(io::Error::last_os_error()),
            error => Err(io::Error::from_raw_os_error(error.abs())),
        }
    }

    /// Destroys it. When it returns `Ok`, nothing that came over it can be written any more: the call waits
    /// for every reference.
    pub(super) fn destroy(self) -> Result<(), (Self, io::Error)> {
        let mut this = ManuallyDrop::new(self);
        match this.destroy_once() {
            Ok(()) => Ok(()),
            Err(error) => Err((ManuallyDrop::into_inner(this), error)),
        }
    }

    /// Called until it returns `Ok`, and never after that.
    fn destroy_once(&mut self) -> io::Result<()> {
        if self.maker.is_other() {
            return Ok(());
        }
        // SAFETY: `raw` is live; on success it is never used again: both callers forget the object.
        let result = unsafe { sys::ibv_destroy_qp(self.raw.as_ptr()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result.abs()));
        }
        // SAFETY: dropped once, here, and not used afterwards (as above).
        unsafe { ManuallyDrop::drop(&mut self.cq) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.pd) };
        Ok(())
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        if let Err(error) = self.destroy_once() {
            tracing::error!(%error, "cannot destroy a queue pair; it is left, with what it uses");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_never_written_in_relaxed_order_and_never_by_more_than_it_must_be() {
        use sys::ibv_access_flags as flag;
        let has = |access: Access, bit: flag| access.flags().cast_unsigned() & bit.0 != 0;
        for access in [Access::Local, Access::Landing, Access::Lease, Access::RemoteRead] {
            assert!(!has(access, flag::IBV_ACCESS_RELAXED_ORDERING), "{access:?}");
            assert!(!has(access, flag::IBV_ACCESS_REMOTE_ATOMIC), "{access:?}");
            assert_eq!(has(access, flag::IBV_ACCESS_REMOTE_WRITE), access == Access::Lease, "{access:?}");
        }
        assert_eq!(Access::Local.flags(), 0);
        assert_eq!(Access::RemoteRead.flags(), flag::IBV_ACCESS_REMOTE_READ.0.cast_signed());
    }
}
