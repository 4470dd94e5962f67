//! Destroying every session of an owner: "log me out everywhere".
//!
//! The sessions may be at any node, so a process asks the director, over a connection of its own, and the
//! director has all nodes do it (`director/src/cluster/doom.rs`). Asking again is harmless, so a connection
//! that breaks is made anew until the time is over. Caller: [`super::Node`].

use super::attachment::Attachment;
use super::open::check_owner;
use super::operations::{Begun, Ended};
use crate::control::message::{FromDirector, ToDirector};
use crate::control::stream::refusal_error;
use crate::error::{Error, ErrorKind, Origin, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The director's answer needs its part of the time, at most so much.
const WAY: Duration = Duration::from_millis(100);

/// Destroys every session of an owner, wherever it is; how many there were, as far as it is known.
///
/// # Errors
/// `Invalid`, `TooLarge` for the owner; `NotYet` with what is not certain; as connecting to the director.
pub(super) fn destroy_owner(attachment: &Attachment, owner: &str, deadline: Instant) -> Result<u64> {
    if owner.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, Origin::Node, "the owner's name is empty"));
    }
    check_owner(Some(owner))?;
    loop {
        let pause = attachment.config.timing.heartbeat();
        match ask(attachment, owner, deadline) {
            Err(error)
                if may_pass(&error) && Instant::now() + pause < deadline && !attachment.is_stopping() =>
            {
                tracing::debug!(%error, "the director is asked again");
                attachment.pause(pause);
            }
            ended => return ended,
        }
    }
}

/// Begins to destroy them: always pending.
pub(super) fn begin(attachment: &Arc<Attachment>, owner: &str, deadline: Instant, user_data: u64) -> Begun {
    let (op, owner) = (attachment.operations.begin(), owner.to_owned());
    let job = move |attachment: &Arc<Attachment>| {
        let destroyed = destroy_owner(attachment, &owner, deadline);
        attachment.operations.complete(op, user_data, Ended::OwnerDestroyed(destroyed));
    };
    attachment.operations.submit_patient(attachment, Box::new(job));
    Begun::Pending(op)
}

fn ask(attachment: &Attachment, owner: &str, deadline: Instant) -> Result<u64> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let silence = attachment.config.timing.silence();
    let mut stream = attachment.ways.to_director_as_application(silence.min(left()))?;
    let time = left();
    let within_ms = (time - WAY.min(time / 4)).as_millis() as u32;
    stream.send(&ToDirector::DestroyOwner { owner: owner.to_owned(), within_ms }, None, silence)?;
    match stream.recv::<FromDirector>(left())?.0 {
        FromDirector::OwnerDestroyed { sessions } => Ok(sessions),
        FromDirector::Refused(refusal) => Err(refusal_error(&refusal)),
        _ => Err(Error::new(ErrorKind::Corrupt, Origin::Node, "the director answered something else")),
    }
}

/// Whether asking again may help: the director restarts, or has too many guests of this node.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Busy)
}
