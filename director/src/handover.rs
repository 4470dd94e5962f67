//! A director hands over to the next one: the same program, started again with the same arguments, which may
//! be a newer version by then. No connection is refused meanwhile and no request fails.
//!
//! ```text
//!  predecessor                                   successor
//!  starts it, a Unix socket as its input ──────► reads and checks its configuration
//!                                        ◄────── Prepared
//!  stops its control side
//!  sockets, control socket, lock         ──────► begins its own control side, finds out what the cluster is
//!  still serves browsers                 ◄────── Serving
//!  accepts nobody any more, ends when    ◄────── Route, at each new view: what the predecessor still
//!  nothing is under way                          serves goes by it
//! ```
//!
//! Up to `Serving` the predecessor can take everything back: it has kept its own descriptors of all that it
//! gave, and begins its control side again, which is a planned restart within one process. The lock of the
//! run folder passes with its descriptor, so nobody else can come between. Descriptors go over the socket
//! and not through `LISTEN_FDS`, which wants them at numbers from 3 on in a process of its own, and has no
//! way back. Callers: [`crate::daemon`].

use crate::inherited::Inherited;
use crate::limits;
use crate::place::{Place, Sockets};
use crate::proxy::routes::Routes;
use crate::wire;
use selvage_fabric::control::message::PROTOCOL_VERSION;
use selvage_fabric::control::stream::Stream;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::view::View;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// The argument that makes a director a successor.
pub const ARGUMENT: &str = "--take-over";
/// Version of this protocol; both sides must have the same, and the same views.
const VERSION: (u32, u32) = (1, PROTOCOL_VERSION);

/// To the predecessor.
#[derive(Debug, Serialize, Deserialize)]
enum FromSuccessor {
    /// It could take over.
    Prepared { version: (u32, u32) },
    /// It serves browsers.
    Serving,
    /// What requests are routed by from now on.
    Route { view: View, held: Vec<Incarnation> },
}

/// To the successor. A descriptor is beside each but the last.
#[derive(Debug, Serialize, Deserialize)]
enum ToSuccessor {
    /// A listening TCP socket; the name is that by which the service manager has it, if it has.
    Socket { name: String },
    /// The listening control socket.
    Control,
    /// The lock of the run folder.
    Lock,
    /// That was all.
    All,
}

/// The one that takes over, as its predecessor sees it.
pub struct Successor {
    child: Child,
    stream: Stream,
}

/// The one that hands over, as its successor sees it.
pub struct Predecessor {
    stream: Stream,
    socket: UnixStream,
}

fn failed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, Origin::Director, what)
}

