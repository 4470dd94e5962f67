//! The messages. Every count and length that arrives is checked against `limits` before it is used.
//!
//! Three conversations exist, each begun by the first-named side:
//! node process -> server ([`ToServer`] / [`FromServer`], strictly request and reply, in order),
//! director or operator -> server (the same messages), and
//! node steward -> director ([`ToDirector`] / [`FromDirector`], both sides may send at any time; another
//! process of the node may ask the director for one thing). What the director has a node do for people is
//! in `errand`.

mod errand;

pub use errand::{
    AttributeFacts, AttributeKind, AttributeValue, Doomed, Errand, ErrandOutcome, SessionDetail, SessionFacts,
};

use crate::config::TransportKind;
use crate::ident::{Epoch, Incarnation, SessionId, Version};
use crate::numbers::Histogram;
use crate::view::View;
use serde::{Deserialize, Serialize};

/// Version of this protocol. Neighbours one apart work together.
pub const PROTOCOL_VERSION: u32 = 3;
/// Oldest version that this build understands.
pub const PROTOCOL_VERSION_MIN: u32 = 3;

/// Who opens the connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// A process of the named node. On one host its user id must be one of the node's; from another its
    /// certificate must be the node's.
    Node {
        /// The node's configured name.
        name: String,
        /// The node's incarnation, or `NONE` if it has none yet.
        incarnation: Incarnation,
        /// The process, as its node knows it. On one host the kernel's word counts instead.
        pid: u32,
    },
    /// The director; its user must be an operator.
    Director,
    /// A person's tool; its user must be an operator.
    Operator,
    /// A process of the named node that asks the director for something, beside its node's steward. Checked
    /// as `Node` is.
    Application {
        /// The node's configured name.
        name: String,
        /// The process, as its node knows it.
        pid: u32,
    },
}

/// First message of every connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the sender speaks.
    pub protocol_min: u32,
    /// Newest protocol version that the sender speaks.
    pub protocol_max: u32,
    /// The cluster's name.
    pub cluster: String,
    /// Who it is.
    pub role: Role,
}

/// Answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HelloReply {
    /// Go on.
    Welcome {
        /// The version that both will speak.
        protocol: u32,
        /// The server's incarnation; `NONE` from a director.
        incarnation: Incarnation,
    },
    /// The connection will be closed.
    Refused(Refusal),
}

/// Why a request was refused. The reader decides from the variant; the text is for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// Protocol or layout versions do not meet.
    Version {
        /// What the refusing side speaks: oldest, newest.
        ours: (u32, u32),
        /// What the other side speaks: oldest, newest.
        theirs: (u32, u32),
    },
    /// The peer's user or role may not do this.
    Denied(String),
    /// Not yet: the view is behind, the incarnation is unknown, claims are not complete. Ask again.
    NotYet(String),
    /// The incarnation is over (R2, R3).
    Over,
    /// The epoch's term is older than the newest one seen (R12).
    OldTerm(Epoch),
    /// No memory for it: what was asked and what is left, bytes.
    Full {
        /// Bytes that the request needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The message makes no sense.
    Bad(String),
}

