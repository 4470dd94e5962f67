//! A node's end of a lease over RDMA: the push engine on a real queue pair.

use super::bulk::Buffer;
use super::channel::Channel;
use super::engine::{Engine, Lease, Source};
use super::objects::Mr;
use super::requests::{Completions, Wire};
use super::{EXTRA_WRS, WRS_PER_PUSH};
use crate::control::message::RemoteMemory;
use crate::error::Result;
use crate::ident::Incarnation;
use crate::lease::LeaseGeometry;
use crate::transport::memory::Mapping;
use crate::transport::{ChecksumKind, Link, Outcome, Posted, Push, PushId, TransportKind};
use rdma_mummy_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A node's end of a lease over RDMA. Fields are dropped in order: the queue pair goes before the memory that
/// its reads land in.
pub struct VerbsLink {
    engine: Engine<Line>,
    /// Kept registered.
    _page: Mr,
    /// Made at the first bulk read. One reader at a time.
    bulk: Mutex<Option<(Buffer, Mr)>>,
}

/// The real wire.
struct Line {
    channel: Channel,
}

impl VerbsLink {
    pub(super) fn new(channel: Channel) -> Result<Self> {
        let pushes = channel.qp.caps().send_wrs.saturating_sub(EXTRA_WRS) / WRS_PER_PUSH;
        let lease = Lease {
            memory: channel.lease.memory,
            geometry: channel.lease.geometry,
            server: channel.lease.server,
        };
        let source = Source { region: channel.source.region().clone(), key: channel.source.lkey() };
        let device = channel.device.clone();
        let mut registered = None;
        let engine = Engine::new(Line { channel }, lease, source, pushes, |page| {
            let page = device.land(page)?;
            let key = page.lkey();
            registered = Some(page);
            Ok(key)
        })?;
        let page = registered.ok_or_else(super::error::no_device)?;
        Ok(Self { engine, _page: page, bulk: Mutex::new(None) })
    }

    /// Device, port, GID and path MTU; for people.
    pub fn path(&self) -> String {
        self.engine.wire.channel.detail()
    }

    /// Reads all of a piece of the server's memory that it has told over control, with large one-sided reads.
    ///
    /// # Errors
    /// `TooLarge` for more than a batch and one archive; `Unreachable` if the link is or becomes broken;
    /// `Timeout` if nothing comes; `Invalid` if the limit on locked memory is too low.
    pub fn read_bulk(&self, memory: RemoteMemory) -> Result<Vec<u8>> {
        let mut bulk = self.bulk.lock().unwrap_or_else(PoisonError::into_inner);
        let (buffer, _) = match &mut *bulk {
            Some(bulk) => bulk,
            none => {
                let memory = Arc::new(Mapping::anonymous(Buffer::BYTES)?);
                let mr = self.engine.wire.channel.device.land(memory.clone())?;
                none.insert((Buffer { memory, key: mr.lkey() }, mr))
            }
        };
        self.engine.read_bulk(memory, buffer)
    }

    /// Readable when pushes may have ended, after [`Self::arm`]; then call [`Self::take_events`], `arm`, and
    /// poll.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.engine.wire.channel.cq.fd()
    }

    /// Asks for one event at the next completion. Poll once more afterwards: what completed before it makes
    /// no event.
    pub fn arm(&self) {
        self.engine.wire.arm();
    }

    /// Takes what made the descriptor readable. Never blocks.
    pub fn take_events(&self) {
        self.engine.wire.channel.cq.take_events();
    }

    /// For programs that measure this link against bare verbs on the same queue pair.
    #[doc(hidden)]
    pub fn bare(&self) -> super::Bare {
        let channel = &self.engine.wire.channel;
        super::Bare {
            qp: channel.qp.raw().as_ptr(),
            cq: channel.cq.raw().as_ptr(),
            local_key: channel.source.lkey(),
            memory: channel.lease.memory,
        }
    }
}

impl Link for VerbsLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Verbs
    }

    fn checksum_kind(&self) -> ChecksumKind {
        ChecksumKind::Xxh3
    }

    fn geometry(&self) -> LeaseGeometry {
        self.engine.lease().geometry
    }

    fn server_incarnation(&self) -> Incarnation {
        self.engine.lease().server
    }

    fn post(&self, push: &Push<'_>) -> Posted {
        self.engine.post(push)
    }

    fn poll(&self, push: PushId) -> Option<Outcome> {
        self.engine.poll(push)
    }

    fn wait(&self, push: PushId, timeout: Duration) {
        self.engine.wait(push, timeout);
    }

    fn forget(&self, push: PushId) {
        self.engine.forget(push);
    }

    fn sends_in_place(&self) -> bool {
        true
    }

    fn detail(&self) -> String {
        let channel = &self.engine.wire.channel;
        let path = channel.detail();
        match self.engine.fault.cause() {
            None => path,
            Some(cause) => {
                let lost = channel.fault().map(|why| format!("; {why}")).unwrap_or_default();
                format!("{path}: broken: {}{lost}", cause.text())
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.engine.fault.is_set()
    }

    fn beat(&self, beat: u64, sessions: u64) {
        self.engine.beat(beat, sessions);
    }

    fn peer_beat(&self) -> u64 {
        self.engine.peer_beat()
    }

    fn is_sealed(&self) -> bool {
        self.engine.is_sealed()
    }
}

// SAFETY: `poll` returns what `ibv_poll_cq` says it has written; `ibv_post_send` copies requests, element
// lists and inline data before it returns (ibv_post_send(3)).
unsafe impl Wire for Line {
    #[inline]
    unsafe fn post(&self, first: *mut sys::ibv_send_wr, refused: &mut *mut sys::ibv_send_wr) -> i32 {
        // SAFETY: the queue pair lives as long as the channel; the chain is whole (the caller's contract).
        unsafe { sys::ibv_post_send(self.channel.qp.raw().as_ptr(), first, refused) }
    }

    #[inline]
    fn poll<'a>(&self, room: &'a mut Completions) -> &'a [sys::ibv_wc] {
        let most = super::requests::COMPLETIONS_MAX as i32;
        // SAFETY: the completion queue lives as long as the channel, and there is room for `most`.
        let count = unsafe { sys::ibv_poll_cq(self.channel.cq.raw().as_ptr(), most, room.first()) };
        // A queue that cannot be polled is a device that has gone, which `is_lost` tells.
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: so many were written.
        unsafe { room.written(count) }
    }

    fn arm(&self) {
        // A queue that cannot be armed makes no event, and the sleeper looks again in a moment.
        let _ = self.channel.cq.arm();
    }

    fn sleep(&self, timeout: Duration) {
        let Some(fd) = self.channel.cq.fd() else { return };
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // However it ends, the caller looks at the queue.
        let _ = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
        self.channel.cq.take_events();
    }

    fn is_lost(&self) -> bool {
        self.channel.fault().is_some()
    }
}
