//! The push engine on a wire that does what a card can do wrong: takes half a chain, refuses, answers late,
//! with errors, twice or not at all. No device is needed.

use super::bulk::Buffer;
use super::engine::{Engine, Lease, Source};
use super::requests::{Completions, Wire};
use crate::control::message::RemoteMemory;
use crate::error::ErrorKind;
use crate::ident::Incarnation;
use crate::lease::{
    BlockOffset, CELL_BYTES, LeaseGeometry, NODE_BEAT_OFFSET, SEAL_OFFSET, SERVER_BEAT_OFFSET,
    SERVER_INCARNATION_OFFSET, Sequence, SlotIndex,
};
use crate::limits::{RDMA_BULK_BYTES, RDMA_FULL_WAIT};
use crate::transport::memory::Mapping;
use crate::transport::{FailKind, Outcome, Posted, Push, PushId, Region};
use rdma_mummy_sys as sys;
use rdma_mummy_sys::ibv_wc_status as status;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Pushes at once.
const DEPTH: u32 = 4;
/// Requests that the send queue holds: two for each push, two for a beat, one for each bulk read.
const SEND_WRS: usize = 2 * DEPTH as usize + 2 + crate::limits::RDMA_BULK_READS as usize;
const REMOTE: RemoteMemory = RemoteMemory { address: 1 << 40, bytes: 0, key: 77 };
const SOURCE_KEY: u32 = 5;
const PAGE_KEY: u32 = 6;
const SERVER: Incarnation = Incarnation(9);
const CELL: [u8; CELL_BYTES] = [0xc5; CELL_BYTES];
const SIGNALED: u32 = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
const INLINE: u32 = sys::ibv_send_flags::IBV_SEND_INLINE.0;

/// A request as the wire has seen it.
#[derive(Clone, Debug)]
struct Request {
    id: u64,
    opcode: u32,
    flags: u32,
    to: (u64, u32),
    from: (u64, u32, u32),
    /// What was sent inline.
    inline: Vec<u8>,
}

/// What the wire does with a chain.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Takes so many requests of it and refuses the next with this result.
    Take(usize, i32),
    /// Refuses without saying which request it was.
    Unknown(i32),
    /// As old drivers do: -1, and the number in errno.
    Old(i32),
}

/// A wire that takes everything unless told otherwise, and completes nothing unless told to.
#[derive(Default)]
struct Fake {
    state: Mutex<State>,
    lost: AtomicBool,
    sleeps: AtomicU64,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    /// Taken and not completed, in order.
    queue: VecDeque<Request>,
    completions: VecDeque<sys::ibv_wc>,
    chains: usize,
    /// The most that `queue` has held.
    most: usize,
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn will(&self, answer: Answer) {
        self.state().answers.push_back(answer);
    }

    fn queue(&self) -> Vec<Request> {
        self.state().queue.iter().cloned().collect()
    }

    /// The oldest chain ends well: only its signalled request makes a completion.
    fn succeed(&self) {
        let mut state = self.state();
        while let Some(request) = state.queue.pop_front() {
            if request.flags & SIGNALED != 0 {
                state.completions.push_back(completion(request.id, status::IBV_WC_SUCCESS));
                return;
            }
        }
        panic!("nothing signalled is under way");
    }

    /// The oldest request fails, and all behind it are flushed, signalled or not, as a queue pair in the
    /// error state does.
    fn fail(&self, first: u32) {
        let mut state = self.state();
        let mut status = first;
        while let Some(request) = state.queue.pop_front() {
            state.completions.push_back(completion(request.id, status));
            status = status::IBV_WC_WR_FLUSH_ERR;
        }
    }

    /// The oldest read lands these words and ends well.
    fn land(&self, words: &[(u64, u64)]) {
        let read = |request: &Request| request.opcode == sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
        let landing = self.state().queue.iter().find(|request| read(request)).cloned().unwrap();
        let begin = landing.to.0 - REMOTE.address;
        for (offset, word) in words {
            assert!(*offset >= begin && offset + 8 <= begin + u64::from(landing.from.1));
            let at = (landing.from.0 + offset - begin) as *mut u64;
            // SAFETY: the engine's page, registered for this read, is mapped, aligned, and as long as the
            // read is; shared words are atomics (invariant 10).
            unsafe { AtomicU64::from_ptr(at) }.store(*word, Ordering::Relaxed);
        }
        self.succeed();
    }
}

