//! The network between hosts, and connections over it.
//!
//! Connections behave as TCP's and Unix sockets' do: what is sent arrives once and in order, or the
//! connection ends; loss shows as delay. A cut between two hosts is one-sided: each direction has its own.
//! What waits too long behind a cut ends the connection, at each end by itself.

use crate::schedule::{self, MS, Pid, Time, US};
use crate::world::{World, cover, world};
use crate::{director, server};
use selvage_fabric::control::message::{FromDirector, FromServer, ToDirector, ToServer};
use std::collections::{BTreeSet, VecDeque};

/// A machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Host(pub usize);

/// Names a connection; never reused in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

/// What goes over connections.
#[derive(Clone, Debug)]
pub enum Message {
    ToServer(ToServer),
    FromServer(FromServer),
    ToDirector(ToDirector),
    FromDirector(FromDirector),
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all are messages")]
enum Packet {
    Message(Message),
    Close,
}

/// Who is at an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Party {
    /// The director, to a steward.
    Director,
    /// The director, to the server of this index.
    DirectorOf(usize),
    /// The server of this index.
    Server(usize),
    /// A fiber that looks into the mailbox.
    Fiber,
}

struct End {
    pid: Pid,
    host: Host,
    party: Party,
    open: bool,
    inbox: VecDeque<(Time, Packet)>,
    pumping: bool,
    mail: VecDeque<Message>,
    waiting: Option<schedule::FiberId>,
}

/// A connection; side 0 has begun it.
pub struct Conn {
    ends: [End; 2],
}

/// Which ways are cut, and how slow the others are.
pub struct Net {
    cut: BTreeSet<(Host, Host)>,
    pub latency: Time,
    pub jitter: Time,
    pub loss_per_mille: u64,
}

/// A lost packet is sent again after so long.
const RETRANSMISSION: Time = 200 * MS;
/// What waits so long ends its connection.
const VANISHED: Time = 1200 * MS;
/// How often what is held back is looked at.
const LOOK: Time = 10 * MS;

impl Net {
    pub fn new(latency: Time, jitter: Time, loss_per_mille: u64) -> Self {
        Self { cut: BTreeSet::new(), latency, jitter, loss_per_mille }
    }

    pub fn reaches(&self, from: Host, to: Host) -> bool {
        from == to || !self.cut.contains(&(from, to))
    }

    pub fn cut(&mut self, from: Host, to: Host) {
        self.cut.insert((from, to));
    }

    pub fn join(&mut self, from: Host, to: Host) {
        self.cut.remove(&(from, to));
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.loss_per_mille = 0;
        self.jitter = 0;
    }
}

impl World {
    /// From sending to arrival.
    pub fn delay(&mut self, from: Host, to: Host) -> Time {
        if from == to {
            return 5 * US + self.random.below(30 * US);
        }
        let mut delay = self.net.latency + self.random.below(self.net.jitter + 1);
        if self.random.chance(self.net.loss_per_mille) {
            self.cover("fault: message lost");
            delay += RETRANSMISSION;
        }
        delay
    }

    fn conn_ends(&self, conn: ConnId, side: usize) -> Option<(&End, &End)> {
        let conn = self.conns.get(&conn)?;
        Some((&conn.ends[side], &conn.ends[1 - side]))
    }
}

/// A new connection that both ends have accepted.
pub fn connect(ends: [(Pid, Host, Party); 2]) -> ConnId {
    world(|world| {
        world.conn_last += 1;
        let id = ConnId(world.conn_last);
        let end = |(pid, host, party)| End {
            pid,
            host,
            party,
            open: true,
            inbox: VecDeque::new(),
            pumping: false,
            mail: VecDeque::new(),
            waiting: None,
        };
        world.conns.insert(id, Conn { ends: ends.map(end) });
        id
    })
}

/// Sends from a side, if that is still open.
pub fn send(conn: ConnId, side: usize, message: Message) {
    put(conn, side, Packet::Message(message));
}

/// Ends a connection from one side; the other side hears of it.
pub fn close(conn: ConnId, side: usize) {
    put(conn, side, Packet::Close);
    world(|world| {
        if let Some(conn) = world.conns.get_mut(&conn) {
            conn.ends[side].open = false;
            conn.ends[side].inbox.clear();
        }
    });
}

fn put(conn: ConnId, side: usize, packet: Packet) {
    let arrival = world(|world| {
        let (own, other) = world.conn_ends(conn, side)?;
        if !own.open || !other.open {
            return None;
        }
        let (from, to) = (own.host, other.host);
        let last = other.inbox.back().map_or(0, |(at, _)| *at);
        let arrival = (schedule::now() + world.delay(from, to)).max(last);
        let other = &mut world.conns.get_mut(&conn)?.ends[1 - side];
        other.inbox.push_back((arrival, packet));
        (!std::mem::replace(&mut other.pumping, true)).then_some(arrival)
    });
    if let Some(arrival) = arrival {
        schedule::after(arrival.saturating_sub(schedule::now()), move || pump(conn, 1 - side));
    }
}

