//! Control connections with a hostile peer. The first byte chooses a conversation; the rest is what the peer
//! sends before it closes:
//!
//! - a message that is understood says the same after a way there and back;
//! - the blocking stream, which nodes and servers use, reads the same messages out of the bytes as a reader
//!   that has all of them at once, and stops at the first that is none;
//! - what a message costs in memory is bounded by the bytes that came, whatever lengths they announce;
//! - a hello is answered with a welcome or a refusal that the peer can read.

use crate::memory::peak_of;
use selvage_fabric::config::TransportKind;
use selvage_fabric::control::frame;
use selvage_fabric::control::message::{
    AttributeFacts, AttributeKind, AttributeValue, ClaimAnswer, Doomed, Endpoint, Errand, ErrandOutcome,
    FetchedArchive, FromDirector, FromServer, Hello, HelloReply, LeaseReport, LeaseUse, LinkReport, NodeBeat,
    NodeNumbers, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, PushNumbers, Refusal, RemoteMemory, Role,
    SealedCopy, ServerNumbers, ServerReport, SessionDetail, SessionFacts, StagedArchive, ToDirector,
    ToServer,
};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::ident::{Epoch, Incarnation, SessionId, Version};
use selvage_fabric::limits::MESSAGE_BYTES_MAX;
use selvage_fabric::numbers::Histogram;
use selvage_fabric::view::{DeadEntry, NodeEntry, NodeState, ServerEntry, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(5);
/// Bytes of memory that one byte of a message may cost: the largest element of a list that has a short form.
const COST_PER_BYTE: usize = 512;
/// What a message may cost beside that: serde makes room for this before it has seen any of a list's
/// elements, and lists lie in lists; and the stream has a buffer.
const COST: usize = 5 << 20;

pub fn run(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => conversation::<Hello>(bytes),
        1 => conversation::<HelloReply>(bytes),
        2 => conversation::<ToServer>(bytes),
        3 => conversation::<FromServer>(bytes),
        4 => conversation::<ToDirector>(bytes),
        5 => conversation::<FromDirector>(bytes),
        _ => hello(bytes),
    }
}

/// Bytes that a peer has sent before it closed.
fn sent(bytes: &[u8]) -> (UnixStream, Stream) {
    let (mut peer, ours) = UnixStream::pair().expect("a pair of sockets");
    // No input is larger than a socket's buffer.
    peer.write_all(bytes).expect("room for the input");
    peer.shutdown(Shutdown::Write).expect("an open socket");
    (peer, Stream::accepted(ours).expect("a connection"))
}

fn conversation<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    let expected = at_once::<T>(bytes);
    let (_peer, mut stream) = sent(bytes);
    for expected in &expected {
        let (message, cost) = peak_of(|| stream.recv::<T>(WAIT));
        let (message, descriptor) = message.expect("the stream reads what is there");
        assert!(descriptor.is_none());
        assert_eq!(&format!("{message:?}"), expected);
        assert!(cost <= COST + COST_PER_BYTE * bytes.len(), "{cost} bytes for {}", bytes.len());
    }
    let (rest, cost) = peak_of(|| stream.recv::<T>(WAIT));
    assert!(rest.is_err(), "{rest:?} after {expected:?}");
    assert!(cost <= COST + COST_PER_BYTE * bytes.len(), "{cost} bytes for {}", bytes.len());
}

/// What the messages say, up to the first that is none.
fn at_once<T: Serialize + DeserializeOwned + Debug>(mut bytes: &[u8]) -> Vec<String> {
    let mut messages = Vec::new();
    while let Some((prefix, rest)) = bytes.split_first_chunk() {
        let announced = u32::from_le_bytes(*prefix) as usize;
        let Ok(length) = frame::body_bytes(*prefix) else {
            assert!(announced == 0 || announced > MESSAGE_BYTES_MAX, "{announced} is refused");
            break;
        };
        assert!(length == announced && (1..=MESSAGE_BYTES_MAX).contains(&length));
        let Some((body, rest)) = rest.split_at_checked(length) else { break };
        let Ok(message) = frame::decode::<T>(body) else { break };
        let said = format!("{message:?}");
        let mut framed = b"before".to_vec();
        frame::encode(&message, &mut framed).expect("what was read can be sent");
        let again = framed.strip_prefix(b"before").expect("appended");
        let again: T = frame::decode(&again[frame::PREFIX_BYTES..]).expect("what is sent can be read");
        assert_eq!(format!("{again:?}"), said);
        messages.push(said);
        bytes = rest;
    }
    messages
}

