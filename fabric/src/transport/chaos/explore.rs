//! All that may be in a lease's memory at each step of a node, and what a scan finds there.
//!
//! The node goes by what it is told and never by what is in the lease, so its steps (from the production
//! code, over a scripted card) and the landing of pieces can be tried apart: for each step of each script,
//! all contents of memory that can be reached by landing pieces of pushes under way, in any order and any
//! number of times. In each of these states the lease is sealed and scanned by the production code.
//!
//! Pruned: scripts share their common beginnings; a piece that changes nothing leads nowhere new; an archive
//! is cut into few pieces, because all that anybody knows of it is one checksum; of the torn forms of a push
//! whose link has failed, if nothing else is ever written where it goes, one stays. All of them read the
//! same, which was seen while it was under way, and from each of them the whole one can be reached.

use super::{Step, Write};
use crate::archive::ArchiveLimits;
use crate::ident::{SessionId, Version};
use crate::lease::{
    Cell, CellState, HeapMemory, LeaseGeometry, LeaseIndex, LeaseMemory, SLOT_BYTES, SlotIndex, fetch,
};
use crate::rules::{Rule, holds};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// How much was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explored {
    /// Steps, common beginnings counted once.
    pub steps: usize,
    /// States: a step and a content of memory. In each of them a scan was judged.
    pub states: usize,
    /// Different contents of memory that were scanned.
    pub memories: usize,
}

/// The piece of a push that has its cell's checksum.
const CHECKSUM_PIECE: usize = 7;
/// More states than this at one step are an explosion, not a proof.
const STATES_MAX: usize = 300_000;

/// Which flight wrote each word last, in the order of addresses; 0: nobody.
type Memory = Box<[u16]>;

/// What a scan says of the session.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Found {
    Nothing,
    Tombstone(Version),
    Live(Version, u64),
    Broken(String),
}

/// One step of some scripts, and the steps that follow in one of them.
struct Node {
    step: Option<Step>,
    children: Vec<usize>,
}

/// A push in words, by pieces: the address of each (then its place among all addresses) and its value.
#[derive(Default)]
struct Flight {
    pieces: Vec<Vec<(usize, u64)>>,
    cell: Option<Cell>,
    archive: Option<u64>,
}

/// What is known at a step.
#[derive(Clone, Default)]
struct Known {
    /// The flights of this script, in the order of posting: number, link, whether they may still land, and
    /// whether their link has failed.
    flights: Vec<Way>,
    /// The newest acked version.
    acked: Option<Version>,
    destroyed: bool,
}

#[derive(Clone, Copy)]
struct Way {
    flight: usize,
    link: u64,
    lands: bool,
    lingers: bool,
}

struct Explorer<'a> {
    id: SessionId,
    nodes: Vec<Node>,
    /// By number, from 1.
    flights: Vec<Flight>,
    /// The flight that begins at a node.
    posted: HashMap<usize, usize>,
    /// Flights whose words others write while they may still land.
    shared: HashSet<usize>,
    addresses: Vec<usize>,
    /// What each flight writes to each word, by flight and place.
    values: Vec<Vec<Option<u64>>>,
    geometry: LeaseGeometry,
    memory: HeapMemory,
    limits: &'a ArchiveLimits,
    found: HashMap<u128, Found>,
    explored: Explored,
}

/// Tries everything. `archive_pieces`: into how many an archive is cut.
///
/// # Errors
/// What a scan found, where it may not, and how that came.
pub fn explore(scripts: &[Vec<Step>], id: SessionId, archive_pieces: usize) -> Result<Explored, String> {
    let writes = || scripts.iter().flatten().filter_map(write_of);
    let slots = writes().map(|write| write.slot.0 + 1).max().unwrap_or(1);
    let blocks = writes().filter_map(|write| write.block.as_ref());
    let ends = blocks.map(|(block, archive)| u64::from(block.0) * 256 + archive.len() as u64);
    let heap_bytes = (2 * ends.max().unwrap_or(0)).next_multiple_of(4096).max(4096);
    let geometry = LeaseGeometry { slot_count: slots, heap_bytes, chunk_bytes: 4096 };
    let limits = ArchiveLimits::default();
    let mut explorer = Explorer {
        id,
        nodes: vec![Node { step: None, children: Vec::new() }],
        flights: vec![Flight::default()],
        posted: HashMap::new(),
        shared: HashSet::new(),
        addresses: Vec::new(),
        values: Vec::new(),
        geometry,
        memory: HeapMemory::new(geometry.total_bytes()),
        limits: &limits,
        found: HashMap::new(),
        explored: Explored::default(),
    };
    for script in scripts {
        explorer.add(script, archive_pieces);
    }
    explorer.compile();
    let nothing = vec![0; explorer.addresses.len()].into_boxed_slice();
    explorer.descend(0, &Known::default(), &HashSet::from([nothing]))?;
    explorer.explored.steps = explorer.nodes.len() - 1;
    explorer.explored.memories = explorer.found.len();
    Ok(explorer.explored)
}