/// Requests to a session server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToServer {
    /// Director: heartbeat. Answered by [`FromServer::Report`].
    Beat,
    /// Director: a new view. The server seals the leases of every incarnation in `view.dead` and of every
    /// node incarnation that is in neither list; releases sealed leases of incarnations that are in neither
    /// list; and answers `Report` after that. Refused with `OldTerm` unless term and number are both at least
    /// the newest seen (the same view again is answered again). Send it to a server that the view drops, too:
    /// one that finds itself dropped begins a new incarnation at once (leases freed, claims forgotten, node
    /// connections cut), which its next `Report` shows (R6).
    SetView(View),
    /// Node: the lease of this connection's node incarnation; made at the first call. Answered by
    /// [`FromServer::Lease`] with the memfd beside it. Every process of the node asks for itself.
    Lease,
    /// Node: connects this process to its node's lease over RDMA. The connection that asks is the link's
    /// lifeline: when it ends, the server destroys the queue pair, and only then calls link and process gone
    /// (R4: see `ProcessGone`). One link per connection; the lease is made at the first call, as by `Lease`.
    /// Answered by [`FromServer::Connected`]. A server without RDMA refuses with `Denied` and says why:
    /// `NotYet` would make commits wait for it.
    Connect {
        /// The node's end.
        offer: Endpoint,
    },
    /// Node, on the lifeline of an RDMA link: as `Fetch`, but the archives are put into memory that the node
    /// reads over the link. Answered by [`FromServer::Staged`]; they stay until the next request here.
    FetchStaged {
        /// The sessions.
        ids: Vec<SessionId>,
    },
    /// Node: claims, in one batch (R1). `epoch` is the claimant's view's; a server with an older one answers
    /// `NotYet`. Answered by [`FromServer::Claims`], one answer per id. A node asks the up servers in the
    /// order of the view.
    Claim {
        /// The claimant's view.
        epoch: Epoch,
        /// The sessions.
        ids: Vec<SessionId>,
    },
    /// Node: gives up its claims on ids that it found nowhere, could not adopt, or whose session has ended.
    /// `Done`.
    Unclaim {
        /// The sessions.
        ids: Vec<SessionId>,
    },
    /// Node: the claims that it holds, told to a server that is new in its view (R1). The server answers
    /// claims and fetches only after every node that was live when it joined the view (and still is) has sent
    /// `last`; so a node sends one with `last` to every server that is new to it, even with no ids. Answered
    /// by `Done`.
    RegisterClaims {
        /// The claimant's view.
        epoch: Epoch,
        /// Sessions that the node has adopted.
        ids: Vec<SessionId>,
        /// Nothing follows.
        last: bool,
    },
    /// Node: the archives of sealed sessions, which the node must have claimed. Answered by
    /// [`FromServer::Archives`]. A reply may hold fewer than asked: ask again for the rest. An id that is not
    /// claimed or has no live copy here is answered with `error` set, so that asking for the rest ends.
    Fetch {
        /// The sessions.
        ids: Vec<SessionId>,
    },
    /// Node: the sessions of a sealed incarnation that are not settled, from a position. Answered by
    /// [`FromServer::Sealed`].
    ListSealed {
        /// The ended incarnation.
        incarnation: Incarnation,
        /// 0 at first, then what the reply said.
        cursor: u64,
    },
    /// Node: these sessions have their full placement acked by their new owner, at these versions (R10).
    /// `Done`; `Denied` with nothing changed if a sealed session among them is not claimed by the sender.
    Settle {
        /// The sessions and the version that is safe.
        sessions: Vec<(SessionId, Version)>,
    },
    /// Node: these sessions are destroyed or expired; sealed copies up to the version are gone for ever (R9,
    /// R14), and the sender's claims on them end. `Done`; `Denied` with nothing changed if another live node
    /// has claimed one of them.
    Destroyed {
        /// The sessions and the version of their tombstone.
        sessions: Vec<(SessionId, Version)>,
    },
    /// Node: asks whether a writer of this node incarnation can write no more (R4), so that the slots that it
    /// left in doubt may be used again. `Gone`.
    ///
    /// Without `link` the writer is the whole process: true when it has no connection here, every queue pair
    /// that it had is destroyed, and, if it was ever given the lease's descriptor, it has ended. With `link`
    /// it is that one RDMA link: true as soon as its queue pair here is destroyed (the call that destroys it
    /// has returned), though the process lives and may have a newer link. Unknown processes and links are
    /// gone.
    ProcessGone {
        /// The process.
        pid: u32,
        /// One link of it, by the number that `Connected` gave.
        link: Option<u64>,
    },
}

/// Answers of a session server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromServer {
    /// Accepted and done.
    Done,
    /// Refused; nothing was changed.
    Refused(Refusal),
    /// The server's state.
    Report(ServerReport),
    /// The lease whose memfd comes beside this message.
    Lease {
        /// Number of the lease, unique in the server's life.
        lease: u64,
        /// The server's incarnation: acks are void for any other (R6).
        server: Incarnation,
        /// Layout version of the lease.
        layout: u32,
        /// Slots.
        slot_count: u32,
        /// Bytes of the heap.
        heap_bytes: u64,
    },
    /// The server's end of an RDMA link, ready to receive.
    Connected {
        /// Number of the link, unique in the server's life and never 0; for `ProcessGone`.
        link: u64,
        /// Number of the lease, unique in the server's life.
        lease: u64,
        /// The server's incarnation: acks are void for any other (R6).
        server: Incarnation,
        /// Layout version of the lease.
        layout: u32,
        /// Slots.
        slot_count: u32,
        /// Bytes of the heap.
        heap_bytes: u64,
        /// Bytes of a chunk of the heap.
        chunk_bytes: u64,
        /// The server's end.
        endpoint: Endpoint,
        /// The lease's memory.
        memory: RemoteMemory,
    },
    /// Answers to `FetchStaged`: the archives lie one behind the other in `memory`, in this order; those with
    /// an error take no bytes.
    Staged {
        /// Where they lie; exactly as long as all of them.
        memory: RemoteMemory,
        /// Each session.
        archives: Vec<StagedArchive>,
    },
    /// Answers to `Claim`, in its order.
    Claims(Vec<ClaimAnswer>),
    /// Answers to `Fetch`.
    Archives(Vec<FetchedArchive>),
    /// A piece of the list of sealed sessions.
    Sealed {
        /// Id, version and expiry (Unix ms) of each.
        sessions: Vec<(SessionId, Version, u64)>,
        /// Where to go on; `None` at the end.
        next: Option<u64>,
    },
    /// Whether the writer can write no more.
    Gone(bool),
}

