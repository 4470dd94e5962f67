//! Places: where an entry's copies are, the pushes that are open there, and the quarantine (R4). All under
//! the shard's lock.

use super::book::{Book, QUARANTINED};
use super::layout::{Place, Word, block_word, place_state, word_block};
use super::process::ProcessTable;
use super::shard::{Guard, content_version, entry_id};
use super::{BookIndex, Inner, PlaceIndex, PlaceInfo, PlaceState, ProcessId, Push, PushKind, Quarantined};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, Version};
use crate::lease::{Sequence, SlotIndex};
use crate::limits::{BLOCK_UNIT_BYTES, COPIES_MAX};
use crate::rules::{self, Rule};

/// Whether a place's state is one of the two at-rest or pushing ones with that base.
fn is(state: u32, base: u32) -> bool {
    state & !1 == base
}

impl Guard<'_> {
    /// How many active books have acked the entry's current version, at most `COPIES_MAX`.
    pub fn safe_copies(&self, index: u32) -> u32 {
        let version = content_version(self.content(index));
        let places = self.entry(index).places.iter();
        let safe = places.filter(|place| {
            place.state.read() >= place_state::ACKED
                && acked(place) == Some(version)
                && self.book(place).active_for().is_some_and(|server| {
                    server.0 == place.server.read() || !rules::holds(Rule::R6AckIncarnation)
                })
        });
        (safe.count() as u32).min(COPIES_MAX as u32)
    }

    /// Snapshot of a place, unless it is empty.
    pub fn place_info(&self, index: u32, place: u32) -> Option<PlaceInfo> {
        let words = &self.entry(index).places[place as usize];
        let state = words.state.read();
        let slot = words.slot.read().checked_sub(1)?;
        (state >= place_state::ACKED).then(|| PlaceInfo {
            index: PlaceIndex(place),
            server: Incarnation(words.server.read()),
            book: BookIndex(words.book.read()),
            slot: SlotIndex(slot),
            acked: acked(words),
            block: word_block(words.blocks[(state & 1) as usize].read()),
            state: if is(state, place_state::PUSHING) { PlaceState::Pushing } else { PlaceState::Acked },
        })
    }

    /// Opens a push: see [`super::Hold::begin_push`].
    pub fn begin_push(&self, index: u32, book: BookIndex, kind: PushKind) -> Result<Push> {
        let lease = self.cache.book(book);
        let server = lease.active_for().ok_or_else(|| {
            Error::new(ErrorKind::Unreachable, Origin::Cache, format!("lease book {} is not active", book.0))
        })?;
        let (place, fresh_slot) = match self.place_of(index, server) {
            Some(place) => (place, false),
            None => (self.take_place(index, book, server)?, true),
        };
        let words = &self.entry(index).places[place as usize];
        let state = words.state.read();
        if is(state, place_state::PUSHING) {
            return Err(busy("a push of this session to that server is open already"));
        }
        let (now, other) = (state & 1, state & 1 ^ 1);
        let block = match kind {
            PushKind::Archive(bytes) => {
                let units = bytes.div_ceil(BLOCK_UNIT_BYTES as u32);
                let intent = &words.blocks[other as usize];
                let taken = lease.heap.take(lease.heap_size(), units, index + 1, intent);
                intent.write(block_word(taken));
                if taken.is_none() {
                    if fresh_slot {
                        self.give_place(index, place);
                    }
                    let what = format!("a block of {bytes} bytes");
                    return Err(full(lease, &what));
                }
                taken
            }
            PushKind::Touch => {
                let block = word_block(words.blocks[now as usize].read());
                if block.is_none() {
                    if fresh_slot {
                        self.give_place(index, place);
                    }
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        Origin::Cache,
                        "a touch needs an acked archive at the place",
                    ));
                }
                block
            }
            PushKind::Bare => None,
        };
        if !rules::holds(Rule::R7Blocks)
            && let Some(acked) = word_block(words.blocks[now as usize].read())
        {
            lease.heap.give(lease.heap_size(), acked, index + 1);
        }
        words.state.write(place_state::PUSHING | now);
        let slot = words.slot.read() - 1;
        Ok(Push {
            place: PlaceIndex(place),
            server,
            book,
            slot: SlotIndex(slot),
            sequence: Sequence(lease.slot_records[slot].sequence.read()).next(),
            block,
            fresh: matches!(kind, PushKind::Archive(_)),
        })
    }

    /// The push is acked.
    pub fn end_push(&self, index: u32, push: &Push, version: Version, expiry_ms: u64) -> Result<()> {
        let (entry, words, state) = self.open_push(index, push)?;
        words.acked_epoch.write(version.epoch);
        words.acked_counter.write(version.counter);
        if version == content_version(self.content(index)) {
            entry.pushed_expiry_ms.write(expiry_ms);
        }
        let lease = self.cache.book(push.book);
        if lease.is_for(push.server.0) {
            lease.slot_records[push.slot.0].sequence.write(push.sequence.0);
        }
        // A touch names the acked block again; otherwise the other one (none, if bare) is the acked one from
        // now on.
        let is_touch = push.block.is_some() && !push.fresh && rules::holds(Rule::R13Touch);
        words.state.write(place_state::ACKED | (if is_touch { state & 1 } else { state & 1 ^ 1 }));
        kill_point!("push.counted");
        self.give_other_block(index, push.place.0);
        kill_point!("push.freed");
        self.count(index);
        Ok(())
    }

    /// Nothing of the push was written.
    pub fn cancel_push(&self, index: u32, push: &Push) -> Result<()> {
        let (_, words, state) = self.open_push(index, push)?;
        words.state.write(place_state::ACKED | state & 1);
        self.give_other_block(index, push.place.0);
        if acked(words).is_none() {
            self.give_place(index, push.place.0);
        }
        Ok(())
    }

    /// The push, made over the writer's `link` (0: whichever), may arrive later.
    pub fn abandon_push(&self, index: u32, push: &Push, writer: u32, link: u64) -> Result<()> {
        self.open_push(index, push)?;
        self.quarantine(index, push.place.0, writer, link);
        self.count(index);
        Ok(())
    }

    /// Gives a place's slot and blocks back, unless a stale cell in quarantine could outlive the tombstone in
    /// it (R9).
    pub fn free_place(&self, index: u32, place: PlaceIndex) -> Result<()> {
        let words = &self.entry(index).places[place.0 as usize];
        let state = words.state.read();
        if is(state, place_state::PUSHING) {
            return Err(busy("a push is open at the place"));
        }
        let gone = self.content(index).state.read() == super::layout::content_state::GONE;
        if rules::holds(Rule::R9Destroy) && gone && self.is_quarantined(index) {
            return Err(Error::new(
                ErrorKind::NotYet,
                Origin::Cache,
                "a slot of the destroyed session is in quarantine; its tombstones stay till then",
            ));
        }
        if state != place_state::EMPTY {
            self.give_place(index, place.0);
            self.count(index);
        }
        Ok(())
    }

    /// Puts every open push of the entry into quarantine: its writer died, or lost the session's lock. Over
    /// which link it wrote is not known here, so they stay until the process is gone.
    pub fn quarantine_open_pushes(&self, index: u32, writer: u32) {
        for place in 0..self.entry(index).places.len() as u32 {
            let words = &self.entry(index).places[place as usize];
            let state = words.state.read();
            if !is(state, place_state::PUSHING) {
                continue;
            }
            if rules::holds(Rule::R4FreshSlot) {
                self.quarantine(index, place, writer, 0);
            } else {
                words.state.write(place_state::ACKED | state & 1);
                self.give_other_block(index, place);
            }
        }
    }

    /// Whether a slot that the entry pushed to is in quarantine.
    pub fn is_quarantined(&self, index: u32) -> bool {
        self.quarantined_at(index).next().is_some()
    }

    /// The servers at which a slot that the entry pushed to is in quarantine.
    pub fn quarantined_at(&self, index: u32) -> impl Iterator<Item = Incarnation> {
        let segment = &self.cache.segment;
        let any = segment.header().quarantine_hint.read() != 0;
        let books = segment.books.iter().filter(move |_| any);
        let of_entry = move |book: &&Book| {
            book.quarantine().any(|slot| book.slot_records[slot].entry.read() == index + 1)
        };
        books.filter(of_entry).map(|book| Incarnation(book.record().incarnation.read()))
    }

    /// Takes up what a killed process left at a place.
    pub fn repair_places(&self, index: u32) {
        for place in 0..self.entry(index).places.len() as u32 {
            match self.entry(index).places[place as usize].state.read() {
                place_state::ALLOCATING | place_state::FREEING => self.give_place(index, place),
                state if is(state, place_state::ACKED) => self.give_other_block(index, place),
                _ => {}
            }
        }
    }

    fn place_of(&self, index: u32, server: Incarnation) -> Option<u32> {
        let at = |place: &Place| place.state.read() >= place_state::ACKED && place.server.read() == server.0;
        self.entry(index).places.iter().position(at).map(|place| place as u32)
    }

    /// An empty place with a slot of its own.
    fn take_place(&self, index: u32, book: BookIndex, server: Incarnation) -> Result<u32> {
        let places = &self.entry(index).places;
        let empty = places.iter().position(|place| place.state.read() == place_state::EMPTY);
        let place = empty.ok_or_else(|| busy("all places of the session are taken"))? as u32;
        let words = &places[place as usize];
        words.server.write(server.0);
        words.book.write(book.0);
        words.acked_epoch.write(0);
        words.acked_counter.write(0);
        words.slot.write(0);
        words.blocks.iter().for_each(|block| block.write(0));
        words.state.write(place_state::ALLOCATING);
        let lease = self.cache.book(book);
        let Some(slot) = lease.slots.take(lease.slot_count(), index + 1, &words.slot) else {
            words.slot.write(0);
            words.state.write(place_state::EMPTY);
            return Err(full(lease, "a slot"));
        };
        kill_point!("allocate.slot");
        lease.slot_records[slot].entry.write(0);
        if lease.active_for() != Some(server) {
            // The book was retired meanwhile, and may have been cleared before or after the slot was taken.
            self.give_place(index, place);
            return Err(Error::new(ErrorKind::Unreachable, Origin::Cache, "the lease book was retired"));
        }
        words.state.write(place_state::ACKED);
        Ok(place)
    }

    /// Gives everything of a place back and empties it. Can be begun anew after a kill at any point.
    fn give_place(&self, index: u32, place: u32) {
        let places = &self.entry(index).places;
        let words = &places[place as usize];
        words.state.write(place_state::FREEING);
        let lease = self.book(words);
        // In a book that has passed to another life, another place of this entry may own what has the same
        // numbers.
        let shared = || {
            places.iter().enumerate().any(|(other, at)| {
                other != place as usize
                    && at.book.read() == words.book.read()
                    && at.state.read() != place_state::EMPTY
            })
        };
        if lease.is_for(words.server.read()) || !shared() {
            for block in words.blocks.iter().filter_map(|block| word_block(block.read())) {
                lease.heap.give(lease.heap_size(), block, index + 1);
            }
            if let Some(slot) = words.slot.read().checked_sub(1) {
                lease.slots.give(slot, index + 1);
            }
        }
        words.state.write(place_state::EMPTY);
    }

    /// Frees the block that the newest acked cell does not name (R7: that cell is acked).
    fn give_other_block(&self, index: u32, place: u32) {
        let words = &self.entry(index).places[place as usize];
        let other = &words.blocks[(words.state.read() & 1 ^ 1) as usize];
        let lease = self.book(words);
        if let Some(block) = word_block(other.read()) {
            if lease.is_for(words.server.read()) {
                lease.heap.give(lease.heap_size(), block, index + 1);
            }
            other.write(0);
        }
    }

    /// Hands a place's slot and blocks to the quarantine and empties the place. Can be begun anew after a
    /// kill at any point: the slot passes last, so whoever finds it still with the entry does the whole
    /// again.
    fn quarantine(&self, index: u32, place: u32, writer: u32, link: u64) {
        let words = &self.entry(index).places[place as usize];
        let lease = self.book(words);
        let slot = words.slot.read() - 1;
        let hint = &self.cache.segment.header().quarantine_hint;
        hint.write(1);
        if lease.is_for(words.server.read()) && lease.slots.owner(slot) == index + 1 {
            let record = &lease.slot_records[slot];
            if record.entry.read() == 0 {
                // The open push may have written, or may yet write, the next sequence.
                record.sequence.write(record.sequence.read().wrapping_add(1));
            }
            record.entry.write(index + 1);
            record.process.write(writer);
            let pid = ProcessId::from_word(writer).map_or(0, |process| self.table().pid(process.slot));
            record.pid.write(pid);
            record.link.write(link);
            for (to, from) in record.blocks.iter().zip(&words.blocks) {
                to.write(from.read());
                if let Some(block) = word_block(from.read()) {
                    lease.heap.pass(block, index + 1, QUARANTINED | slot);
                }
            }
            lease.slots.pass(slot, index + 1, QUARANTINED | slot);
        }
        kill_point!("quarantine.passed");
        words.state.write(place_state::EMPTY);
        hint.write(1);
    }

    /// The place, if this very push is open there.
    fn open_push(&self, index: u32, push: &Push) -> Result<(&super::layout::Entry, &Place, u32)> {
        let entry = self.entry(index);
        let words = &entry.places[push.place.0 as usize];
        let state = words.state.read();
        let same = is(state, place_state::PUSHING)
            && words.server.read() == push.server.0
            && words.slot.read() == push.slot.0 + 1;
        if same {
            return Ok((entry, words, state));
        }
        Err(Error::new(ErrorKind::Invalid, Origin::Cache, "no such push is open"))
    }

    fn book(&self, place: &Place) -> &Book {
        self.cache.book(BookIndex(place.book.read()))
    }

    fn table(&self) -> &ProcessTable {
        &self.cache.segment.processes
    }
}