fn hello(bytes: &[u8]) {
    let (mut peer, mut stream) = sent(bytes);
    let ours = Incarnation(7);
    let greeted = stream.server_hello("demo", ours, |_, _| Ok(()), WAIT);
    drop(stream);
    let mut reply = Vec::new();
    // A reset at the end says only that not all of ours was read.
    let _ = peer.read_to_end(&mut reply);
    if let Ok((hello, protocol)) = &greeted {
        assert_eq!(hello.cluster, "demo");
        assert!((hello.protocol_min..=hello.protocol_max).contains(protocol));
        assert!((PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(protocol));
    }
    if reply.is_empty() {
        assert!(greeted.is_err());
        return;
    }
    match frame::decode::<HelloReply>(&reply[frame::PREFIX_BYTES..]).expect("a reply that can be read") {
        HelloReply::Welcome { incarnation, .. } => assert!(greeted.is_ok() && incarnation == ours),
        HelloReply::Refused(_) => assert!(greeted.is_err()),
    }
}

fn framed(kind: u8, messages: &[impl Serialize]) -> Vec<u8> {
    let mut bytes = vec![kind];
    messages.iter().for_each(|message| frame::encode(message, &mut bytes).expect("a good message"));
    bytes
}

/// A list of seeds: each message alone, and all of them in one conversation.
fn each(kind: u8, messages: &[impl Serialize], seeds: &mut Vec<Vec<u8>>) {
    seeds.extend(messages.iter().map(|message| framed(kind, std::slice::from_ref(message))));
    seeds.push(framed(kind, messages));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let hello =
        |role| Hello { protocol_min: 1, protocol_max: PROTOCOL_VERSION, cluster: "demo".into(), role };
    let node = Role::Node { name: "n1".into(), incarnation: Incarnation(3), pid: 77 };
    let hellos = [hello(node), hello(Role::Director), hello(Role::Operator)];
    let mut seeds = Vec::new();
    each(0, &hellos, &mut seeds);
    each(6, &hellos, &mut seeds);
    let welcome = HelloReply::Welcome { protocol: PROTOCOL_VERSION, incarnation: Incarnation(3) };
    let replies: Vec<HelloReply> = refusals().into_iter().map(HelloReply::Refused).chain([welcome]).collect();
    each(1, &replies, &mut seeds);
    each(2, &to_server(), &mut seeds);
    each(3, &from_server(), &mut seeds);
    each(4, &to_director(), &mut seeds);
    each(5, &from_director(), &mut seeds);
    seeds
}

const ID: SessionId = SessionId([7; 16]);
const VERSION: Version = Version { epoch: 3, counter: 300 };
const EPOCH: Epoch = Epoch { term: 1_700_000_000, number: 5 };

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Version { ours: (1, 2), theirs: (3, 4) },
        Refusal::Denied("no".into()),
        Refusal::NotYet("later".into()),
        Refusal::Over,
        Refusal::OldTerm(EPOCH),
        Refusal::Full { needed: 1 << 30, left: 5 },
        Refusal::Bad("what?".into()),
    ]
}

fn view() -> View {
    View {
        epoch: EPOCH,
        copies: 2,
        nodes: vec![NodeEntry {
            name: "n1".into(),
            incarnation: Incarnation(3),
            state: NodeState::Draining,
            address: "127.0.0.1:9001".into(),
        }],
        servers: vec![ServerEntry {
            name: "s1".into(),
            incarnation: Incarnation(4),
            weight: 1,
            socket: "/run/selvage/server-s1.sock".into(),
            control: Some("10.0.0.2:7420".into()),
        }],
        dead: vec![DeadEntry { name: "n2".into(), incarnation: Incarnation(2), sealed: true }],
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        qp_number: 17,
        packet_sequence: 99,
        gid: [1; 16],
        mtu: 3,
        reads_max: 16,
        ..Endpoint::default()
    }
}

fn to_server() -> Vec<ToServer> {
    vec![
        ToServer::Beat,
        ToServer::SetView(view()),
        ToServer::Lease,
        ToServer::Connect { offer: endpoint() },
        ToServer::FetchStaged { ids: vec![ID] },
        ToServer::Claim { epoch: EPOCH, ids: vec![ID, ID] },
        ToServer::Unclaim { ids: vec![ID] },
        ToServer::RegisterClaims { epoch: EPOCH, ids: vec![], last: true },
        ToServer::Fetch { ids: vec![ID] },
        ToServer::ListSealed { incarnation: Incarnation(3), cursor: 9 },
        ToServer::Settle { sessions: vec![(ID, VERSION)] },
        ToServer::Destroyed { sessions: vec![(ID, VERSION)] },
        ToServer::ProcessGone { pid: 77, link: Some(5) },
    ]
}

