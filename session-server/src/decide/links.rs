//! RDMA links: each is one queue pair into one lease, made for one control connection, which is its lifeline.
//!
//! Invariant: a link is on the books from before its queue pair is made until the call that destroys it has
//! returned, so whoever is not on the books cannot write (R4).

use super::leases::{LeaseState, Waiter, Wanted, not_yet};
use super::processes::ProcessKey;
use super::{Asker, ConnectionId, Effect, LeaseNumber, Server};
use selvage_fabric::control::message::{Endpoint, FromServer, Refusal, RemoteMemory, StagedArchive};
use selvage_fabric::error::{Error, ErrorKind, Result};
use selvage_fabric::ident::{Incarnation, SessionId};
use selvage_fabric::numbers::ServerCounter;

/// Names an RDMA link; never used twice in a server's life, and never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkNumber(pub u64);

/// Queue pair numbers and packet sequence numbers have 24 bits.
const BITS_24: u32 = 1 << 24;
/// Queue pairs 0 and 1 manage the fabric; no connection has them.
const QP_NUMBER_MIN: u32 = 2;

/// A link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    connection: ConnectionId,
    incarnation: Incarnation,
    pid: u32,
    lease: LeaseNumber,
    state: LinkState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinkState {
    /// Its queue pair is being made; what ends it meanwhile takes effect when that is done.
    Connecting {
        /// Its connection has ended.
        ended: bool,
    },
    /// It may write.
    Open,
    /// Its queue pair is being destroyed.
    Closing,
    /// The device would not destroy its queue pair; it is asked again now and then.
    Stuck,
}

impl Server {
    /// A node wants a queue pair of its own into its lease.
    pub(super) fn link_wanted(&mut self, asker: &Asker, offer: Endpoint) -> Vec<Effect> {
        if let Err(refusal) = check_offer(&offer).and_then(|()| self.check_no_link(asker.connection)) {
            self.count(ServerCounter::RdmaRefused, 1);
            return self.refuse(asker.connection, refusal);
        }
        self.lease_wanted(asker, Wanted::Link(offer))
    }

    /// Has a queue pair made for a process; from now on it counts as able to write.
    pub(super) fn begin_link(
        &mut self,
        lease: LeaseNumber,
        incarnation: Incarnation,
        waiter: Waiter,
        offer: Endpoint,
    ) -> Vec<Effect> {
        let Waiter { connection, pid, .. } = waiter;
        let link = LinkNumber(self.link_next);
        self.link_next += 1;
        let state = LinkState::Connecting { ended: false };
        self.links.insert(link, Link { connection, incarnation, pid, lease, state });
        vec![Effect::Connect { link, connection, lease, offer }]
    }

    pub(super) fn link_made(
        &mut self,
        number: LinkNumber,
        result: Result<(Endpoint, RemoteMemory)>,
    ) -> Vec<Effect> {
        let Some(link) = self.links.get_mut(&number) else { return Vec::new() };
        let (connection, lease) = (link.connection, link.lease);
        let ended = link.state != LinkState::Connecting { ended: false };
        let open = self.leases.get(&lease).is_some_and(|lease| matches!(lease.state, LeaseState::Open));
        match result {
            Ok((endpoint, memory)) if open && !ended => {
                link.state = LinkState::Open;
                self.count(ServerCounter::RdmaConnects, 1);
                let server = self.incarnation;
                vec![Effect::SendLink { connection, link: number, lease, server, endpoint, memory }]
            }
            result => {
                let mut effects = Vec::new();
                match result {
                    // A seal destroys what the door has, but this one may have come a moment later.
                    Ok(_) => {
                        link.state = LinkState::Closing;
                        effects.push(Effect::Disconnect { link: number, lease });
                    }
                    Err(_) => self.forget_link(number),
                }
                if self.peers.contains_key(&connection) {
                    self.count(ServerCounter::RdmaRefused, 1);
                    let refusal = match result {
                        Err(error) if open => refusal_of(&error),
                        _ => Refusal::Over,
                    };
                    effects.extend(self.refuse(connection, refusal));
                }
                effects
            }
        }
    }

    /// Ends the link of a connection, if it has one.
    pub(super) fn close_link(&mut self, connection: ConnectionId) -> Vec<Effect> {
        let Some((number, link)) = self.links.iter_mut().find(|(_, link)| link.connection == connection)
        else {
            return Vec::new();
        };
        match link.state {
            LinkState::Connecting { .. } => {
                link.state = LinkState::Connecting { ended: true };
                Vec::new()
            }
            LinkState::Open => {
                link.state = LinkState::Closing;
                vec![Effect::Disconnect { link: *number, lease: link.lease }]
            }
            LinkState::Closing | LinkState::Stuck => Vec::new(),
        }
    }

    /// The call that destroys a link's queue pair has returned. If it failed, the queue pair may still write,
    /// and its link stays on the books until a later try or the end of its lease.
    pub(super) fn link_closed(&mut self, number: LinkNumber, result: Result<()>) {
        match result {
            Ok(()) => self.forget_link(number),
            Err(_) => {
                self.count(ServerCounter::RdmaLinksStuck, 1);
                if let Some(link) = self.links.get_mut(&number) {
                    link.state = LinkState::Stuck;
                }
            }
        }
    }