impl Successor {
    /// Starts it and waits until it could take over. Blocks.
    ///
    /// # Errors
    /// If it cannot be started or does not want to; it has said why in its own log.
    pub fn start() -> Result<Self> {
        let os = |what, error| Error::os(Origin::Director, what, error);
        let (ours, theirs) = UnixStream::pair().map_err(|error| os("cannot make a socket pair", error))?;
        let mut arguments = std::env::args_os();
        let program = arguments.next().ok_or_else(|| failed("this program does not know its own name"))?;
        let child = Command::new(&program)
            .args(arguments.filter(|argument| argument != ARGUMENT))
            .arg(ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(|error| os("cannot start this program again", error))?;
        let mut successor = Self { child, stream: Stream::accepted(ours)? };
        match successor.stream.recv(limits::PREPARE_WAIT) {
            Ok((FromSuccessor::Prepared { version: VERSION }, _)) => Ok(successor),
            Ok((said, _)) => {
                successor.dismiss();
                Err(failed(format!("the new director is of another kind: it said {said:?}; restart instead")))
            }
            Err(error) => {
                successor.dismiss();
                Err(failed("the new director did not get ready; its own words are in the log")
                    .with_source(error))
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it everything and waits until it serves, for so long. Blocks.
    ///
    /// # Errors
    /// If it does not serve in time; then it is gone.
    pub fn give(&mut self, place: &Place, sockets: &Sockets, wait: Duration) -> Result<()> {
        let given = self.give_all(place, sockets).and_then(|()| self.stream.recv(wait));
        match given {
            Ok((FromSuccessor::Serving, _)) => Ok(()),
            Ok((said, _)) => {
                self.dismiss();
                Err(failed(format!("the new director makes no sense: it said {said:?}")))
            }
            Err(error) => {
                self.dismiss();
                Err(failed("the new director did not get to serving").with_source(error))
            }
        }
    }

    fn give_all(&mut self, place: &Place, sockets: &Sockets) -> Result<()> {
        for (name, socket) in sockets.tcp() {
            let name = name.unwrap_or_default().to_owned();
            self.send(&ToSuccessor::Socket { name }, Some(socket.as_fd()))?;
        }
        self.send(&ToSuccessor::Control, Some(sockets.control.as_fd()))?;
        self.send(&ToSuccessor::Lock, Some(place.lock().as_fd()))?;
        self.send(&ToSuccessor::All, None)
    }

    fn send(&mut self, message: &ToSuccessor, beside: Option<BorrowedFd<'_>>) -> Result<()> {
        self.stream.send(message, beside, limits::SEND_WAIT)
    }

    /// Goes by its views from now on, on a thread of its own. If it goes away nobody says any more who is
    /// dead, so the nodes are cut.
    pub fn follow(mut self, routes: Arc<Routes>) -> Result<()> {
        let following = move || {
            loop {
                match self.stream.recv(Duration::from_secs(3600)) {
                    Ok((FromSuccessor::Route { view, held }, _)) => routes.publish(&Arc::new(view), &held),
                    Err(error) if error.kind == ErrorKind::Timeout => {}
                    Ok(_) => {}
                    Err(error) => {
                        warn!("the director that took over is gone: {error}");
                        return routes.publish(&Arc::default(), &[]);
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("follow".to_owned())
            .spawn(following)
            .map(drop)
            .map_err(|error| Error::os(Origin::Director, "cannot start a thread", error))
    }

    /// It is of no use.
    fn dismiss(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Predecessor {
    /// Who is at the other end of the standard input.
    ///
    /// # Errors
    /// If nobody is.
    pub fn meet() -> Result<Self> {
        let nobody = |error| {
            Error::os(Origin::Director, format!("{ARGUMENT} is for directors that start another"), error)
        };
        let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(nobody)?;
        let nothing = File::open("/dev/null").map_err(nobody)?;
        rustix::stdio::dup2_stdin(&nothing).map_err(|error| nobody(error.into()))?;
        let stream = Stream::accepted(socket.try_clone().map_err(nobody)?)?;
        Ok(Self { stream, socket: UnixStream::from(socket) })
    }

    /// Takes over what it has, in the state in which it must be used. Blocks.
    ///
    /// # Errors
    /// If it goes away, or takes everything back.
    pub fn inherit(&mut self) -> Result<Inherited> {
        self.stream.send(&FromSuccessor::Prepared { version: VERSION }, None, limits::SEND_WAIT)?;
        let mut inherited = Inherited::handed_over();
        loop {
            let (message, beside) = self.stream.recv(limits::PREPARE_WAIT)?;
            match (message, beside) {
                (ToSuccessor::Socket { name }, Some(socket)) => inherited.add(name, socket.into())?,
                (ToSuccessor::Control, Some(socket)) => inherited.control = Some(UnixListener::from(socket)),
                (ToSuccessor::Lock, Some(file)) => inherited.lock = Some(File::from(file)),
                (ToSuccessor::All, _) => return Ok(inherited),
                (message, None) => return Err(failed(format!("nothing came beside {message:?}"))),
            }
        }
    }

    /// Tells it once there is a view to route by, and each view after that, until it ends.
    ///
    /// # Errors
    /// If it could not be told that this one serves.
    pub async fn relieve(self, routes: Arc<Routes>) -> Result<()> {
        let elder = routes.elder();
        let mut tables = routes.watch();
        routes.recovered().await;
        let os = |error| Error::os(Origin::Director, "cannot use the predecessor's socket", error);
        self.socket.set_nonblocking(true).map_err(os)?;
        let socket = tokio::net::UnixStream::from_std(self.socket).map_err(os)?;
        let (mut from, mut to) = wire::halves_of_unix(socket);
        drop(self.stream);
        wire::send(&mut to, &FromSuccessor::Serving).await?;
        info!("the director before this one hands over");
        tokio::spawn(async move {
            loop {
                let (view, held) = tables.borrow_and_update().told();
                let told = wire::send(&mut to, &FromSuccessor::Route { view, held }).await;
                let ended = tokio::select! {
                    changed = tables.changed() => changed.is_err(),
                    // It says nothing more but its end.
                    _ = wire::receive::<ToSuccessor>(&mut from, limits::HELLO_BYTES_MAX) => true,
                };
                if told.is_err() || ended {
                    info!("the director before this one has ended");
                    return drop(elder);
                }
            }
        });
        Ok(())
    }
}