fn completion(wr_id: u64, status: u32) -> sys::ibv_wc {
    sys::ibv_wc {
        wr_id,
        status,
        opcode: 0,
        vendor_err: 0x33,
        byte_len: 0,
        imm_data_invalidated_rkey_union: sys::imm_data_invalidated_rkey_union_t { imm_data: 0 },
        qp_num: 0,
        src_qp: 0,
        wc_flags: 0,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    }
}

/// Reads a request of a chain, and the one behind it.
///
/// # Safety
/// `request` is whole, as the contract of [`Wire::post`] says.
unsafe fn taken(request: *mut sys::ibv_send_wr) -> (Request, *mut sys::ibv_send_wr) {
    // SAFETY: the request is whole (contract).
    let wr = unsafe { &*request };
    assert_eq!(wr.num_sge, 1);
    // SAFETY: it names one element.
    let element = unsafe { &*wr.sg_list };
    // SAFETY: every request of the engine is a write or a read, which use this member.
    let rdma = unsafe { wr.wr.rdma };
    let mut inline = Vec::new();
    if wr.send_flags & INLINE != 0 {
        // SAFETY: memory of inline elements is readable (contract).
        inline = unsafe { std::slice::from_raw_parts(element.addr as *const u8, element.length as usize) }
            .to_vec();
    }
    let seen = Request {
        id: wr.wr_id,
        opcode: wr.opcode,
        flags: wr.send_flags,
        to: (rdma.remote_addr, rdma.rkey),
        from: (element.addr, element.length, element.lkey),
        inline,
    };
    (seen, wr.next)
}

// SAFETY: `poll` returns entries that it has written; `post` keeps copies only.
unsafe impl Wire for Fake {
    unsafe fn post(&self, first: *mut sys::ibv_send_wr, refused: &mut *mut sys::ibv_send_wr) -> i32 {
        let mut state = self.state();
        state.chains += 1;
        let answer = state.answers.pop_front().unwrap_or(Answer::Take(usize::MAX, 0));
        let (most, result) = match answer {
            Answer::Take(most, result) => (most, result),
            Answer::Unknown(result) => {
                *refused = std::ptr::null_mut();
                return result;
            }
            Answer::Old(errno) => {
                *refused = first;
                // SAFETY: no conditions.
                let word = unsafe { libc::__errno_location() };
                // SAFETY: the word is this thread's own.
                unsafe { *word = errno };
                return -1;
            }
        };
        let (mut next, mut count) = (first, 0);
        while !next.is_null() {
            if count == most {
                *refused = next;
                return result;
            }
            // SAFETY: the chain is whole (the caller's contract).
            let (request, behind) = unsafe { taken(next) };
            state.queue.push_back(request);
            (next, count) = (behind, count + 1);
        }
        state.most = state.most.max(state.queue.len());
        0
    }

    fn poll<'a>(&self, room: &'a mut Completions) -> &'a [sys::ibv_wc] {
        let mut state = self.state();
        let count = state.completions.len().min(super::requests::COMPLETIONS_MAX);
        for at in 0..count {
            let Some(completion) = state.completions.pop_front() else { break };
            // SAFETY: `count` is at most what there is room for.
            let entry = unsafe { room.first().add(at) };
            // SAFETY: as above; nothing else uses the room.
            unsafe { entry.write(completion) };
        }
        // SAFETY: so many were written.
        unsafe { room.written(count) }
    }

    fn arm(&self) {}

    fn sleep(&self, timeout: Duration) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(timeout.min(Duration::from_millis(1)));
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

struct Bench {
    engine: Engine<Fake>,
    segment: Arc<Mapping>,
    geometry: LeaseGeometry,
}

impl Bench {
    fn new() -> Self {
        let geometry = LeaseGeometry { slot_count: 16, heap_bytes: 1 << 20, chunk_bytes: 1 << 20 };
        let memory = RemoteMemory { bytes: geometry.total_bytes(), ..REMOTE };
        let segment = Arc::new(Mapping::anonymous(64 << 10).unwrap());
        let source = Source { region: segment.clone(), key: SOURCE_KEY };
        let lease = Lease { memory, geometry, server: SERVER };
        let engine = Engine::new(Fake::default(), lease, source, DEPTH, |_| Ok(PAGE_KEY)).unwrap();
        Self { engine, segment, geometry }
    }

    fn wire(&self) -> &Fake {
        &self.engine.wire
    }