    /// Tries again to destroy what a device would not.
    pub(super) fn close_stuck_links(&mut self) -> Vec<Effect> {
        let stuck = self.links.iter_mut().filter(|(_, link)| link.state == LinkState::Stuck);
        let again = stuck.map(|(number, link)| {
            link.state = LinkState::Closing;
            Effect::Disconnect { link: *number, lease: link.lease }
        });
        again.collect()
    }

    /// A lease's door is closed for ever: nothing of it can write any more. Links that are being made are
    /// told when that is done.
    pub(super) fn forget_links_of(&mut self, lease: LeaseNumber) {
        let closed: Vec<LinkNumber> = self
            .links
            .iter()
            .filter(|(_, link)| link.lease == lease && !matches!(link.state, LinkState::Connecting { .. }))
            .map(|(number, _)| *number)
            .collect();
        closed.into_iter().for_each(|number| self.forget_link(number));
    }

    /// Which archives to lay ready for a claimant, and on which link.
    pub(super) fn stage(&mut self, asker: &Asker, ids: &[SessionId]) -> Result<Effect, Refusal> {
        let of_asker = |link: &&Link| link.connection == asker.connection && link.state == LinkState::Open;
        let found =
            self.links.iter().find(|(_, link)| of_asker(link)).map(|(number, link)| (*number, link.lease));
        let Some((link, lease)) = found else {
            return Err(Refusal::Denied(
                "this connection has no RDMA link to read over; connect first".into(),
            ));
        };
        let batch = self.batch(asker, ids)?;
        Ok(Effect::Stage { connection: asker.connection, link, lease, batch })
    }

    pub(super) fn staged(
        &mut self,
        connection: ConnectionId,
        result: Result<(RemoteMemory, Vec<StagedArchive>)>,
    ) -> Vec<Effect> {
        match result {
            Ok((memory, archives)) => {
                self.count_fetched(archives.iter().map(|archive| archive.error.is_some()));
                self.count(ServerCounter::StagedBytes, memory.bytes);
                vec![Effect::Reply { connection, message: FromServer::Staged { memory, archives } }]
            }
            Err(error) => {
                self.count(ServerCounter::RdmaRefused, 1);
                self.refuse(connection, refusal_of(&error))
            }
        }
    }

    /// Links that may write.
    pub(super) fn links_open(&self) -> u64 {
        self.links.len() as u64
    }

    pub(super) fn has_link(&self, key: ProcessKey) -> bool {
        self.links.values().any(|link| (link.incarnation, link.pid) == key)
    }

    pub(super) fn is_link_of(&self, incarnation: Incarnation, number: LinkNumber) -> bool {
        self.links.get(&number).is_some_and(|link| link.incarnation == incarnation)
    }

    fn forget_link(&mut self, number: LinkNumber) {
        if let Some(link) = self.links.remove(&number) {
            self.forget_if_gone((link.incarnation, link.pid));
        }
    }

    fn check_no_link(&self, connection: ConnectionId) -> Result<(), Refusal> {
        if self.links.values().all(|link| link.connection != connection) {
            return Ok(());
        }
        Err(Refusal::Denied("this connection has an RDMA link already; open another connection".into()))
    }
}

/// Refuses what no queue pair can be.
fn check_offer(offer: &Endpoint) -> Result<(), Refusal> {
    let wrong = |what: String| Err(Refusal::Bad(format!("the RDMA endpoint that was offered has {what}")));
    if !(QP_NUMBER_MIN..BITS_24).contains(&offer.qp_number) {
        return wrong(format!("queue pair {}: a connection's is 2 to {}", offer.qp_number, BITS_24 - 1));
    }
    if offer.packet_sequence >= BITS_24 {
        return wrong(format!("packet sequence {}: it has 24 bits", offer.packet_sequence));
    }
    if !(1..=5).contains(&offer.mtu) {
        return wrong(format!("MTU {}: it is 1 to 5, for 256 to 4096 bytes", offer.mtu));
    }
    if offer.service_level > 15 {
        return wrong(format!("service level {}: it is 0 to 15", offer.service_level));
    }
    if offer.ethernet && (offer.gid == [0; 16] || offer.gid[0] == 0xff) {
        return wrong("no GID of one port, which RoCE needs".into());
    }
    if !offer.ethernet && offer.lid == 0 {
        return wrong("LID 0, which InfiniBand gives to no port".into());
    }
    Ok(())
}

/// What a failure of the device means to the node that asked.
fn refusal_of(error: &Error) -> Refusal {
    match error.kind {
        ErrorKind::OwnershipLost => Refusal::Over,
        // A limit or a setting of this host, or two ends that do not fit: nothing will change by itself.
        ErrorKind::Invalid => Refusal::Denied(error.to_string()),
        _ => not_yet(&error.to_string()),
    }
}
