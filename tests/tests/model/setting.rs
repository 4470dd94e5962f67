//! What a check is about: how many copies and faults, and which part of a rule is left out.

use crate::cluster::Kind;
use crate::state::{NODES, SERVERS, Set};
use selvage_fabric::ident::{Incarnation, SessionId};
use selvage_fabric::placement::{adopter_of, servers_for};
use selvage_fabric::view::{NodeEntry, NodeState, ServerEntry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A part of a protocol rule that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// R1: an adopter claims at every server of the view, not only at the first.
    ClaimEverywhere,
    /// R1: a server grants the first claimant only.
    FirstClaimWins,
    /// R1: a server grants by the newest view that it has carried out, and no older.
    ClaimByNewest,
    /// R1: a server that is new hears of earlier claims before it answers.
    ClaimsRegistered,
    /// R2: nothing is adopted before every server has confirmed the seal.
    SealedEverywhere,
    /// R2: who pushes looks at the seal word before it counts an ack.
    SealWord,
    /// R2: one sealed lease ends the whole life.
    OneSealEndsAll,
    /// R4: a push goes to a fresh slot while an older one may still arrive.
    FreshSlot,
    /// R5: the highest version of all servers.
    FetchHighest,
    /// R5: with no server up nobody is told that a session is missing.
    MissingNeedsServers,
    /// R6: a server's life that a view has dropped never comes back.
    DroppedStayOut,
    /// R6: an ack counts for the life that gave it.
    AckOfLife,
    /// R8: acks are told under a mandate only.
    MandateChecked,
    /// R8: a mandate is shorter than the silence that ends a life.
    MandateShorter,
    /// R8: adoption waits for the mandate's end where a server could not confirm.
    MandateAwaited,
    /// R8: also where that server left before the life ended, but not as far as the life had heard.
    MandateAwaitedUnheard,
    /// R9: tombstones go to every lease to which the session was posted.
    TombstonesEverywhere,
    /// R9: sealed copies are declared gone.
    GoneDeclared,
    /// R10: a dead life's leases are kept until nothing in them is unsettled.
    ReleasedWhenSettled,
    /// R10: settled means acked at the full placement.
    SettledWhenAcked,
    /// R10: no slot of an adopted session is reused before the dead are released.
    SlotsKept,
    /// R11: "moved" is written after the new servers have acked.
    MovedWhenAcked,
    /// R12: an adopter's ownership epoch is new and above what it found.
    OwnershipRises,
    /// R12: the director goes above every epoch that is reported.
    AboveReported,
    /// R12: a restarted director has a new term.
    TermRises,
    /// R12: servers take rising epochs only.
    RefuseOlder,
    /// A restarted director decides nothing before every server has reported or is known to be absent.
    RecoveryWaits,
    /// A node that no server tells about may resume only if nobody has seen a newer epoch.
    ResumeOnlyNewest,
    /// No view is sent to a server before its first report was taken in.
    ReportFirst,
}

/// What was seen to happen; each must be, or the check is about nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Sight {
    TakenOver,
    AckTold,
    ZombieFoundSeal,
    ZombieRefused,
    ClaimElsewhere,
    MissingTold,
    GoneTold,
    TombstoneFound,
    LateArrived,
    Recopied,
    Moved,
    Settled,
    Released,
    ServerDropped,
    WaitedForMandate,
    Recovered,
    RecoveredUnheard,
    RecoveredAmidTakeover,
    ResumedUnknown,
    ClaimsTold,
}

impl Sight {
    pub const ALL: [Self; 20] = [
        Self::TakenOver,
        Self::AckTold,
        Self::ZombieFoundSeal,
        Self::ZombieRefused,
        Self::ClaimElsewhere,
        Self::MissingTold,
        Self::GoneTold,
        Self::TombstoneFound,
        Self::LateArrived,
        Self::Recopied,
        Self::Moved,
        Self::Settled,
        Self::Released,
        Self::ServerDropped,
        Self::WaitedForMandate,
        Self::Recovered,
        Self::RecoveredUnheard,
        Self::RecoveredAmidTakeover,
        Self::ResumedUnknown,
        Self::ClaimsTold,
    ];
}

/// What a check is about.
#[derive(Clone, Debug)]
pub struct Setting {
    /// How many faults, of these kinds.
    pub faults: u8,
    pub kinds: Vec<Kind>,
    /// What the user does: this many commits, and whether the session is destroyed.
    pub commits: u8,
    pub destroys: bool,
    pub without: Option<Part>,
    /// The servers that shall hold the session, by the servers that are up: by the production's placement.
    pub placement: [Set; 1 << SERVERS],
    pub seen: Arc<[AtomicU64; Sight::ALL.len()]>,
}

impl Setting {
    /// Any two faults, and one commit.
    pub fn new(copies: usize) -> Self {
        let id = session();
        let mut placement = [Set::default(); 1 << SERVERS];
        for (up, chosen) in placement.iter_mut().enumerate() {
            let up = Set(up as u8);
            let listed: Vec<ServerEntry> = up.iter().map(server).collect();
            for index in servers_for(id, &listed, copies as u32).iter() {
                chosen.add(up.iter().nth(usize::from(*index)).expect("an index into the list"));
            }
        }
        let kinds = Kind::ALL.to_vec();
        Self { faults: 2, kinds, commits: 1, destroys: false, without: None, placement, seen: Arc::default() }
    }

    pub fn holds(&self, part: Part) -> bool {
        self.without != Some(part)
    }

    /// The servers that shall hold the session.
    pub fn placed(&self, servers: &[u8; SERVERS]) -> Set {
        let up = (0..SERVERS).filter(|server| servers[*server] != 0).fold(0, |up, server| up | (1 << server));
        self.placement[up]
    }

    pub fn saw(&self, sight: Sight) {
        self.seen[sight as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn times(&self, sight: Sight) -> u64 {
        self.seen[sight as usize].load(Ordering::Relaxed)
    }
}

/// The session: the first whose one copy belongs at the first server, and whose adopter is not its first
/// host, so that both a server's return and a node's move it.
fn session() -> SessionId {
    let servers = [server(0), server(1)];
    let node = |name: usize| NodeEntry {
        name: format!("n{name}"),
        incarnation: Incarnation(name as u64 + 1),
        state: NodeState::Up,
        address: String::new(),
    };
    let nodes: Vec<NodeEntry> = (0..NODES).map(node).collect();
    let fits = |id: &SessionId| {
        servers_for(*id, &servers, 1)[0] == 0
            && adopter_of(*id, &nodes).is_some_and(|node| node.incarnation == Incarnation(2))
    };
    (0..=u8::MAX).map(|byte| SessionId([byte; 16])).find(fits).expect("rendezvous is fair")
}

fn server(name: usize) -> ServerEntry {
    ServerEntry {
        name: format!("s{name}"),
        incarnation: Incarnation(1),
        weight: 1,
        socket: String::new(),
        control: None,
    }
}
