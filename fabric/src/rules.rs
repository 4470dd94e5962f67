//! The protocol rules R1 to R16, as names that code and tests share (`ARCHITECTURE.md`; R1 to R15 are the
//! design's).
//!
//! Each place that upholds a rule asks [`holds`]. In the product it is the constant `true` and costs nothing.
//! With the feature `mutants` (tests only) one rule can be taken out for the running thread, which is how
//! every rule's test proves that it would notice: it runs its scenario once whole and once without the rule,
//! and the second must fail.

/// A protocol rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rule {
    /// An adopter claims a session at every up server before it serves it.
    R1Claim = 1,
    /// Only a view seals, and nothing is adopted before all servers have sealed.
    R2SealByView,
    /// A handle works only on its own incarnation.
    R3Incarnation,
    /// A writer that may still write is never superseded in its slot.
    R4FreshSlot,
    /// A fetch asks all up servers.
    R5FetchAsksAll,
    /// Acks belong to a server incarnation.
    R6AckIncarnation,
    /// A named block is freed only after a later acked cell names another.
    R7Blocks,
    /// Acks count only under a valid mandate.
    R8Mandate,
    /// A tombstone goes to every lease the id was ever posted to.
    R9Destroy,
    /// Sealed leases of an incarnation are released together, when all is settled.
    R10ReleaseAsSet,
    /// "Moved" is written after the new copy is acked and reads as "not here".
    R11Moved,
    /// Epochs only rise; older terms are refused.
    R12Epochs,
    /// A touch raises the counter, frees nothing, and is sent in time.
    R13Touch,
    /// "Expired" is answered after the tombstone is acked; servers allow for clock skew.
    R14Expiry,
    /// Regenerate: new copy acked, old tombstone acked, then return.
    R15Regenerate,
    /// What was collected without a session's lock is applied to the version that is current under the lock,
    /// never to the one that was read.
    R16Merge,
}

/// Whether the rule is in force. Always true without the feature `mutants`.
#[inline(always)]
pub fn holds(rule: Rule) -> bool {
    #[cfg(feature = "mutants")]
    {
        without::REMOVED.with(|removed| removed.get() != Some(rule)) && !without::is_taken_out(rule)
    }
    #[cfg(not(feature = "mutants"))]
    {
        let _ = rule;
        true
    }
}

#[cfg(feature = "mutants")]
mod without {
    use super::Rule;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU8, Ordering};

    /// The number of the rule that the whole process does without; 0: none.
    static TAKEN_OUT: AtomicU8 = AtomicU8::new(0);

    /// Takes the rule of this number, 1 to 16, out for the whole process and for ever: for processes that
    /// tests start to see whether somebody notices.
    pub fn take_out(number: u8) {
        TAKEN_OUT.store(number, Ordering::Relaxed);
    }

    pub(super) fn is_taken_out(rule: Rule) -> bool {
        TAKEN_OUT.load(Ordering::Relaxed) == rule as u8
    }

    thread_local! {
        pub(super) static REMOVED: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Runs `scenario` on this thread with `rule` taken out.
    pub fn without<T>(rule: Rule, scenario: impl FnOnce() -> T) -> T {
        struct Restore(Option<Rule>);
        impl Drop for Restore {
            fn drop(&mut self) {
                REMOVED.with(|removed| removed.set(self.0));
            }
        }
        let _restore = Restore(REMOVED.with(|removed| removed.replace(Some(rule))));
        scenario()
    }

    /// Asserts that `scenario` succeeds as it is and fails (error or panic) without `rule`.
    pub fn assert_teeth(rule: Rule, scenario: impl Fn() -> Result<(), String>) {
        if let Err(why) = scenario() {
            panic!("{rule:?} in force, yet: {why}");
        }
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| without(rule, &scenario)));
        assert!(
            !matches!(caught, Ok(Ok(()))),
            "the test of {rule:?} does not notice when the rule is taken out"
        );
    }
}

#[cfg(feature = "mutants")]
pub use without::{assert_teeth, take_out, without};
