//! Why a link is broken: one atomic word that keeps the first cause, and the sentence for people.

use crate::sync::words::{AtomicU64, Ordering};
use crate::transport::FailKind;
use rdma_mummy_sys::ibv_wc_status as status;

/// The first cause of a link's end. What a broken queue pair flushes is no cause, so a real one takes its
/// place: completions can be looked at in another order than they came.
#[derive(Default)]
pub(super) struct Fault(AtomicU64);

/// A cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// A request completed with this status; the card's own code.
    Completion(u32, u32),
    /// The library refused a request with this error number.
    Post(u32),
    /// The memory at the other end is not the lease any more (R6).
    Foreign,
    /// The device has failed or its address is another; the device says more.
    Device,
}

const KIND_SHIFT: u32 = 56;
const CODE_SHIFT: u32 = 32;
const CODE_MASK: u64 = 0xff_ffff;

impl Fault {
    /// Whether there is a cause.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// The cause.
    pub(super) fn cause(&self) -> Option<Cause> {
        Cause::of(self.0.load(Ordering::Acquire))
    }

    /// Takes note of a cause, unless there is a better one.
    pub(super) fn set(&self, cause: Cause) {
        let mut seen = self.0.load(Ordering::Acquire);
        while Cause::of(seen).is_none_or(|known| known.is_flush() && !cause.is_flush()) {
            match self.0.compare_exchange(seen, cause.word(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// How pushes end that were under way.
    pub(super) fn kind(&self) -> FailKind {
        match self.cause() {
            Some(Cause::Completion(status::IBV_WC_REM_ACCESS_ERR, _)) => FailKind::Revoked,
            _ => FailKind::Disconnected,
        }
    }
}

impl Cause {
    fn word(self) -> u64 {
        match self {
            Self::Completion(status, code) => {
                1 << KIND_SHIFT | (u64::from(code) & CODE_MASK) << CODE_SHIFT | u64::from(status)
            }
            Self::Post(errno) => 2 << KIND_SHIFT | u64::from(errno),
            Self::Foreign => 3 << KIND_SHIFT,
            Self::Device => 4 << KIND_SHIFT,
        }
    }

    fn of(word: u64) -> Option<Self> {
        let value = word as u32;
        match word >> KIND_SHIFT {
            1 => Some(Self::Completion(value, (word >> CODE_SHIFT & CODE_MASK) as u32)),
            2 => Some(Self::Post(value)),
            3 => Some(Self::Foreign),
            4 => Some(Self::Device),
            _ => None,
        }
    }

    fn is_flush(self) -> bool {
        matches!(self, Self::Completion(status::IBV_WC_WR_FLUSH_ERR, _))
    }

    /// What happened, and what to do about it.
    pub(super) fn text(self) -> String {
        match self {
            Self::Completion(code, vendor) => {
                let (name, remedy) = status_text(code);
                format!("completion status {code} ({name}, vendor {vendor:#x}): {remedy}")
            }
            Self::Post(errno) => {
                let error = std::io::Error::from_raw_os_error(errno.cast_signed());
                format!("the send queue refused a request: {error}; the link is opened again")
            }
            Self::Foreign => {
                "the memory at the server belongs to another life of it; the link is opened again".to_owned()
            }
            Self::Device => "the device or its port is of no more use".to_owned(),
        }
    }
}

fn status_text(code: u32) -> (&'static str, &'static str) {
    match code {
        status::IBV_WC_LOC_LEN_ERR => {
            ("local length", "the archive is longer than the port's largest message")
        }
        status::IBV_WC_LOC_PROT_ERR => {
            ("local protection", "the cache segment is not registered any more; restart the worker")
        }
        status::IBV_WC_WR_FLUSH_ERR => {
            ("flushed", "the queue pair was broken before; the link is opened again")
        }
        status::IBV_WC_REM_INV_REQ_ERR => {
            ("remote invalid request", "the server does not let this queue pair write; see its log")
        }
        status::IBV_WC_REM_ACCESS_ERR => {
            ("remote access", "the server has taken its memory away: it has sealed the lease, or it is going")
        }
        status::IBV_WC_REM_OP_ERR => {
            ("remote operation", "the server's device has failed; see its host's log")
        }
        status::IBV_WC_RETRY_EXC_ERR => (
            "retries exceeded",
            "nothing answers: the server's host, its port, or the network between is down or loses packets",
        ),
        status::IBV_WC_RNR_RETRY_EXC_ERR => {
            ("receiver not ready", "the server is no Selvage server of this version")
        }
        status::IBV_WC_FATAL_ERR => ("fatal", "this host's device has failed; see the kernel's log"),
        status::IBV_WC_RESP_TIMEOUT_ERR => ("response time-out", "the server's device does not answer"),
        _ => ("no common one", "see ibv_wc_status in the manual page ibv_poll_cq(3)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_real_cause_counts() {
        let fault = Fault::default();
        assert!(!fault.is_set());
        assert_eq!(fault.kind(), FailKind::Disconnected);
        fault.set(Cause::Completion(status::IBV_WC_WR_FLUSH_ERR, 0));
        assert!(fault.is_set());
        fault.set(Cause::Completion(status::IBV_WC_REM_ACCESS_ERR, 0x88));
        fault.set(Cause::Completion(status::IBV_WC_RETRY_EXC_ERR, 0));
        fault.set(Cause::Completion(status::IBV_WC_WR_FLUSH_ERR, 0));
        fault.set(Cause::Device);
        assert_eq!(fault.cause(), Some(Cause::Completion(status::IBV_WC_REM_ACCESS_ERR, 0x88)));
        assert_eq!(fault.kind(), FailKind::Revoked);
    }

    #[test]
    fn every_cause_survives_its_word_and_says_what_to_do() {
        let completions = (1..=22).map(|status| Cause::Completion(status, 0xab));
        for cause in completions.chain([Cause::Post(12), Cause::Foreign, Cause::Device]) {
            let fault = Fault::default();
            fault.set(cause);
            assert_eq!(fault.cause(), Some(cause));
            let text = cause.text();
            assert!(text.len() > 30, "{text}");
            if let Cause::Completion(status, _) = cause {
                assert!(text.contains(&status.to_string()) && text.contains("0xab"), "{text}");
            }
        }
    }
}