/// Answer to one claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ClaimAnswer {
    /// The claim is the asker's, and this is the newest sealed copy here: its version, whether it is live (a
    /// tombstone of that version otherwise), its expiry. `None`: no copy here; "moved" counts as none (R11).
    Granted(Option<SealedCopy>),
    /// That live incarnation has claimed it already.
    Elsewhere(Incarnation),
}

/// The newest sealed copy of a session at a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedCopy {
    /// Its version.
    pub version: Version,
    /// False: a tombstone; the session is gone.
    pub live: bool,
    /// Unix ms.
    pub expiry_ms: u64,
}

/// One fetched session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FetchedArchive {
    /// The session.
    pub id: SessionId,
    /// Its version.
    pub version: Version,
    /// Unix ms.
    pub expiry_ms: u64,
    /// Its archive; the receiver validates it. Empty with `error` set if the copy's bytes failed a check.
    pub archive: Vec<u8>,
    /// Why the copy cannot be served, if so.
    pub error: Option<String>,
}

/// One session that lies ready to be read over RDMA.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StagedArchive {
    /// The session.
    pub id: SessionId,
    /// Its version.
    pub version: Version,
    /// Unix ms.
    pub expiry_ms: u64,
    /// Bytes of its archive.
    pub bytes: u32,
    /// Why the copy cannot be served, if so.
    pub error: Option<String>,
}

/// One end of an RDMA connection: all that the other end must know of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// Queue pair number, 24 bits.
    pub qp_number: u32,
    /// First packet sequence number, 24 bits, random.
    pub packet_sequence: u32,
    /// The port's GID.
    pub gid: [u8; 16],
    /// The port's LID; 0 on RoCE.
    pub lid: u16,
    /// The partition key.
    pub partition_key: u16,
    /// The port's service level.
    pub service_level: u8,
    /// Whether the port's link layer is Ethernet (RoCE) rather than InfiniBand.
    pub ethernet: bool,
    /// Largest packet, as an exponent: 256 B x 2^(this - 1), 1 to 5.
    pub mtu: u8,
    /// Reads that this end answers at once.
    pub reads_max: u8,
}

/// Memory that the other end of an RDMA connection may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RemoteMemory {
    /// Its address there.
    pub address: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// The key that opens it.
    pub key: u32,
}

/// A way from one node to one server, for people and for the director's judgement.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    /// The server's life.
    pub server: Incarnation,
    /// The transport; `None` while the link is not open.
    pub transport: Option<TransportKind>,
    /// Device and port, or why the link is not open.
    pub detail: String,
    /// Time since the server's one-sided heartbeat was last seen to move, ms; `None` if never.
    pub beat_age_ms: Option<u32>,
}

/// State of a session server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ServerReport {
    /// The server's configured name.
    pub name: String,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its process.
    pub pid: u32,
    /// The newest view that it has carried out: everything that it ends is sealed and indexed here.
    pub epoch: Epoch,
    /// The newest view that it has accepted; `None` if it never had one. Used at a director's restart.
    pub view: Option<View>,
    /// Each lease.
    pub leases: Vec<LeaseReport>,
    /// Bytes of all leases.
    pub bytes: u64,
    /// Counters since start, by [`crate::numbers::ServerCounter`].
    pub counters: Vec<u64>,
    /// RDMA links that are open.
    pub rdma_links: u64,
    /// What is reported about once a second only.
    pub numbers: Option<Box<ServerNumbers>>,
    /// For people: its RDMA device and port, or why it has none.
    pub rdma: String,
}

/// What a server has counted and timed, beside its counters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ServerNumbers {
    /// Requests that ended with an error, by [`crate::error::ErrorKind`].
    pub errors: Vec<u64>,
    /// By [`crate::numbers::ServerTime`].
    pub times: Vec<Histogram>,
}

/// State of one lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseReport {
    /// The node's name.
    pub node: String,
    /// The node's incarnation.
    pub incarnation: Incarnation,
    /// Sealed and indexed.
    pub sealed: bool,
    /// Sessions with a copy here: live cells if sealed, the node's own count otherwise.
    pub sessions: u64,
    /// Sealed sessions that no one has settled, destroyed or outlived (R10).
    pub unsettled: u64,
    /// Time since the node's one-sided heartbeat in this lease was last seen to move, ms; `None` if never.
    pub beat_age_ms: Option<u32>,
}

