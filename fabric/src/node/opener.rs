//! [`Opener`]: a process's links to leases, opened over a control connection; and bulk fetches over them.
//!
//! Each process of a node opens its own links, after any fork, all to the one lease that the node has at a
//! server. A link over RDMA keeps its control connection for life ([`Lifeline`]).

use super::lifeline::Lifeline;
use super::servers::{OpenedLink, unexpected};
use crate::config::Config;
use crate::control::message::{FetchedArchive, FromServer, StagedArchive, ToServer};
use crate::control::stream::{Stream, refusal_error};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, SessionId};
use crate::lease::{LAYOUT_VERSION, LeaseGeometry};
use crate::transport::select::{Reach, choose};
use crate::transport::verbs::{Opening, Verbs, VerbsLink};
use crate::transport::{Link, Region, TransportKind, shm};
use crate::view::{ServerEntry, View};
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A control connection on which nothing was asked yet, and how it goes.
pub struct Way {
    /// After the hello.
    pub stream: Stream,
    /// It goes over the server's Unix socket.
    pub same_host: bool,
    /// This host's address of it, if it has one: RDMA goes by the same network.
    pub local: Option<IpAddr>,
}

/// Opens the links of one process in one incarnation of its node.
pub struct Opener {
    node: Incarnation,
    verbs: Verbs,
    forced: Option<TransportKind>,
    timeout: Duration,
    /// The links over RDMA that are in use.
    lines: Mutex<HashMap<Incarnation, Line>>,
}

struct Line {
    link: Weak<VerbsLink>,
    lifeline: Weak<Lifeline>,
}

impl Opener {
    /// For the node's life `node`; each exchange takes at most `timeout`.
    pub fn new(config: &Config, node: Incarnation, timeout: Duration) -> Self {
        Self {
            node,
            verbs: Verbs::new(&config.rdma),
            forced: config.cluster.transport,
            timeout,
            lines: Mutex::default(),
        }
    }

    /// Opens a link. Gives the connection back where the link does not need it.
    ///
    /// # Errors
    /// `Unreachable` if no transport reaches the server; as refused; those of the transport's setup.
    pub fn open(
        &self,
        server: &ServerEntry,
        way: Way,
        cache: &Arc<dyn Region>,
    ) -> Result<(OpenedLink, Option<Stream>)> {
        let no_rdma = || self.verbs.availability(way.local).err().map(|error| error.context.clone());
        // Looking for devices takes a while; on one host only a forced choice asks for them.
        let asks_rdma = !way.same_host || self.forced == Some(TransportKind::Verbs);
        let reach = Reach { same_host: way.same_host, no_rdma: if asks_rdma { no_rdma() } else { None } };
        match choose(&reach, self.forced)? {
            TransportKind::Verbs => self.open_verbs(server, way, cache).map(|opened| (opened, None)),
            _ => self.open_shm(server, way.stream).map(|(opened, stream)| (opened, Some(stream))),
        }
    }

    fn open_shm(&self, server: &ServerEntry, mut stream: Stream) -> Result<(OpenedLink, Stream)> {
        let (FromServer::Lease { lease, server: incarnation, .. }, Some(fd)) =
            self.ask(&mut stream, &ToServer::Lease)?
        else {
            return Err(unexpected(server, "a lease"));
        };
        if incarnation != server.incarnation {
            return Err(unexpected(server, "the lease of the view's incarnation"));
        }
        let link = shm::map(fd, self.node, incarnation).map_err(|error| match error.kind {
            // Only a refusal may end this incarnation.
            ErrorKind::OwnershipLost => Error::new(ErrorKind::Corrupt, Origin::Node, error.to_string()),
            _ => error,
        })?;
        kill_point!("attach.linked");
        Ok((OpenedLink { link: Arc::new(link), lease, number: None, lifeline: None }, stream))
    }

    fn open_verbs(&self, server: &ServerEntry, way: Way, cache: &Arc<dyn Region>) -> Result<OpenedLink> {
        let Way { mut stream, local, .. } = way;
        let opening = Opening::begin(&self.verbs, cache, local)?;
        let FromServer::Connected {
            link: number,
            lease,
            server: incarnation,
            layout,
            slot_count,
            heap_bytes,
            chunk_bytes,
            endpoint,
            memory,
        } = self.ask(&mut stream, &ToServer::Connect { offer: opening.offer() })?.0
        else {
            return Err(unexpected(server, "an RDMA connection"));
        };
        if incarnation != server.incarnation || number == 0 {
            return Err(unexpected(server, "a link to the lease of the view's incarnation"));
        }
        if layout != LAYOUT_VERSION {
            let what = format!(
                "server {} has leases of layout version {layout}, this node {LAYOUT_VERSION}",
                server.name
            );
            return Err(Error::new(ErrorKind::VersionMismatch, Origin::Node, what));
        }
        let geometry = LeaseGeometry { slot_count, heap_bytes, chunk_bytes };
        let link = Arc::new(opening.finish(&endpoint, memory, geometry, incarnation)?);
        let lifeline = Arc::new(Lifeline::new(stream)?);
        let line = Line { link: Arc::downgrade(&link), lifeline: Arc::downgrade(&lifeline) };
        self.lock_lines().insert(incarnation, line);
        tracing::info!(server = server.name, way = link.detail(), "connected over RDMA");
        Ok(OpenedLink { link, lease, number: Some(number), lifeline: Some(lifeline) })
    }

