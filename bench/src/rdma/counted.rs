//! How many instructions the push engine takes for one push, counted by callgrind.
//!
//! What is counted is everything from `post` to the ack: bounds, the entry of the table, building both
//! requests, fetching the completion and noting it. Instead of `ibv_post_send` and `ibv_poll_cq` stands a
//! wire that remembers the last id and gives it back: its few instructions are in the number, too, and the
//! driver's, which are the card's maker's, are not. Two runs of different length are compared, so that
//! starting and ending the program counts for nothing.

use anyhow::{Context, Result, bail, ensure};
use selvage_fabric::control::message::RemoteMemory;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::lease::{BlockOffset, CELL_BYTES, LeaseGeometry, LeaseHeader, Sequence, SlotIndex};
use selvage_fabric::transport::memory::create;
use selvage_fabric::transport::verbs::measured::{Completions, Engine, Lease, Source, Wire, sys};
use selvage_fabric::transport::{Outcome, Posted, Push};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Instructions of one push, archive and cell, in a release build. Whoever makes the engine leaner lowers it.
pub const PUSH_INSTRUCTIONS: f64 = 309.0;
/// What may be added before it counts as grown: other compilers order code otherwise.
const GROWTH_MAX: f64 = 1.10;
/// Pushes of the two runs.
const PUSHES: [u64; 2] = [1_000, 21_000];

/// A wire on which everything ends at once.
struct Echo {
    /// The id of what was posted last, plus one; 0 after it was given back.
    posted: AtomicU64,
}

// SAFETY: `poll` returns the one entry that it has written; `post` keeps nothing but a number.
unsafe impl Wire for Echo {
    #[inline]
    unsafe fn post(&self, first: *mut sys::ibv_send_wr, _refused: &mut *mut sys::ibv_send_wr) -> i32 {
        let mut last = first;
        loop {
            // SAFETY: the chain is whole (the caller's contract).
            let next = unsafe { (*last).next };
            if next.is_null() {
                break;
            }
            last = next;
        }
        // SAFETY: as above.
        let id = unsafe { (*last).wr_id };
        self.posted.store(id + 1, Ordering::Relaxed);
        0
    }

    #[inline]
    fn poll<'a>(&self, room: &'a mut Completions) -> &'a [sys::ibv_wc] {
        let id = self.posted.load(Ordering::Relaxed);
        let Some(wr_id) = id.checked_sub(1) else { return &[] };
        self.posted.store(0, Ordering::Relaxed);
        let completion = sys::ibv_wc {
            wr_id,
            status: sys::ibv_wc_status::IBV_WC_SUCCESS,
            opcode: 0,
            vendor_err: 0,
            byte_len: 0,
            imm_data_invalidated_rkey_union: sys::imm_data_invalidated_rkey_union_t { imm_data: 0 },
            qp_num: 0,
            src_qp: 0,
            wc_flags: 0,
            pkey_index: 0,
            slid: 0,
            sl: 0,
            dlid_path_bits: 0,
        };
        // SAFETY: there is room for at least one.
        unsafe { room.first().write(completion) };
        // SAFETY: written above.
        unsafe { room.written(1) }
    }

    fn arm(&self) {}

    fn sleep(&self, _timeout: Duration) {}

    fn is_lost(&self) -> bool {
        false
    }
}

/// Makes so many pushes over a wire that answers at once.
///
/// # Errors
/// If one is not acked.
pub fn pushes(count: u64) -> Result<()> {
    let geometry = LeaseGeometry { slot_count: 64, heap_bytes: 1 << 20, chunk_bytes: 1 << 20 };
    let header = LeaseHeader {
        geometry,
        node: "bench".to_owned(),
        node_incarnation: Incarnation(1),
        server_incarnation: Incarnation(2),
    };
    let segment = super::bare::Segment::new(create(&header, false)?.region());
    let memory = RemoteMemory { address: 1 << 32, bytes: geometry.total_bytes(), key: 7 };
    let lease = Lease { memory, geometry, server: header.server_incarnation };
    let source = Source { region: segment.region().clone(), key: 5 };
    let engine = Engine::new(Echo { posted: AtomicU64::new(0) }, lease, source, 128, |_| Ok(6))?;
    let (archive, cell) = (segment.bytes(8192, 1024), [0x5a; CELL_BYTES]);
    for at in 0..count {
        let push = Push {
            slot: SlotIndex(at as u32 % 64),
            sequence: Sequence(at as u32),
            cell: &cell,
            block: Some((BlockOffset(at as u32 % 64 * 8), archive)),
        };
        let Posted::Pending(id) = engine.post(&push) else { bail!("push {at} was not posted") };
        ensure!(engine.poll(id) == Some(Outcome::Acked), "push {at} was not acked");
    }
    Ok(())
}

/// Counts, tells, and judges; false if the engine has grown.
///
/// # Errors
/// Without valgrind, or if a run fails.
pub fn judge() -> Result<bool> {
    ensure!(!cfg!(debug_assertions), "instructions are counted in a release build (use --release)");
    let [short, long] = PUSHES;
    let instructions = (collected(long)? - collected(short)?) as f64 / (long - short) as f64;
    let good = instructions <= PUSH_INSTRUCTIONS * GROWTH_MAX;
    let verdict = if good { "ok" } else { "MISSED" };
    println!(
        "{verdict}: the push engine takes {instructions:.1} instructions per push; {PUSH_INSTRUCTIONS} are \
         on record, and {GROWTH_MAX} times that is the limit"
    );
    Ok(good)
}

/// Instructions of this program making so many pushes.
fn collected(count: u64) -> Result<u64> {
    let program = std::env::current_exe().context("this program has no file")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["engine", "--pushes", &count.to_string()])
        .output()
        .context("cannot run valgrind (apt-get install valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "under callgrind: {}: {text}", output.status);
    let line = text.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
    line.and_then(|count| count.parse().ok()).with_context(|| format!("callgrind tells no count: {text}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_counted_push_is_acked() {
        super::pushes(1000).unwrap();
    }
}