/// From a node to the director.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToDirector {
    /// A new node life wants an incarnation. The sender has made sure, by the node's lock, that no process of
    /// an older life of this node can act any more or that its cache is poisoned; the director ends the older
    /// life at once.
    Register,
    /// A new steward takes over a living incarnation (or the director came back). The first message on its
    /// connection.
    Resume {
        /// The newest epoch that this node has seen (R12).
        epoch: Epoch,
    },
    /// Heartbeat.
    Beat(NodeBeat),
    /// Answer to `PrepareDrain`: every session has all copies that the view can give, no lock is held, no
    /// push is open.
    Drained,
    /// The end of an errand.
    ErrandEnded {
        /// Its number.
        number: u64,
        /// How it ended.
        outcome: ErrandOutcome,
    },
    /// An application, its only message: destroy every session of this owner, wherever it is. Answered by
    /// `OwnerDestroyed`, or `Refused` with what is not certain.
    DestroyOwner {
        /// The owner.
        owner: String,
        /// How long it waits for that, ms.
        within_ms: u32,
    },
}

/// A steward's heartbeat.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeBeat {
    /// The sender's monotonic clock; comes back with the mandate.
    pub sent_ns: u64,
    /// The view that the steward has carried out: leases opened or closed, placement changed.
    pub epoch: Epoch,
    /// Live sessions in the cache.
    pub sessions: u64,
    /// Sessions by number of safe copies: 0, 1, 2.
    pub safe: [u64; 3],
    /// Ended incarnations of which this node has adopted and settled everything that falls to it.
    pub settled: Vec<Incarnation>,
    /// Attached processes.
    pub pids: Vec<u32>,
    /// Bytes of the cache that are used, and all.
    pub cache_bytes: (u64, u64),
    /// The steward's link to each server of its view.
    pub links: Vec<LinkReport>,
    /// Counters since the incarnation's start, by [`crate::numbers::NodeCounter`].
    pub counters: Vec<u64>,
    /// What is reported about once a second only.
    pub numbers: Option<Box<NodeNumbers>>,
}

/// What the processes of a node have counted and timed, beside their counters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeNumbers {
    /// Calls of web servers that ended with an error, by [`crate::error::ErrorKind`].
    pub errors: Vec<u64>,
    /// By [`crate::numbers::NodeTime`].
    pub times: Vec<Histogram>,
    /// Ways to servers over which something was pushed.
    pub pushes: Vec<PushNumbers>,
    /// The node's lease at each server of its view.
    pub leases: Vec<LeaseUse>,
}

/// Pushes of a node to a server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PushNumbers {
    /// The server's configured name.
    pub server: String,
    /// How they went.
    pub transport: TransportKind,
    /// Of those that were timed: from the posting to the ack.
    pub time: Histogram,
    /// That did not end with an ack.
    pub failed: u64,
}

/// How full a node's lease is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseUse {
    /// The server's configured name.
    pub server: String,
    /// Slots in use, and all.
    pub slots: (u64, u64),
    /// Bytes of its heap in use, and all.
    pub bytes: (u64, u64),
}

/// From the director to a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromDirector {
    /// Answer to `Register`. The view contains the incarnation as up.
    Registered {
        /// The new life.
        incarnation: Incarnation,
        /// The newest view.
        view: View,
    },
    /// Answer to `Beat`: acks may be reported until `sent_ns + mandate` on the node's clock (R8).
    Mandate {
        /// The heartbeat's own time.
        sent_ns: u64,
    },
    /// A newer view.
    View(View),
    /// Finish what is open, then answer `Drained`. Every request of this node has ended at the director.
    PrepareDrain,
    /// The incarnation is over: poison the cache; register anew unless drained.
    Over {
        /// The operator has drained this node: ask again with `Register` at each heartbeat; refused until
        /// undrained.
        drained: bool,
    },
    /// Refused.
    Refused(Refusal),
    /// Something to be done for an operator or an application. Answered by `ErrandEnded`, over the connection
    /// that then is the steward's.
    Errand {
        /// Never used twice, by no director.
        number: u64,
        /// What.
        errand: Errand,
        /// When it is to be answered at the latest, ms from now.
        within_ms: u32,
    },
    /// Answer to `DestroyOwner`: none of its sessions is left.
    OwnerDestroyed {
        /// Sessions that were destroyed for this.
        sessions: u64,
    },
}