#[allow(clippy::large_enum_variant, reason = "nearly all are messages")]
enum Next {
    Deliver(Party, Packet),
    Later(Time),
    Vanished,
    Nothing,
}

/// Delivers what has arrived at a side.
fn pump(conn: ConnId, side: usize) {
    loop {
        match world(|world| next(world, conn, side)) {
            Next::Deliver(party, packet) => deliver(conn, side, party, packet),
            Next::Later(wait) => return schedule::after(wait, move || pump(conn, side)),
            Next::Nothing => return,
            Next::Vanished => {
                cover("state: connection given up");
                vanish(conn, 0);
                return vanish(conn, 1);
            }
        }
    }
}

fn next(world: &mut World, conn: ConnId, side: usize) -> Next {
    let now = schedule::now();
    let Some((own, other)) = world.conn_ends(conn, side) else { return Next::Nothing };
    let reaches = world.net.reaches(other.host, own.host);
    let stopped = schedule::is_paused(own.pid);
    let Some(end) = world.conns.get_mut(&conn).map(|conn| &mut conn.ends[side]) else { return Next::Nothing };
    let Some((arrival, _)) = end.inbox.front().filter(|_| end.open) else {
        end.pumping = false;
        return Next::Nothing;
    };
    if *arrival > now {
        return Next::Later(arrival - now);
    }
    if !reaches {
        return if now > arrival + VANISHED { Next::Vanished } else { Next::Later(LOOK) };
    }
    if stopped {
        return Next::Later(LOOK);
    }
    match end.inbox.pop_front() {
        Some((_, packet)) => Next::Deliver(end.party, packet),
        None => Next::Nothing,
    }
}

/// One end gives its connection up without a word.
fn vanish(conn: ConnId, side: usize) {
    let party = world(|world| {
        let end = world.conns.get_mut(&conn).map(|conn| &mut conn.ends[side])?;
        end.open.then_some(end.party)
    });
    if let Some(party) = party {
        deliver(conn, side, party, Packet::Close);
    }
}

fn deliver(conn: ConnId, side: usize, party: Party, packet: Packet) {
    if matches!(packet, Packet::Close) {
        world(|world| {
            if let Some(conn) = world.conns.get_mut(&conn) {
                conn.ends[side].open = false;
            }
        });
    }
    match (party, packet) {
        (Party::Director, Packet::Message(Message::ToDirector(message))) => {
            director::steward_said(conn, message)
        }
        (Party::Director, Packet::Close) => director::steward_left(conn),
        (Party::DirectorOf(server), Packet::Message(Message::FromServer(message))) => {
            director::server_said(server, conn, message);
        }
        (Party::DirectorOf(server), Packet::Close) => director::server_left(server, conn),
        (Party::Server(server), Packet::Message(Message::ToServer(message))) => {
            server::request(server, conn, message);
        }
        (Party::Server(server), Packet::Close) => server::closed(server, conn),
        (Party::Fiber, packet) => {
            let waiting = world(|world| {
                let end = &mut world.conns.get_mut(&conn)?.ends[side];
                if let Packet::Message(message) = packet {
                    end.mail.push_back(message);
                }
                end.waiting
            });
            waiting.into_iter().for_each(schedule::wake);
        }
        (party, packet) => panic!("{party:?} got {packet:?}"),
    }
}

/// What a fiber's mailbox holds next. `Err`: the connection has ended.
pub fn take(conn: ConnId, side: usize) -> Result<Option<Message>, ()> {
    world(|world| {
        let end = world.conns.get_mut(&conn).map(|conn| &mut conn.ends[side]).ok_or(())?;
        match end.mail.pop_front() {
            None if !end.open => Err(()),
            message => Ok(message),
        }
    })
}

/// The fiber that is woken by mail.
pub fn set_waiting(conn: ConnId, side: usize, fiber: Option<schedule::FiberId>) {
    world(|world| {
        if let Some(conn) = world.conns.get_mut(&conn) {
            conn.ends[side].waiting = fiber;
        }
    });
}

/// Waits for mail, at most until `deadline` (simulated time).
pub fn receive(conn: ConnId, side: usize, deadline: Time) -> Result<Option<Message>, ()> {
    set_waiting(conn, side, schedule::current());
    let received = loop {
        match take(conn, side) {
            Ok(None) if schedule::now() < deadline => schedule::park(deadline - schedule::now()),
            other => break other,
        }
    };
    set_waiting(conn, side, None);
    received
}

/// Whether a side has ended, or was ended.
pub fn is_open(conn: ConnId, side: usize) -> bool {
    world(|world| world.conn_ends(conn, side).is_some_and(|(own, _)| own.open))
}

/// A process has died: its host ends its connections.
pub fn close_all_of(pid: Pid) {
    let ends: Vec<(ConnId, usize)> = world(|world| {
        let ends = world
            .conns
            .iter()
            .flat_map(|(id, conn)| (0..2).filter(|side| conn.ends[*side].pid == pid).map(|side| (*id, side)));
        ends.collect()
    });
    for (conn, side) in ends {
        close(conn, side);
    }
}
