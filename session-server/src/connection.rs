//! One peer, served by one thread: hello, then request and answer, in order, until either side ends it.

use crate::daemon::Access;
use crate::decide::{ConnectionId, Event};
use crate::execute::{Answer, Executor};
use selvage_fabric::control::message::ToServer;
use selvage_fabric::control::stream::{Closer, Peer, Stream};
use selvage_fabric::error::{ErrorKind, Result};
use selvage_fabric::limits::{HELLO_WAIT, WAIT};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

/// How long a thread sleeps in a receive at most. A peer may be silent for ever; only its end matters.
const RECEIVE_WAIT: Duration = Duration::from_secs(3600);

/// Serves a peer until it ends. Bad peers are counted and cut off; nobody else notices.
pub(crate) fn serve(executor: &Executor, access: &Access, connection: ConnectionId, socket: UnixStream) {
    let (sender, answers) = mpsc::channel();
    let served = Closer::new(&socket).and_then(|closer| {
        // From here on the connection can be cut from outside, in its hello, too.
        executor.connect(connection, sender, closer, None);
        converse(executor, access, connection, socket, &answers)
    });
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
    access: &Access,
    connection: ConnectionId,
    socket: UnixStream,
    answers: &mpsc::Receiver<Answer>,
) -> Result<()> {
    let mut stream = Stream::accepted(socket)?;
    let Peer::User { uid, pid } = *stream.peer() else { return Ok(()) };
    let greeted = executor.incarnation();
    let (hello, protocol) = stream.server_hello(
        &access.cluster,
        greeted,
        |hello, _| access.check(&hello.role, uid),
        HELLO_WAIT,
    )?;
    tracing::debug!(connection = connection.0, pid, protocol, role = ?hello.role, "peer");
    executor.handle(Event::Opened { connection, role: hello.role, pid, local: true, greeted });
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
