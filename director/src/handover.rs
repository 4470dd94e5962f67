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
//!  Took: what it has carried out, and    ──────► adopts nothing and drains no node before
//!  where requests are under way
//! ```
//!
//! Up to `Serving` the predecessor can take everything back: it has kept its own descriptors of all that it
//! gave, and begins its control side again, which is a planned restart within one process. The lock of the
//! run folder passes with its descriptor, so nobody else can come between. Descriptors go over the socket
//! and not through `LISTEN_FDS`, which wants them at numbers from 3 on in a process of its own, and has no
//! way back.
//!
//! After `Serving` the successor's view is that of both: a dead node's sessions are adopted when the
//! predecessor has cut it, too, and a drain waits for the requests that it still has at that node. A
//! predecessor that does not answer is ended by its pidfd: cutting the connection would tell a stopped one
//! nothing before it goes on, and then it might pass an answer on first. Callers: [`crate::daemon`].

use crate::inherited::Inherited;
use crate::limits;
use crate::place::{Place, Sockets};
use crate::proxy::routes::{Elder, Routes, Took};
use crate::wire;
use rustix::process::{PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use selvage_fabric::control::message::PROTOCOL_VERSION;
use selvage_fabric::control::stream::{Peer, Stream};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::view::View;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// The argument that makes a director a successor.
pub const ARGUMENT: &str = "--take-over";
/// Version of this protocol; both sides must have the same, and the same views.
const VERSION: (u32, u32) = (2, PROTOCOL_VERSION);

/// To the predecessor.
#[derive(Debug, Serialize, Deserialize)]
enum FromSuccessor {
    /// It could take over.
    Prepared { version: (u32, u32) },
    /// It serves browsers.
    Serving,
    /// What requests are routed by from now on: the table of this number.
    Route { number: u64, view: View, held: Vec<Incarnation> },
}

/// To the successor. A descriptor is beside each of the first three.
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
    /// What was carried out of the routes, by this one and those before it.
    Took(Took),
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
    /// A pidfd, if it is certain that this is its process.
    process: Option<OwnedFd>,
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
            if let Err(error) = self.go_by_its_views(&routes) {
                warn!("the director that took over is gone: {error}");
                routes.publish(&Arc::default(), &[]);
            }
        };
        std::thread::Builder::new()
            .name("follow".to_owned())
            .spawn(following)
            .map(drop)
            .map_err(|error| Error::os(Origin::Director, "cannot start a thread", error))
    }

    /// Carries out what it says and answers, until it is gone.
    fn go_by_its_views(&mut self, routes: &Routes) -> Result<()> {
        let mut newest: Option<(u64, Epoch, u64)> = None;
        let mut last = Took::default();
        loop {
            match self.stream.recv(limits::ELDER_LOOK) {
                Ok((FromSuccessor::Route { number, view, held }, _)) => {
                    let epoch = view.epoch;
                    newest = Some((number, epoch, routes.publish(&Arc::new(view), &held)));
                }
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Timeout => {}
                Err(error) => return Err(error),
            }
            let Some((number, epoch, table)) = newest else { continue };
            // The director before this one may still serve, too, and be slower.
            let is_taken = routes.is_taken(table);
            let (number, epoch) = if is_taken { (number, epoch) } else { (last.number, last.epoch) };
            let took = Took { number, epoch, busy: routes.busy() };
            // While the successor waits it hears at each look that somebody is there.
            if took != last || !is_taken {
                self.send(&ToSuccessor::Took(took.clone()), None)?;
                last = took;
            }
        }
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
        let process = process_of(stream.peer());
        Ok(Self { stream, socket: UnixStream::from(socket), process })
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
                (message @ ToSuccessor::Took(_), _) => {
                    return Err(failed(format!("the director before this one makes no sense: {message:?}")));
                }
                (message, None) => return Err(failed(format!("nothing came beside {message:?}"))),
            }
        }
    }

    /// Tells it once there is a view to route by, and each view after that, until it ends. `elder` says what
    /// it has carried out.
    ///
    /// # Errors
    /// If it could not be told that this one serves.
    pub async fn relieve(self, routes: Arc<Routes>, elder: Elder) -> Result<()> {
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
            let telling = async {
                loop {
                    let (number, view, held) = tables.borrow_and_update().told();
                    wire::send(&mut to, &FromSuccessor::Route { number, view, held }).await?;
                    // The sender is in `routes`.
                    let _ = tables.changed().await;
                }
            };
            let hearing = async {
                loop {
                    elder.took(hear(&mut from, &elder).await?);
                }
            };
            let ended: Result<()> = tokio::select! {
                ended = telling => ended,
                ended = hearing => ended,
            };
            match ended {
                Err(error) if error.kind != ErrorKind::Unreachable => {
                    warn!("the director before this one still serves browsers and goes wrong: {error}");
                    end(self.process.as_ref());
                }
                _ => info!("the director before this one has ended"),
            }
            // From here on nobody waits for it.
            drop(elder);
        });
        Ok(())
    }
}

/// The process at the other end, if that is the one that has started this one: then its number cannot have
/// come to mean another one before the pidfd was there.
fn process_of(peer: &Peer) -> Option<OwnedFd> {
    let parent = getppid()?;
    let process = pidfd_open(parent, PidfdFlags::empty()).ok()?;
    let is_peer = matches!(peer, Peer::User { pid, .. } if i64::from(*pid) == i64::from(parent.as_raw_pid()));
    (is_peer && getppid() == Some(parent)).then_some(process)
}

/// The predecessor's next word; for some time only while it is behind.
///
/// # Errors
/// `Timeout` if that is over; as [`wire::receive`].
async fn hear(from: &mut wire::From, elder: &Elder) -> Result<Took> {
    let mut receiving = pin!(wire::receive(from, limits::NODE_MESSAGE_BYTES_MAX));
    let mut silence = Duration::ZERO;
    loop {
        // Looks are counted and not the time, in which this process may itself have been stopped.
        match tokio::time::timeout(limits::ELDER_LOOK, &mut receiving).await {
            Ok(Ok(ToSuccessor::Took(took))) => return Ok(took),
            Ok(Ok(said)) => return Err(failed(format!("it said {said:?}"))),
            Ok(Err(error)) => return Err(error),
            Err(_) if elder.is_behind() => silence += limits::ELDER_LOOK,
            Err(_) => silence = Duration::ZERO,
        }
        if silence >= limits::ELDER_WAIT {
            let why = "it does not say that it goes by the present view";
            return Err(Error::new(ErrorKind::Timeout, Origin::Director, why));
        }
    }
}

/// Ends a predecessor: from here on it runs none of its code.
fn end(process: Option<&OwnedFd>) {
    let ended = process.map(|process| pidfd_send_signal(process, Signal::KILL));
    match ended {
        Some(Ok(())) => warn!("it was ended, with the requests that were under way there"),
        Some(Err(error)) => warn!("it cannot be ended: {error}; it may answer browsers for dead nodes"),
        None => warn!("its process is not known, so it is not ended; it may answer browsers for dead nodes"),
    }
}
