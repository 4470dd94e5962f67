//! [`Work`]: what is done with a session that is open: commit, destroy, regenerate. One name for the three,
//! so that their asynchronous forms wait for the lock, for a worker and for the end in one way.

use super::commit::{self, Commit, UnderWay};
use super::open::OpenSession;
use super::operations::Ended;
use super::session::Ack;
use super::unlocked::Locking;
use crate::cache::Hold;
use crate::error::{Error, Result};

/// What shall be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// [`OpenSession::commit`].
    Commit(Ack),
    /// [`OpenSession::destroy`].
    Destroy,
    /// [`OpenSession::regenerate`].
    Regenerate,
}

/// How far work came without waiting.
#[allow(clippy::large_enum_variant, reason = "boxing would allocate for every request that need not wait")]
pub(super) enum Came {
    /// It has ended.
    Ended(Ended),
    /// A commit stands in the cache, and its pushes go on.
    UnderWay(OpenSession, UnderWay),
    /// It needs a thread that may block.
    Blocks(OpenSession),
}

/// How far the lock of an unlocked handle came without waiting.
pub(super) enum Begun {
    /// There is nothing to wait for: the handle has the lock, or none is needed.
    Ready,
    /// There was nothing to do.
    Committed(Result<super::Committed>),
    /// The lock will be granted in its turn.
    Wait(Hold),
    /// The lock is granted, and going on needs a thread that may block.
    Blocks(Hold),
}

impl Work {
    /// Begins with the lock. Never waits.
    pub fn begin(self, session: &mut OpenSession) -> Result<Begun> {
        if !session.must_lock() {
            return Ok(Begun::Ready);
        }
        match self {
            Self::Commit(_) => {
                if let Some(committed) = session.commit_nothing()? {
                    return Ok(Begun::Committed(Ok(committed)));
                }
            }
            Self::Destroy => session.changes.clear(),
            Self::Regenerate => {}
        }
        match session.begin_lock()? {
            Locking::Waiting(hold) => Ok(Begun::Wait(hold)),
            Locking::Granted(hold) => Self::granted(session, hold),
        }
    }

    /// Goes on when the lock was granted. Never waits.
    pub fn granted(session: &mut OpenSession, hold: Hold) -> Result<Begun> {
        Ok(session.catch_up(hold, false)?.map_or(Begun::Ready, Begun::Blocks))
    }

    /// Does it, as far as that needs no waiting; with the lock, if it needs one.
    pub fn try_now(self, mut session: OpenSession) -> Came {
        match self {
            Self::Commit(ack) if !commit::must_wait(&session.host, session.facts.id, ack) => {
                let committed = match session.commit_now() {
                    Ok(Commit::UnderWay(under_way)) => return Came::UnderWay(session, under_way),
                    Ok(Commit::Ended(committed)) => Ok(committed),
                    Err(error) => Err(error),
                };
                session.unlock();
                Came::Ended(Ended::Committed(session, committed))
            }
            Self::Destroy | Self::Regenerate if session.can_end_at_once() => Came::Ended(self.run(session)),
            _ => Came::Blocks(session),
        }
    }

    /// Does it, on a thread that may block.
    pub fn run(self, mut session: OpenSession) -> Ended {
        match self {
            Self::Commit(ack) => {
                let committed = session.commit(ack);
                Ended::Committed(session, committed)
            }
            Self::Destroy => Ended::Destroyed(session.destroy()),
            Self::Regenerate => {
                let regenerated = session.regenerate();
                Ended::Regenerated(session, regenerated)
            }
        }
    }

    /// As [`Self::run`], with a lock that was granted and not looked behind.
    pub fn run_with(self, mut session: OpenSession, hold: Hold) -> Ended {
        match session.catch_up(hold, true) {
            Ok(_) => self.run(session),
            Err(error) => self.failed(session, error),
        }
    }

    /// How it ends if it could not be begun.
    pub fn failed(self, session: OpenSession, error: Error) -> Ended {
        match self {
            Self::Commit(_) => Ended::Committed(session, Err(error)),
            Self::Destroy => Ended::Destroyed(Err(error)),
            Self::Regenerate => Ended::Regenerated(session, Err(error)),
        }
    }
}
