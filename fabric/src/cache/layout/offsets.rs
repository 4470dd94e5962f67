//! Where every field lies, asserted: a byte that moves does not compile, and shall bump
//! [`super::LAYOUT_VERSION`].

use super::{
    BookRecord, COUNTERS, Chunk, Content, ERRORS, Entry, HEADER_BYTES, Header, HoldRecord, Place,
    ProcessRecord, Shard, SlotRecord, TIMES, Tally, Timing, VIEW_BYTES_MAX, ViewBuffer,
};
use crate::error::ErrorKind;
use crate::numbers::{NodeCounter, NodeTime};
use std::mem::{offset_of, size_of};

const _: () = {
    assert!(size_of::<Header>() <= HEADER_BYTES);
    assert!(offset_of!(Header, magic) == 0 && offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, checksum) == 12 && offset_of!(Header, total_bytes) == 16);
    assert!(offset_of!(Header, incarnation) == 24 && offset_of!(Header, cache_bytes) == 32);
    assert!(offset_of!(Header, lease_bytes) == 40 && offset_of!(Header, lock_hold_ms) == 48);
    assert!(offset_of!(Header, sessions_max) == 56 && offset_of!(Header, books) == 60);
    assert!(offset_of!(Header, archive_bytes_max) == 64 && offset_of!(Header, processes_max) == 68);
    assert!(offset_of!(Header, waiters_max) == 72 && offset_of!(Header, node_bytes) == 76);
    assert!(offset_of!(Header, node) == 80 && offset_of!(Header, reserved_a) == 112);
    assert!(offset_of!(Header, state) == 120 && offset_of!(Header, quarantine_hint) == 124);
    assert!(offset_of!(Header, view_sequence) == 128 && offset_of!(Header, mandate_until_ns) == 136);
    assert!(offset_of!(Header, reserved_b) == 144 && offset_of!(Header, unprotected) == 184);
    assert!(size_of::<Header>() == 192);

    assert!(offset_of!(ViewBuffer, term) == 0 && offset_of!(ViewBuffer, number) == 4);
    assert!(offset_of!(ViewBuffer, bytes) == 8 && offset_of!(ViewBuffer, words) == 16);
    assert!(size_of::<ViewBuffer>() == VIEW_BYTES_MAX + 64);

    assert!(offset_of!(ProcessRecord, life) == 0 && offset_of!(ProcessRecord, pid) == 4);
    assert!(offset_of!(ProcessRecord, doorbell) == 8 && size_of::<ProcessRecord>() == 64);

    assert!(offset_of!(Timing, counts) == 0 && offset_of!(Timing, sum_ns) == 216);
    assert!(offset_of!(Timing, failed) == 224 && offset_of!(Timing, reserved) == 232);
    assert!(size_of::<Timing>() == 256);
    assert!(offset_of!(Tally, counters) == 0 && offset_of!(Tally, errors) == 512);
    assert!(offset_of!(Tally, times) == 768 && size_of::<Tally>() == 2816);
    assert!(NodeCounter::ALL.len() <= COUNTERS && ErrorKind::ALL.len() <= ERRORS);
    assert!(NodeTime::ALL.len() <= TIMES);

    assert!(offset_of!(HoldRecord, state) == 0 && offset_of!(HoldRecord, entry) == 4);
    assert!(offset_of!(HoldRecord, block) == 8 && offset_of!(HoldRecord, block_bytes) == 12);
    assert!(offset_of!(HoldRecord, staged) == 16 && offset_of!(HoldRecord, staged_bytes) == 20);
    assert!(offset_of!(HoldRecord, next) == 24 && offset_of!(HoldRecord, previous) == 28);
    assert!(offset_of!(HoldRecord, ticket) == 32 && offset_of!(HoldRecord, granted_ns) == 40);
    assert!(size_of::<HoldRecord>() == 64);

    assert!(offset_of!(Shard, lock) == 0 && offset_of!(Shard, dirty) == 4);
    assert!(offset_of!(Shard, sessions) == 16 && offset_of!(Shard, others) == 24);
    assert!(offset_of!(Shard, bytes_used) == 32 && offset_of!(Shard, safe) == 40);
    assert!(size_of::<Shard>() == 128);

    assert!(offset_of!(Content, version_counter) == 0 && offset_of!(Content, expiry_ms) == 8);
    assert!(offset_of!(Content, version_epoch) == 16 && offset_of!(Content, archive_bytes) == 20);
    assert!(offset_of!(Content, block) == 24 && offset_of!(Content, state) == 28);
    assert!(size_of::<Content>() == 32);

    assert!(offset_of!(Place, server) == 0 && offset_of!(Place, acked_counter) == 8);
    assert!(offset_of!(Place, acked_epoch) == 16 && offset_of!(Place, book) == 20);
    assert!(offset_of!(Place, slot) == 24 && offset_of!(Place, state) == 28);
    assert!(offset_of!(Place, blocks) == 32 && size_of::<Place>() == 40);

    assert!(offset_of!(Entry, id) == 0 && offset_of!(Entry, used) == 16);
    assert!(offset_of!(Entry, next) == 20 && offset_of!(Entry, holder) == 24);
    assert!(offset_of!(Entry, holds) == 28 && offset_of!(Entry, content) == 32);
    assert!(offset_of!(Entry, current) == 96 && offset_of!(Entry, waiters) == 100);
    assert!(offset_of!(Entry, next_ticket) == 104 && offset_of!(Entry, created_ms) == 112);
    assert!(offset_of!(Entry, absolute_ms) == 120 && offset_of!(Entry, pushed_expiry_ms) == 128);
    assert!(offset_of!(Entry, flags) == 136 && offset_of!(Entry, counted_state) == 140);
    assert!(offset_of!(Entry, counted_safe) == 144 && offset_of!(Entry, counted_bytes) == 148);
    assert!(offset_of!(Entry, places) == 152 && offset_of!(Entry, predecessor) == 312);
    assert!(offset_of!(Entry, successor) == 316 && size_of::<Entry>() == 320);

    assert!(offset_of!(BookRecord, state) == 0 && offset_of!(BookRecord, name_bytes) == 4);
    assert!(offset_of!(BookRecord, incarnation) == 8 && offset_of!(BookRecord, lease) == 16);
    assert!(offset_of!(BookRecord, heap_bytes) == 24 && offset_of!(BookRecord, chunk_bytes) == 32);
    assert!(offset_of!(BookRecord, slot_count) == 40 && offset_of!(BookRecord, chunks) == 44);
    assert!(offset_of!(BookRecord, chunk_units) == 48 && offset_of!(BookRecord, name) == 56);
    assert!(size_of::<BookRecord>() == 128);

    assert!(offset_of!(SlotRecord, sequence) == 0 && offset_of!(SlotRecord, entry) == 4);
    assert!(offset_of!(SlotRecord, blocks) == 8 && offset_of!(SlotRecord, process) == 16);
    assert!(offset_of!(SlotRecord, pid) == 20 && offset_of!(SlotRecord, link) == 24);
    assert!(size_of::<SlotRecord>() == 32);

    assert!(offset_of!(Chunk, word) == 0 && offset_of!(Chunk, cursor) == 4);
    assert!(offset_of!(Chunk, full) == 8 && offset_of!(Chunk, witness) == 12 && size_of::<Chunk>() == 16);
};