    /// Bytes of the segment. Nothing writes to it.
    fn archive(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset + bytes <= self.segment.bytes());
        let begin = self.segment.address().wrapping_add(offset);
        // SAFETY: inside the mapping, which lives as long as `self`, and which nobody writes to here.
        unsafe { std::slice::from_raw_parts(begin, bytes) }
    }

    fn post(&self, slot: u32) -> Posted {
        let block = Some((BlockOffset(slot * 4), self.archive(1024 * slot as usize, 1000)));
        self.engine.post(&Push { slot: SlotIndex(slot), sequence: Sequence(1), cell: &CELL, block })
    }

    fn pending(&self, slot: u32) -> PushId {
        match self.post(slot) {
            Posted::Pending(id) => id,
            Posted::Done(outcome) => panic!("slot {slot}: {outcome:?}"),
        }
    }

    fn is_broken(&self) -> bool {
        self.engine.fault.is_set()
    }
}

const NOT_POSTED: Posted = Posted::Done(Outcome::Failed(FailKind::NotPosted));
const BOUNDS: Posted = Posted::Done(Outcome::Failed(FailKind::Bounds));
const DISCONNECTED: Option<Outcome> = Some(Outcome::Failed(FailKind::Disconnected));
const REVOKED: Option<Outcome> = Some(Outcome::Failed(FailKind::Revoked));

#[test]
fn a_push_is_one_chain_out_of_the_segment_whose_cell_alone_is_signalled() {
    let bench = Bench::new();
    let push = bench.pending(3);
    let [archive, cell] = &bench.wire().queue()[..] else { panic!("two requests") };
    assert_eq!(bench.wire().state().chains, 1);
    let block = REMOTE.address + bench.geometry.block_offset(BlockOffset(12), 1000).unwrap();
    let place = REMOTE.address + bench.geometry.cell_offset(SlotIndex(3), Sequence(1)).unwrap();
    let from = bench.segment.address() as u64 + 3 * 1024;
    assert_eq!((archive.to, archive.from, archive.flags), ((block, 77), (from, 1000, SOURCE_KEY), 0));
    assert_eq!((cell.to, cell.flags), ((place, 77), SIGNALED | INLINE));
    assert_eq!(cell.inline, CELL);
    assert_eq!(bench.engine.poll(push), None, "nothing has completed");
    bench.wire().succeed();
    assert_eq!(bench.engine.poll(push), Some(Outcome::Acked));
    assert_eq!(bench.engine.poll(push), None, "told once");
    // A cell alone (touch, tombstone, move).
    let bare = Push { slot: SlotIndex(0), sequence: Sequence(0), cell: &CELL, block: None };
    assert!(matches!(bench.engine.post(&bare), Posted::Pending(_)));
    assert_eq!(bench.wire().queue().len(), 1);
}

#[test]
fn the_completion_of_a_part_acks_nothing() {
    let bench = Bench::new();
    let push = bench.pending(0);
    let [archive, _] = &bench.wire().queue()[..] else { panic!("two requests") };
    // No card does this for a request that is not signalled; if one did, the archive alone is no commit.
    bench.wire().state().completions.push_back(completion(archive.id, status::IBV_WC_SUCCESS));
    assert_eq!(bench.engine.poll(push), None);
    assert!(!bench.is_broken());
}

#[test]
fn half_a_chain_is_a_push_in_doubt_and_the_end_of_the_link() {
    let bench = Bench::new();
    let before = bench.pending(0);
    bench.wire().will(Answer::Take(1, libc::ENOMEM));
    let half = bench.post(1);
    // The archive is on its way, and no completion will tell of it: not "not posted" (R4).
    assert_eq!(half, Posted::Done(Outcome::Failed(FailKind::Disconnected)));
    assert!(bench.is_broken());
    assert_eq!(bench.engine.flight.in_use(), 2, "its entry stays until its requests have ended");
    assert_eq!(bench.post(2), NOT_POSTED);
    assert_eq!(bench.wire().queue().len(), 3, "nothing is posted on a broken link");
    // What was whole before may still be acked.
    bench.wire().succeed();
    assert_eq!(bench.engine.poll(before), Some(Outcome::Acked));
    // The queue pair is destroyed: the half is flushed.
    bench.wire().fail(status::IBV_WC_WR_FLUSH_ERR);
    bench.engine.drain();
    let text = bench.engine.fault.cause().unwrap().text();
    assert!(text.contains("send queue refused"), "the first cause stays: {text}");
}