    /// Archives of sealed sessions by large one-sided reads, as [`ToServer::Fetch`] would give them. `None`:
    /// there is no link over RDMA, or it did not work; ask over control.
    pub fn fetch_staged(&self, server: &ServerEntry, ids: &[SessionId]) -> Option<Vec<FetchedArchive>> {
        let (link, lifeline) = {
            let lines = self.lock_lines();
            let line = lines.get(&server.incarnation)?;
            (line.link.upgrade()?, line.lifeline.upgrade()?)
        };
        if link.is_broken() {
            return None;
        }
        // Held until the archives are read: they lie there until the next request.
        let mut stream = lifeline.stream();
        let fetched = self.ask(&mut stream, &ToServer::FetchStaged { ids: ids.to_vec() });
        let fetched = match fetched {
            Ok((FromServer::Staged { memory, archives }, _)) => {
                link.read_bulk(memory).and_then(|bytes| cut(archives, &bytes))
            }
            Ok(_) => Err(unexpected(server, "staged archives")),
            Err(error) if is_refusal(&error) => {
                tracing::debug!(server = server.name, %error, "cannot fetch over RDMA");
                return None;
            }
            Err(error) => Err(error),
        };
        fetched
            .inspect_err(|error| {
                tracing::warn!(server = server.name, %error, "a bulk fetch over RDMA failed");
                // An answer may still come, and would be taken for the next one's.
                lifeline.close();
            })
            .ok()
    }

    /// Forgets servers that are not in the view.
    pub fn retain(&self, view: &View) {
        self.lock_lines()
            .retain(|server, line| view.server(*server).is_some() && line.link.strong_count() > 0);
    }

    fn ask(&self, stream: &mut Stream, request: &ToServer) -> Result<(FromServer, Option<OwnedFd>)> {
        stream.send(request, None, self.timeout)?;
        match stream.recv::<FromServer>(self.timeout)? {
            (FromServer::Refused(refusal), _) => Err(refusal_error(&refusal)),
            reply => Ok(reply),
        }
    }

    fn lock_lines(&self) -> MutexGuard<'_, HashMap<Incarnation, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server has answered, with a refusal: the connection is as good as before.
fn is_refusal(error: &Error) -> bool {
    !matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Corrupt | ErrorKind::Os)
}

/// Cuts what was read into its archives. Lengths come from the server: hostile until they add up (invariant
/// 6).
fn cut(staged: Vec<StagedArchive>, mut bytes: &[u8]) -> Result<Vec<FetchedArchive>> {
    let corrupt = || {
        let what = "a server's staged archives are not as long as it says";
        Error::new(ErrorKind::Corrupt, Origin::Node, what)
    };
    let mut fetched = Vec::with_capacity(staged.len());
    for StagedArchive { id, version, expiry_ms, bytes: length, error } in staged {
        let length = if error.is_some() { 0 } else { length as usize };
        let (archive, rest) = bytes.split_at_checked(length).ok_or_else(corrupt)?;
        bytes = rest;
        fetched.push(FetchedArchive { id, version, expiry_ms, archive: archive.to_vec(), error });
    }
    if bytes.is_empty() { Ok(fetched) } else { Err(corrupt()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Version;

    fn staged(bytes: u32, error: Option<&str>) -> StagedArchive {
        let version = Version { epoch: 1, counter: 1 };
        let error = error.map(str::to_owned);
        StagedArchive { id: SessionId([bytes as u8; 16]), version, expiry_ms: 1, bytes, error }
    }

    #[test]
    fn what_was_staged_is_cut_as_it_lies() {
        let list = vec![staged(3, None), staged(9, Some("bad")), staged(2, None), staged(0, None)];
        let fetched = cut(list, b"abcde").unwrap();
        let archives: Vec<_> = fetched.iter().map(|fetched| fetched.archive.as_slice()).collect();
        assert_eq!(archives, [&b"abc"[..], b"", b"de", b""]);
        assert_eq!(fetched[1].error.as_deref(), Some("bad"));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        for list in [vec![staged(6, None)], vec![staged(4, None)], vec![staged(u32::MAX, None)], Vec::new()] {
            assert_eq!(cut(list, b"abcde").unwrap_err().kind, ErrorKind::Corrupt);
        }
    }
}