impl Book {
    /// Slots in quarantine.
    fn quarantine(&self) -> impl Iterator<Item = u32> {
        self.slots.iter(self.slot_count(), |owner| owner & QUARANTINED != 0)
    }
}

impl Inner {
    /// Slots in quarantine. Also finds out when there are none any more.
    pub(super) fn quarantined(&self) -> Vec<Quarantined> {
        let hint = &self.segment.header().quarantine_hint;
        if hint.read() == 0 {
            return Vec::new();
        }
        // Cleared before the look: who quarantines after the look sets it again.
        hint.write(0);
        crate::sync::words::fence_full();
        let mut found = Vec::new();
        for (index, book) in self.segment.books.iter().enumerate() {
            for slot in book.quarantine() {
                let record = &book.slot_records[slot];
                let Some(entry) = record.entry.read().checked_sub(1) else { continue };
                let process = ProcessId::from_word(record.process.read());
                found.push(Quarantined {
                    book: BookIndex(index as u32),
                    server: Incarnation(book.record().incarnation.read()),
                    slot: SlotIndex(slot),
                    sequence: Sequence(record.sequence.read()).next(),
                    id: entry_id(&self.segment.entries[entry]),
                    process: process.unwrap_or(ProcessId { slot: 0, generation: 0 }),
                    pid: record.pid.read(),
                    link: Some(record.link.read()).filter(|link| *link != 0),
                });
            }
        }
        if !found.is_empty() {
            hint.write(1);
        }
        found
    }