#[test]
fn a_driver_that_does_not_say_what_it_refused_leaves_doubt() {
    let bench = Bench::new();
    bench.wire().will(Answer::Unknown(libc::EINVAL));
    assert_eq!(bench.post(0), Posted::Done(Outcome::Failed(FailKind::Disconnected)));
    assert!(bench.is_broken());
}

#[test]
fn a_full_send_queue_passes() {
    for answer in [Answer::Take(0, libc::ENOMEM), Answer::Old(libc::ENOMEM), Answer::Take(0, -libc::ENOMEM)] {
        let bench = Bench::new();
        bench.wire().will(answer);
        assert_eq!(bench.post(0), NOT_POSTED, "{answer:?}");
        assert!(!bench.is_broken(), "{answer:?}");
        assert_eq!(bench.engine.flight.in_use(), 0, "{answer:?}");
        let push = bench.pending(0);
        bench.wire().succeed();
        assert_eq!(bench.engine.poll(push), Some(Outcome::Acked));
    }
}

#[test]
fn any_other_refusal_ends_the_link_and_leaves_no_doubt() {
    for answer in [Answer::Take(0, libc::EINVAL), Answer::Old(libc::EIO)] {
        let bench = Bench::new();
        bench.wire().will(answer);
        assert_eq!(bench.post(0), NOT_POSTED, "{answer:?}: nothing of it was taken");
        assert!(bench.is_broken());
        assert_eq!(bench.engine.flight.in_use(), 0);
        assert_eq!(bench.post(0), NOT_POSTED);
        assert_eq!(bench.wire().state().chains, 1, "nothing is posted afterwards");
        let text = bench.engine.fault.cause().unwrap().text();
        assert!(text.contains("os error"), "{text}");
    }
}

#[test]
fn what_lies_out_of_bounds_is_refused_before_it_is_posted() {
    let bench = Bench::new();
    let inside = bench.archive(0, 1000);
    let foreign = vec![0; 1000];
    let last = bench.archive(bench.segment.bytes() - 8, 8);
    let push = |slot, block, archive| Push {
        slot: SlotIndex(slot),
        sequence: Sequence(0),
        cell: &CELL,
        block: Some((BlockOffset(block), archive)),
    };
    let heap_units = (bench.geometry.heap_bytes / 256) as u32;
    for (what, push) in [
        ("memory that is not the segment's", push(0, 0, &foreign[..])),
        ("no such slot", push(16, 0, inside)),
        ("the largest slot", push(u32::MAX, 0, inside)),
        ("a block behind the heap", push(0, heap_units, inside)),
        ("a block that reaches over the end of the heap", push(0, heap_units - 1, inside)),
        ("the largest block", push(0, u32::MAX, inside)),
    ] {
        assert_eq!(bench.engine.post(&push), BOUNDS, "{what}");
    }
    let bare = Push { slot: SlotIndex(16), sequence: Sequence(0), cell: &CELL, block: None };
    assert_eq!(bench.engine.post(&bare), BOUNDS);
    assert_eq!((bench.wire().state().chains, bench.engine.flight.in_use()), (0, 0));
    assert!(!bench.is_broken(), "a caller's mistake is no end of the link");
    assert!(matches!(bench.engine.post(&push(0, 0, last)), Posted::Pending(_)), "up to the last byte");
}

#[test]
fn an_archive_that_reaches_over_the_end_of_the_segment_is_refused() {
    let bench = Bench::new();
    // A segment whose registered part is shorter than what is mapped.
    struct Front(Arc<Mapping>);
    // SAFETY: the front of a mapping that lives as long as this does.
    unsafe impl Region for Front {
        fn address(&self) -> *mut u8 {
            self.0.address()
        }
        fn bytes(&self) -> usize {
            4096
        }
    }
    let memory = RemoteMemory { bytes: bench.geometry.total_bytes(), ..REMOTE };
    let lease = Lease { memory, geometry: bench.geometry, server: SERVER };
    let source = Source { region: Arc::new(Front(bench.segment.clone())), key: SOURCE_KEY };
    let engine = Engine::new(Fake::default(), lease, source, DEPTH, |_| Ok(PAGE_KEY)).unwrap();
    let post = |offset, bytes| {
        let block = Some((BlockOffset(0), bench.archive(offset, bytes)));
        engine.post(&Push { slot: SlotIndex(0), sequence: Sequence(0), cell: &CELL, block })
    };
    assert!(matches!(post(3096, 1000), Posted::Pending(_)));
    assert_eq!(post(3097, 1000), BOUNDS);
    assert_eq!(post(4096, 1), BOUNDS);
    assert_eq!(post(8192, 1000), BOUNDS);
}

