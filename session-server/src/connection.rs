//! One peer, served by one thread: hello, then request and answer, in order, until either side ends it.

use crate::decide::{ConnectionId, Event};
use crate::door::{Door, Incoming};
use crate::execute::{Answer, Executor};
use selvage_fabric::control::message::{Role, ToServer};
use selvage_fabric::control::stream::{Closer, Peer};
use selvage_fabric::error::{ErrorKind, Result};
use selvage_fabric::limits::{HELLO_WAIT, WAIT};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a thread sleeps in a receive at most. A peer may be silent for ever; only its end matters.
const RECEIVE_WAIT: Duration = Duration::from_secs(3600);

/// Serves a peer until it ends. Bad peers are counted and cut off; nobody else notices.
pub(crate) fn serve(executor: &Executor, door: &Door, connection: ConnectionId, incoming: Incoming) {
    let (sender, answers) = mpsc::channel();
    let served = Closer::new(&incoming).and_then(|closer| {
        // From here on the connection can be cut from outside, in its hello, too.
        let local_ip = closer.local_ip();
        executor.connect(connection, sender, closer, local_ip);
        converse(executor, door, connection, incoming, &answers)
    });
    door.porch.leave(connection);
    executor.disconnect(connection);
    executor.handle(Event::Closed { connection });
    if let Err(error) = served {
        match error.kind {
            ErrorKind::Unreachable => tracing::debug!(connection = connection.0, "{error}"),
            _ => {
                tracing::warn!(connection = connection.0, "cut a peer off: {error}");
                executor.handle(Event::BadPeer);
            }
        }
    }
}

fn converse(
    executor: &Executor,
    door: &Door,
    connection: ConnectionId,
    incoming: Incoming,
    answers: &mpsc::Receiver<Answer>,
) -> Result<()> {
    let begun = Instant::now();
    let mut stream = door.access.open(incoming)?;
    let greeted = executor.incarnation();
    let (hello, protocol) = stream.server_hello(
        &door.access.cluster,
        greeted,
        |hello, peer| door.access.check(&hello.role, peer),
        HELLO_WAIT.saturating_sub(begun.elapsed()),
    )?;
    door.porch.leave(connection);
    // Of a process of another host only its node can say which it is; it is one among those of its node.
    let (pid, local) = match (stream.peer(), &hello.role) {
        (Peer::User { pid, .. }, _) => (*pid, true),
        (Peer::Member(_), Role::Node { pid, .. }) => (*pid, false),
        (Peer::Member(_), _) => (0, false),
    };
    tracing::debug!(connection = connection.0, pid, local, protocol, role = ?hello.role, "peer");
    executor.handle(Event::Opened { connection, role: hello.role, pid, local, greeted });
    loop {
        let message: ToServer = match stream.recv(RECEIVE_WAIT) {
            Ok((message, _)) => message,
            Err(error) if error.kind == ErrorKind::Timeout => continue,
            Err(error) => return Err(error),
        };
        executor.handle(Event::Request { connection, message });
        match answers.recv() {
            Ok(Answer::Message(message)) => stream.send(&message, None, WAIT)?,
            Ok(Answer::Lease(message, lease)) => stream.send(&message, Some(lease.memory().fd()), WAIT)?,
            Ok(Answer::Cut) | Err(_) => return Ok(()),
        }
    }
}