fn write_of(step: &Step) -> Option<&Write> {
    match step {
        Step::Posted(write) => Some(write),
        _ => None,
    }
}

impl Explorer<'_> {
    /// Adds a script: its steps join those that are there, as far as they are the same.
    fn add(&mut self, script: &[Step], archive_pieces: usize) {
        let mut at = 0;
        let mut ways: Vec<Way> = Vec::new();
        for step in script {
            let same = |child: &&usize| self.nodes[**child].step.as_ref() == Some(step);
            let known = self.nodes[at].children.iter().find(same).copied();
            let node = known.unwrap_or_else(|| {
                self.nodes.push(Node { step: Some(step.clone()), children: Vec::new() });
                let node = self.nodes.len() - 1;
                self.nodes[at].children.push(node);
                if let Some(write) = write_of(step) {
                    self.flights.push(self.flight(write, archive_pieces));
                    self.posted.insert(node, self.flights.len() - 1);
                }
                node
            });
            if let Some(flight) = self.posted.get(&node).copied() {
                for way in ways.iter().filter(|way| way.lands) {
                    if overlap(&self.flights[way.flight], &self.flights[flight]) {
                        self.shared.insert(way.flight);
                        self.shared.insert(flight);
                    }
                }
            }
            follow(&mut ways, step, self.posted.get(&node).copied());
            at = node;
        }
    }

    fn flight(&self, write: &Write, archive_pieces: usize) -> Flight {
        let cell_offset = self.geometry.cell_offset(write.slot, write.sequence).unwrap() as usize;
        let mut pieces: Vec<Vec<_>> = words(cell_offset, &write.cell).map(|word| vec![word]).collect();
        if let Some((block, archive)) = &write.block {
            let offset = self.geometry.block_offset(*block, archive.len()).unwrap() as usize;
            let all: Vec<_> = words(offset, archive).collect();
            pieces.extend(all.chunks(all.len().div_ceil(archive_pieces)).map(<[_]>::to_vec));
        }
        let cell = Cell::decode(&write.cell).unwrap();
        let archive = write.block.as_ref().map(|(_, archive)| xxh3_64(archive));
        Flight { pieces, cell, archive }
    }

    /// Replaces addresses by their places among all that are ever written.
    fn compile(&mut self) {
        let words = self.flights.iter().flat_map(|flight| flight.pieces.iter().flatten());
        let addresses: BTreeSet<usize> = words.map(|(address, _)| *address).collect();
        self.addresses = addresses.into_iter().collect();
        for flight in &mut self.flights {
            let mut values = vec![None; self.addresses.len()];
            for (address, value) in flight.pieces.iter_mut().flatten() {
                *address = self.addresses.binary_search(address).unwrap();
                values[*address] = Some(*value);
            }
            self.values.push(values);
        }
    }

    /// Goes through all states at a node, and on to the next.
    fn descend(&mut self, node: usize, before: &Known, from: &HashSet<Memory>) -> Result<(), String> {
        let mut known = before.clone();
        let step = self.nodes[node].step.clone();
        let posted = self.posted.get(&node).copied();
        let mut states: HashSet<Memory> = from.clone();
        if let Some(step) = &step {
            if let Step::Acked(push) = step {
                let way = known.flights[*push];
                states.retain(|memory| self.has_landed(memory, way.flight, &known));
                let version = self.flights[way.flight].cell.map(|cell| cell.version);
                known.acked = known.acked.max(version.filter(|version| *version != Version::default()));
            }
            known.destroyed |= *step == Step::Destroyed;
            follow(&mut known.flights, step, posted);
        }
        self.close(&mut states, &known);
        if states.len() > STATES_MAX {
            return Err(format!(
                "{} states\n{}",
                states.len(),
                self.story(&known, &step, from.iter().next().unwrap())
            ));
        }
        let floor = self.floor(node, &known);
        for memory in &states {
            self.judge(memory, &known, floor)
                .map_err(|why| format!("{why}\n{}", self.story(&known, &step, memory)))?;
        }
        self.explored.states += states.len();
        for child in self.nodes[node].children.clone() {
            self.descend(child, &known, &states)?;
        }
        Ok(())
    }

    /// Adds everything that can be reached by landing pieces.
    fn close(&self, states: &mut HashSet<Memory>, known: &Known) {
        let landing: Vec<Way> = known.flights.iter().copied().filter(|way| way.lands).collect();
        let merged: HashSet<Memory> = states.drain().map(|memory| self.merge(memory, &landing)).collect();
        let mut open: Vec<Memory> = merged.iter().cloned().collect();
        *states = merged;
        while let Some(memory) = open.pop().filter(|_| states.len() <= STATES_MAX) {
            for way in &landing {
                for piece in 0..self.flights[way.flight].pieces.len() {
                    let mut next = memory.clone();
                    self.land(&mut next, way.flight, piece);
                    let next = self.merge(next, &landing);
                    if !states.contains(&next) {
                        states.insert(next.clone());
                        open.push(next);
                    }
                }
            }
        }
    }

    fn land(&self, memory: &mut Memory, flight: usize, piece: usize) {
        for (at, value) in &self.flights[flight].pieces[piece] {
            if self.value(memory, *at) != *value {
                memory[*at] = flight as u16;
            }
        }
    }

    /// Replaces any torn form of a push whose link has failed by one: all but the cell's checksum is there.
    fn merge(&self, mut memory: Memory, landing: &[Way]) -> Memory {
        for way in landing.iter().filter(|way| way.lingers && !self.shared.contains(&way.flight)) {
            let pieces = self.flights[way.flight].pieces.len();
            if (0..pieces).all(|piece| self.is_there(&memory, way.flight, piece)) {
                continue;
            }
            (0..pieces).for_each(|piece| self.land(&mut memory, way.flight, piece));
            let (at, _) = self.flights[way.flight].pieces[CHECKSUM_PIECE][0];
            memory[at] = 0;
        }
        memory
    }

    fn is_there(&self, memory: &Memory, flight: usize, piece: usize) -> bool {
        self.flights[flight].pieces[piece].iter().all(|(at, value)| self.value(memory, *at) == *value)
    }

    /// Whether every piece can have landed: it is there, or what is there came from another push under way.
    fn has_landed(&self, memory: &Memory, flight: usize, known: &Known) -> bool {
        let others: Vec<usize> = known
            .flights
            .iter()
            .filter(|way| way.lands && way.flight != flight)
            .map(|way| way.flight)
            .collect();
        self.flights[flight].pieces.iter().flatten().all(|(at, value)| {
            let there = self.value(memory, *at);
            there == *value || others.iter().any(|other| self.values[*other][*at] == Some(there))
        })
    }

    fn value(&self, memory: &Memory, at: usize) -> u64 {
        self.values[memory[at] as usize][at].unwrap_or(0)
    }

    /// The least version that a scan must find: what was acked. Without the fence (R2), what is acked after
    /// the scan counts as well.
    fn floor(&self, node: usize, known: &Known) -> Option<Version> {
        let later = self.nodes[node].children.iter().filter_map(|child| match self.nodes[*child].step {
            Some(Step::Acked(push)) => self.flights[known.flights[push].flight].cell.map(|cell| cell.version),
            _ => None,
        });
        if holds(Rule::R2SealByView) { known.acked } else { known.acked.max(later.max()) }
    }

    /// Seals in this state, scans, and compares with what was promised.
    fn judge(&mut self, memory: &Memory, known: &Known, floor: Option<Version>) -> Result<(), String> {
        let bytes: Vec<u8> = memory.iter().flat_map(|writer| writer.to_le_bytes()).collect();
        let key = xxh3_128(&bytes);
        let found = match self.found.get(&key) {
            Some(found) => found.clone(),
            None => {
                let found = self.scan(memory);
                self.found.insert(key, found.clone());
                found
            }
        };
        let pushes = || {
            let flights = known.flights.iter().map(|way| &self.flights[way.flight]);
            flights.filter_map(|flight| Some((flight.cell?, flight.archive)))
        };
        // A touch names the block of an earlier push.
        let holds_archive =
            |block, archive| pushes().any(|(cell, posted)| cell.block == block && posted == Some(archive));
        let posted = |state: CellState, version: Version, archive: u64| {
            pushes().any(|(cell, _)| {
                let same = cell.version == version && cell.state == state;
                same && (state != CellState::Live || holds_archive(cell.block, archive))
            })
        };
        let good = match &found {
            Found::Nothing => floor.is_none() || known.destroyed,
            Found::Tombstone(version) => floor <= Some(*version) && posted(CellState::Tombstone, *version, 0),
            Found::Live(version, archive) => {
                floor <= Some(*version) && !known.destroyed && posted(CellState::Live, *version, *archive)
            }
            Found::Broken(_) => false,
        };
        if good {
            return Ok(());
        }
        Err(format!("found {found:?}; acked: {floor:?}, destroyed: {}", known.destroyed))
    }

    fn scan(&self, memory: &Memory) -> Found {
        for (at, address) in self.addresses.iter().enumerate() {
            self.memory.store_u64(*address as u64, self.value(memory, at)).unwrap();
        }
        let (index, _) = LeaseIndex::scan(&self.memory, &self.geometry, self.limits).unwrap();
        let Some(copy) = index.find(&self.id) else { return Found::Nothing };
        if !copy.live {
            return Found::Tombstone(copy.version);
        }
        match fetch(&self.memory, &self.geometry, copy, self.limits) {
            Ok(archive) => Found::Live(copy.version, xxh3_64(&archive)),
            Err(error) => Found::Broken(error.to_string()),
        }
    }

    /// For people: how it came to this, and what is in memory.
    fn story(&self, known: &Known, last: &Option<Step>, memory: &Memory) -> String {
        let mut story = format!("last step: {last:?}\n");
        for (number, way) in known.flights.iter().enumerate() {
            let flight = &self.flights[way.flight];
            let landed: Vec<bool> =
                (0..flight.pieces.len()).map(|piece| self.is_there(memory, way.flight, piece)).collect();
            let cell = flight.cell;
            story += &format!(
                "push {number} over link {}: {cell:?}\n  may land: {}, pieces there: {landed:?}\n",
                way.link, way.lands
            );
        }
        let slots = BTreeMap::from_iter((0..self.geometry.slot_count).map(|slot| {
            let mut pair = [0; SLOT_BYTES];
            let offset = self.geometry.cell_offset(SlotIndex(slot), Default::default()).unwrap();
            self.memory.read(offset, &mut pair).unwrap();
            let cells = pair.as_chunks::<64>().0.iter().map(Cell::decode).collect::<Vec<_>>();
            (slot, cells)
        }));
        story + &format!("{slots:#?}")
    }
}

/// Little-endian words of bytes; the last one is filled up with zeros.
fn words(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    bytes.chunks(8).enumerate().map(move |(at, part)| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        (offset + at * 8, u64::from_ne_bytes(word))
    })
}

fn overlap(one: &Flight, other: &Flight) -> bool {
    let addresses = |flight: &Flight| -> HashSet<usize> {
        flight.pieces.iter().flatten().map(|(address, _)| *address).collect()
    };
    !addresses(one).is_disjoint(&addresses(other))
}

/// What a step means for the flights.
fn follow(ways: &mut Vec<Way>, step: &Step, posted: Option<usize>) {
    match step {
        Step::Posted(write) => {
            let flight = posted.expect("every posted push is a flight");
            ways.push(Way { flight, link: write.link, lands: true, lingers: false });
        }
        Step::Acked(push) => ways[*push].lands = false,
        Step::Failed(push) => ways[*push].lingers = true,
        Step::Gone(link) => {
            ways.iter_mut().filter(|way| way.link == *link).for_each(|way| way.lands = false);
        }
        Step::Destroyed => {}
    }
}