#[test]
fn an_error_completion_ends_all_pushes_with_its_kind() {
    for (first, ends) in [
        (status::IBV_WC_REM_ACCESS_ERR, REVOKED),
        (status::IBV_WC_RETRY_EXC_ERR, DISCONNECTED),
        (status::IBV_WC_LOC_PROT_ERR, DISCONNECTED),
        (status::IBV_WC_REM_INV_REQ_ERR, DISCONNECTED),
        (status::IBV_WC_WR_FLUSH_ERR, DISCONNECTED),
    ] {
        let bench = Bench::new();
        let pushes = [bench.pending(0), bench.pending(1), bench.pending(2)];
        bench.wire().succeed();
        // The archive of the second push fails; everything behind is flushed.
        bench.wire().fail(first);
        assert_eq!(bench.engine.poll(pushes[2]), ends, "status {first}, asked for in any order");
        assert_eq!(bench.engine.poll(pushes[1]), ends, "status {first}");
        assert_eq!(bench.engine.poll(pushes[0]), Some(Outcome::Acked), "complete before the error");
        assert_eq!(bench.post(3), NOT_POSTED);
        assert_eq!(bench.engine.flight.in_use(), 0);
        let text = bench.engine.fault.cause().unwrap().text();
        assert!(text.contains(&format!("status {first} ")) && text.contains("0x33"), "{text}");
    }
}

#[test]
fn the_send_queue_is_never_overrun() {
    let bench = Bench::new();
    let pushes: Vec<PushId> = (0..DEPTH).map(|slot| bench.pending(slot)).collect();
    let began = Instant::now();
    assert_eq!(bench.post(DEPTH), NOT_POSTED);
    assert!(began.elapsed() >= RDMA_FULL_WAIT, "it waits for a place");
    assert!(!bench.is_broken(), "a full queue is no end of the link");
    assert_eq!(bench.wire().queue().len(), 2 * DEPTH as usize);
    // To give up does not make room: the requests are in the queue still.
    bench.engine.forget(pushes[0]);
    assert_eq!(bench.post(DEPTH), NOT_POSTED);
    // A completion does, though nobody asks for that push.
    bench.wire().succeed();
    let late = bench.pending(DEPTH);
    assert_eq!(bench.engine.poll(pushes[0]), None, "given up is given up");
    for push in pushes[1..].iter().copied().chain([late]) {
        bench.wire().succeed();
        assert_eq!(bench.engine.poll(push), Some(Outcome::Acked));
    }
    assert_eq!(bench.engine.flight.in_use(), 0);
}

/// Threads push as fast as they can, one completes: every push ends once, and the queue holds what it can.
#[test]
fn many_threads_never_overrun_the_send_queue() {
    const THREADS: u32 = 4;
    const PUSHES: u32 = 2_000;
    let bench = Bench::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let bench = &bench;
                scope.spawn(move || {
                    let (mut acked, mut refused) = (0, 0_u32);
                    while acked < PUSHES {
                        match bench.post(thread) {
                            Posted::Pending(id) => {
                                while bench.engine.poll(id).is_none() {
                                    bench.engine.wait(id, Duration::from_millis(1));
                                }
                                acked += 1;
                            }
                            posted => {
                                assert_eq!(posted, NOT_POSTED);
                                refused += 1;
                            }
                        }
                        // More posters than places.
                        if let Posted::Pending(id) = bench.post(thread + THREADS) {
                            bench.engine.forget(id);
                        }
                    }
                    refused
                })
            })
            .collect();
        let (bench, done) = (&bench, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if bench.wire().state().queue.is_empty() {
                    std::thread::yield_now();
                } else {
                    bench.wire().succeed();
                }
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let most = bench.wire().state().most;
    assert!(most <= 2 * DEPTH as usize, "{most} requests in a queue for {SEND_WRS}");
    assert!(!bench.is_broken());
}

#[test]
fn a_device_that_is_gone_ends_pushes_that_never_complete() {
    let bench = Bench::new();
    let push = bench.pending(0);
    bench.engine.wait(push, Duration::from_millis(5));
    assert_eq!(bench.engine.poll(push), None, "slow is not gone");
    assert!(bench.wire().sleeps.load(Ordering::Relaxed) > 0);
    bench.wire().lost.store(true, Ordering::Relaxed);
    bench.engine.wait(push, Duration::from_millis(5));
    assert_eq!(bench.engine.poll(push), DISCONNECTED);
    assert_eq!(bench.post(1), NOT_POSTED);
    // A completion that comes after all is nobody's.
    bench.wire().succeed();
    bench.engine.drain();
    assert_eq!((bench.engine.poll(push), bench.engine.flight.in_use()), (None, 0));
}