fn from_server() -> Vec<FromServer> {
    let memory = RemoteMemory { address: 1 << 40, bytes: 1 << 20, key: 7 };
    let (lease, server, layout, slot_count, heap_bytes) = (1, Incarnation(4), 1, 65_536, 128 << 20);
    let copy = SealedCopy { version: VERSION, live: true, expiry_ms: 1_700_000_000_000 };
    let staged = StagedArchive { id: ID, version: VERSION, expiry_ms: 1, bytes: 300, error: None };
    let fetched = |error: Option<String>| {
        let archive = if error.is_none() { vec![1; 64] } else { Vec::new() };
        FetchedArchive { id: ID, version: VERSION, expiry_ms: 1, archive, error }
    };
    let lease_report = LeaseReport {
        node: "n1".into(),
        incarnation: Incarnation(3),
        sealed: true,
        sessions: 10,
        unsettled: 2,
        beat_age_ms: Some(40),
    };
    let report = ServerReport {
        name: "s1".into(),
        incarnation: server,
        pid: 9,
        epoch: EPOCH,
        view: Some(view()),
        leases: vec![lease_report],
        bytes: 1 << 27,
        counters: vec![8],
        rdma_links: 1,
        numbers: Some(Box::new(ServerNumbers { errors: vec![1, 0, 2], times: vec![times()] })),
        rdma: "rxe0 port 1".into(),
    };
    let chunk_bytes = 1 << 20;
    vec![
        FromServer::Done,
        FromServer::Refused(Refusal::Over),
        FromServer::Report(report),
        FromServer::Lease { lease, server, layout, slot_count, heap_bytes },
        FromServer::Connected {
            link: 2,
            lease,
            server,
            layout,
            slot_count,
            heap_bytes,
            chunk_bytes,
            endpoint: endpoint(),
            memory,
        },
        FromServer::Staged { memory, archives: vec![staged] },
        FromServer::Claims(vec![
            ClaimAnswer::Granted(Some(copy)),
            ClaimAnswer::Granted(None),
            ClaimAnswer::Elsewhere(Incarnation(9)),
        ]),
        FromServer::Archives(vec![fetched(None), fetched(Some("torn".into()))]),
        FromServer::Sealed { sessions: vec![(ID, VERSION, 1)], next: Some(64) },
        FromServer::Gone(true),
    ]
}

fn times() -> Histogram {
    Histogram { counts: vec![1, 0, 7], sum_ns: 1 << 33 }
}

fn to_director() -> Vec<ToDirector> {
    let link = LinkReport {
        server: Incarnation(4),
        transport: Some(TransportKind::Shm),
        detail: "shared memory".into(),
        beat_age_ms: Some(3),
    };
    let pushes = PushNumbers { server: "s1".into(), transport: TransportKind::Shm, time: times(), failed: 3 };
    let lease = LeaseUse { server: "s1".into(), slots: (1, 100), bytes: (256, 1 << 20) };
    let numbers =
        NodeNumbers { errors: vec![0, 1], times: vec![times()], pushes: vec![pushes], leases: vec![lease] };
    let beat = NodeBeat {
        sent_ns: 1 << 50,
        epoch: EPOCH,
        sessions: 100,
        safe: [1, 2, 97],
        settled: vec![Incarnation(2)],
        pids: vec![77, 78],
        cache_bytes: (1 << 20, 1 << 27),
        links: vec![link],
        counters: vec![5, 0, 1 << 40],
        numbers: Some(Box::new(numbers)),
    };
    let facts = SessionFacts {
        id: ID,
        owner: Some("ann".into()),
        version: VERSION,
        copies: 2,
        created_ms: 1,
        expiry_ms: 2,
        absolute_ms: 3,
        bytes: 512,
        locked: false,
    };
    let attribute = AttributeFacts {
        name: "n".into(),
        kind: AttributeKind::I64,
        bytes: 8,
        value: Some(AttributeValue::I64(-1)),
    };
    vec![
        ToDirector::Register,
        ToDirector::Resume { epoch: EPOCH },
        ToDirector::Beat(beat),
        ToDirector::Drained,
        ToDirector::ErrandEnded {
            number: 7,
            outcome: ErrandOutcome::Listed { sessions: vec![facts.clone()], next: Some(9) },
        },
        ToDirector::ErrandEnded {
            number: 8,
            outcome: ErrandOutcome::Shown(Some(Box::new(SessionDetail {
                facts,
                attributes: vec![attribute],
            }))),
        },
        ToDirector::ErrandEnded {
            number: 9,
            outcome: ErrandOutcome::Destroyed { sessions: 3, left: Some("locked".into()) },
        },
        ToDirector::ErrandEnded { number: 10, outcome: ErrandOutcome::Failed("busy".into()) },
        ToDirector::DestroyOwner { owner: "ann".into(), within_ms: 5000 },
    ]
}

fn from_director() -> Vec<FromDirector> {
    vec![
        FromDirector::Registered { incarnation: Incarnation(3), view: view() },
        FromDirector::Mandate { sent_ns: 1 << 50 },
        FromDirector::View(view()),
        FromDirector::PrepareDrain,
        FromDirector::Over { drained: true },
        FromDirector::Refused(Refusal::OldTerm(EPOCH)),
        FromDirector::Errand {
            number: 7,
            errand: Errand::List { owner: Some("ann".into()), cursor: 0, limit: 9 },
            within_ms: 1000,
        },
        FromDirector::Errand {
            number: 8,
            errand: Errand::Destroy(Doomed::Owner("ann".into())),
            within_ms: 1000,
        },
        FromDirector::OwnerDestroyed { sessions: 3 },
    ]
}
