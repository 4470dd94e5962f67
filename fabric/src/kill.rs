//! Kill points: the named steps at which tests end or stop a process.
//!
//! `kill_point!("push.cell")` is nothing but a check of the name, unless the feature `kill-points` is on,
//! which is for tests only. Then a process that finds [`BOARD_VARIABLE`] in its environment maps the *board*
//! that it names, a file shared by all processes of a test: it counts each pass of each point there, and when
//! a pass uses up an order that the test has put there, the process sends SIGKILL or SIGSTOP to itself, right
//! there.
//!
//! Invariant: [`POINTS`] is the only list of names; a point of another name does not compile, and the tests
//! fail for a name that no process passes. Callers: the steps themselves, in all crates; `tests/kills`.

/// Every kill point. The part before the first full stop is the step that it belongs to.
pub const POINTS: [&str; 83] = [
    "push.begun",
    "push.block",
    "push.cell",
    "push.written",
    "push.fenced",
    "push.posted",
    "push.counted",
    "push.freed",
    "commit.relocked",
    "commit.merged",
    "commit.staged",
    "commit.replaced",
    "commit.published",
    "commit.landed",
    "destroy.removed",
    "destroy.posted",
    "destroy.acked",
    "destroy.fetched",
    "regenerate.inserted",
    "regenerate.published",
    "regenerate.copied",
    "regenerate.passed",
    "regenerate.buried",
    "regenerate.graced",
    "touch.raised",
    "touch.pushed",
    "expire.asked",
    "expire.answered",
    "expire.swept",
    "expire.buried",
    "lock.shard",
    "lock.joined",
    "lock.waiting",
    "lock.granted",
    "lock.left",
    "lock.freed",
    "lock.demoted",
    "allocate.taken",
    "allocate.holds",
    "allocate.entry",
    "allocate.block",
    "allocate.slot",
    "adopt.listed",
    "adopt.inserted",
    "adopt.claimed",
    "adopt.fetched",
    "adopt.admitted",
    "adopt.pushed",
    "adopt.settled",
    "adopt.request",
    "recopy.begun",
    "recopy.posted",
    "recopy.landed",
    "recopy.moving",
    "recopy.moved",
    "quarantine.passed",
    "quarantine.asked",
    "quarantine.superseded",
    "seal.word",
    "seal.indexed",
    "seal.reported",
    "seal.view",
    "steward.taken",
    "steward.beat",
    "steward.mandate",
    "steward.view",
    "steward.repairing",
    "steward.rebuilding",
    "steward.repaired",
    "attach.claimed",
    "attach.entered",
    "attach.repaired",
    "attach.linked",
    "start.locked",
    "start.registered",
    "start.allocated",
    "start.created",
    "start.current",
    "start.lease",
    "start.server",
    "start.director",
    "leave.poisoned",
    "leave.unlinked",
];

/// Names the file of the board, for the processes that shall obey it.
pub const BOARD_VARIABLE: &str = "SELVAGE_KILL_BOARD";

/// The number of a point; a name that is not in [`POINTS`] is refused by the compiler.
///
/// # Panics
/// At compile time, for an unknown name.
pub const fn number(name: &str) -> usize {
    let mut at = 0;
    while at < POINTS.len() {
        if is_same(POINTS[at].as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("this kill point is not in the list `POINTS`")
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// A step at which tests may kill the process. Nothing in the product.
#[cfg(not(feature = "kill-points"))]
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        const { _ = $crate::kill::number($name) }
    };
}

/// A step at which tests may kill the process. Nothing in the product.
#[cfg(feature = "kill-points")]
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        $crate::kill::pass(const { $crate::kill::number($name) })
    };
}

#[cfg(feature = "kill-points")]
mod board;
#[cfg(feature = "kill-points")]
pub use board::{Board, Order, pass};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once_and_has_its_number() {
        for (at, name) in POINTS.iter().enumerate() {
            assert_eq!(number(name), at, "{name} is in the list twice");
            assert!(name.split_once('.').is_some_and(|(step, point)| !step.is_empty() && !point.is_empty()));
        }
    }
}