/// What a beat reads of a lease in order.
fn header(server: u64, seal: u64, beat: u64) -> [(u64, u64); 3] {
    [(SERVER_INCARNATION_OFFSET, server), (SEAL_OFFSET, seal), (SERVER_BEAT_OFFSET, beat)]
}

#[test]
fn beats_are_one_at_a_time_and_bring_seal_and_server_beat() {
    let bench = Bench::new();
    bench.engine.beat(41, 7);
    let [words, read] = &bench.wire().queue()[..] else { panic!("two requests") };
    assert_eq!((words.to, words.flags), ((REMOTE.address + NODE_BEAT_OFFSET, 77), INLINE));
    assert_eq!(words.inline, [41_u64.to_le_bytes(), 7_u64.to_le_bytes()].concat());
    assert_eq!((read.flags, read.from.2), (SIGNALED, PAGE_KEY));
    bench.engine.beat(42, 7);
    assert_eq!(bench.wire().queue().len(), 2, "one at a time");
    bench.wire().land(&header(SERVER.0, 0, 1234));
    assert_eq!((bench.engine.peer_beat(), bench.engine.is_sealed()), (1234, false));
    let push = bench.pending(0);
    bench.engine.beat(43, 7);
    bench.wire().succeed();
    bench.wire().land(&header(SERVER.0, 1, 1235));
    // The push is complete, but the lease was sealed: it is not acked (R2).
    assert_eq!((bench.engine.peer_beat(), bench.engine.is_sealed()), (1235, true));
    assert_eq!(bench.engine.poll(push), Some(Outcome::Sealed));
    assert_eq!(bench.post(1), Posted::Done(Outcome::Sealed));
}

#[test]
fn memory_of_another_life_acks_nothing() {
    let bench = Bench::new();
    let push = bench.pending(0);
    bench.engine.beat(1, 1);
    bench.wire().succeed();
    bench.wire().land(&header(SERVER.0 + 1, 0, 1));
    assert_eq!(bench.engine.poll(push), DISCONNECTED, "R6");
    assert!(bench.is_broken());
    assert_eq!(bench.engine.peer_beat(), 0, "nothing of it is believed");
}

#[test]
fn a_beat_that_is_refused_counts_as_the_pushes_do() {
    let bench = Bench::new();
    bench.wire().will(Answer::Take(0, libc::ENOMEM));
    bench.engine.beat(1, 1);
    assert!(!bench.is_broken());
    bench.engine.beat(2, 1);
    assert_eq!(bench.wire().queue().len(), 2, "the next one is posted");
    let bench = Bench::new();
    bench.wire().will(Answer::Take(1, libc::ENOMEM));
    bench.engine.beat(1, 1);
    assert!(bench.is_broken());
}

fn buffer() -> Buffer {
    Buffer { memory: Arc::new(Mapping::anonymous(Buffer::BYTES).unwrap()), key: 8 }
}

#[test]
fn a_bulk_read_that_fails_says_how_far_it_came_and_why() {
    let bench = Bench::new();
    let remote = RemoteMemory { address: 1 << 41, bytes: 3 * RDMA_BULK_BYTES as u64, key: 99 };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| bench.engine.read_bulk(remote, &buffer()));
        while bench.wire().queue().len() < 3 {
            assert!(!reader.is_finished(), "it must wait");
            std::thread::yield_now();
        }
        bench.wire().succeed();
        bench.wire().fail(status::IBV_WC_REM_ACCESS_ERR);
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        let text = error.to_string();
        assert!(
            text.contains(&format!("of {} bytes", remote.bytes)) && text.contains("remote access"),
            "{text}"
        );
    });
    assert_eq!(bench.engine.flight.in_use(), 0);
    let huge = RemoteMemory { bytes: 1 << 40, ..remote };
    assert_eq!(bench.engine.read_bulk(huge, &buffer()).unwrap_err().kind, ErrorKind::TooLarge);
    let wrapping = RemoteMemory { address: u64::MAX - 10, ..remote };
    assert_eq!(bench.engine.read_bulk(wrapping, &buffer()).unwrap_err().kind, ErrorKind::TooLarge);
}