    /// Makes this process the writer of a slot in quarantine. Killed in between, it leaves a slot that waits
    /// for more than it had to: first any link of the old writer, then any of this process.
    pub(super) fn take_over_quarantined(&self, quarantined: &Quarantined, link: Option<u64>) {
        let (book, slot) = (self.book(quarantined.book), quarantined.slot.0);
        if !book.is_for(quarantined.server.0) || book.slots.owner(slot) != QUARANTINED | slot {
            return;
        }
        let record = &book.slot_records[slot];
        record.link.write(0);
        record.process.write(self.word);
        record.pid.write(self.segment.processes.pid(self.process.slot));
        record.link.write(link.unwrap_or(0));
    }

    pub(super) fn release_quarantined(&self, quarantined: &Quarantined) {
        let (book, slot) = (self.book(quarantined.book), quarantined.slot.0);
        let owner = QUARANTINED | slot;
        if !book.is_for(quarantined.server.0) || book.slots.owner(slot) != owner {
            return;
        }
        let record = &book.slot_records[slot];
        record.sequence.write(quarantined.sequence.0);
        for block in &record.blocks {
            if let Some(block) = word_block(block.read()) {
                book.heap.give(book.heap_size(), block, owner);
            }
            block.write(0);
        }
        record.entry.write(0);
        book.slots.give(slot, owner);
    }
}

fn acked(place: &Place) -> Option<Version> {
    let version = Version { epoch: place.acked_epoch.read(), counter: place.acked_counter.read() };
    (version != Version::default()).then_some(version)
}

fn busy(what: &str) -> Error {
    Error::new(ErrorKind::Busy, Origin::Cache, what)
}

fn full(lease: &Book, what: &str) -> Error {
    let info = lease.info();
    Error::new(
        ErrorKind::Full,
        Origin::Cache,
        format!(
            "the lease at {} ({} slots, {} bytes) has no room for {what}; nothing was evicted",
            info.server, info.geometry.slot_count, info.geometry.heap_bytes
        ),
    )
}
