//! The server's side: a [`Door`] lets the processes of one node into one lease.
//!
//! A lease has one protection domain, one memory region and one queue pair per process, so that the hardware
//! keeps a node to its own lease: no key of another domain opens it. Nothing here runs while pushes arrive.
//!
//! **The fence (R2).** [`Door::seal`] deregisters the lease's memory first. That call waits for every
//! reference, so what is in memory when it returns is all that there will ever be; moving queue pairs to the
//! error state would not do (measured: bytes changed afterwards). Then the queue pairs go. Only when the door
//! is sealed may the lease be scanned, see [`crate::transport::memory::ServerLease::settle`].

use super::PeerId;
use super::device::{Device, Verbs};
use super::endpoint::{LocalEnd, Role, mtu_bytes};
use super::error;
use super::look::describe;
use super::objects::{Access, Cq, Mr, Qp, QpCaps};
use super::setup::{connect, random};
use crate::config::Rdma;
use crate::control::message::{Endpoint, RemoteMemory};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::lease::LeaseMemory;
use crate::limits::{FETCH_BATCH_BYTES, PROCESSES_MAX, RDMA_NOTICE};
use crate::transport::memory::{Mapping, ServerLease};
#[cfg(feature = "mutants")]
use rdma_mummy_sys as sys;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Times that a refused destroy call is tried.
const TRIES: u32 = 3;

/// What lets the processes of one node into one lease.
pub struct Door {
    config: Rdma,
    local: LocalEnd,
    archive_bytes_max: usize,
    changes: u32,
    state: Mutex<State>,
    device: Arc<Device>,
}

/// Fields are dropped in order, which is the fence's.
struct State {
    /// The lease's memory; `None` once it is taken back.
    memory: Option<Mr>,
    sealed: bool,
    peers: HashMap<PeerId, Peer>,
    cq: Arc<Cq>,
    pd: Arc<ProtectionDomain>,
}

/// One process of the node.
struct Peer {
    /// Destroyed before its staging memory.
    qp: Option<Qp>,
    staging: Option<Staging>,
    mtu: u8,
}

/// Memory that one process reads archives from.
struct Staging {
    mr: Mr,
    buffer: Arc<Mapping>,
}

impl Door {
    /// Registers a lease. `local` is this host's address of the control connection; `archive_bytes_max` is
    /// the largest archive that will be staged.
    ///
    /// # Errors
    /// As [`Verbs::availability`]; `Invalid` if the limit on locked memory is too low; `Unreachable` if the
    /// device refuses.
    pub fn open(
        verbs: &Verbs,
        lease: &ServerLease,
        local: Option<IpAddr>,
        archive_bytes_max: usize,
    ) -> Result<Self> {
        let (device, local, changes) = verbs.open(local)?;
        let pd = device.new_domain()?;
        let memory = device.register(&pd, lease.region(), Access::Lease)?;
        let cq = Cq::new(device.context(), 1, false)
            .map_err(|error| error::device(&device.name, "makes no completion queue", error))?;
        let state =
            State { memory: Some(memory), sealed: false, peers: HashMap::new(), cq: Arc::new(cq), pd };
        let config = verbs.config().clone();
        Ok(Self { config, local, archive_bytes_max, changes, state: Mutex::new(state), device })
    }

    /// Lets a process in: makes its queue pair, ready to receive. Answers this end and the lease's memory. A
    /// connection that asks again gets a new queue pair instead of its old one.
    ///
    /// # Errors
    /// `OwnershipLost` if the lease is sealed; `Corrupt` if the offer cannot be; `Full` for more processes
    /// than a node has; `Unreachable` if the two ports cannot speak to each other or the device has gone.
    /// Nothing is kept then.
    pub fn connect(&self, peer: PeerId, offer: &Endpoint) -> Result<(Endpoint, RemoteMemory)> {
        let mut state = self.state();
        let memory = state.memory.as_ref().filter(|_| !state.sealed).ok_or_else(|| self.is_over())?;
        if let Some(fault) = self.fault() {
            return Err(error::faulted(&fault));
        }
        let remote = RemoteMemory {
            address: address(memory),
            bytes: memory.region().bytes() as u64,
            key: memory.rkey(),
        };
        let mut local = self.local.clone();
        local.check(offer)?;
        if state.peers.len() >= PROCESSES_MAX && !state.peers.contains_key(&peer) {
            let what = format!("{PROCESSES_MAX} processes have RDMA links into this lease; no node has more");
            return Err(Error::new(ErrorKind::Full, Origin::Transport, what));
        }
        // The process has put its queue pair into its partition already.
        local.partition_index = local.partition_of(offer.partition_key).unwrap_or_default();
        self.end(&mut state, peer)?;
        let refuse = |what: &str, error| error::device(&self.device.name, what, error);
        let qp = Qp::new(&state.pd, &state.cq, QpCaps { send_wrs: 1, inline_bytes: 0 })
            .map_err(|error| refuse("makes no queue pair", error))?;
        let (attributes, mask) = local.init(Role::Server);
        qp.modify(attributes, mask).map_err(|error| refuse("cannot begin a queue pair", error))?;
        let packet_sequence = random()?;
        connect(&qp, &self.device, &local, &self.config, packet_sequence, offer)?;
        let endpoint = local.endpoint(qp.number(), packet_sequence, self.config.service_level);
        let mtu = local.mtu(offer);
        state.peers.insert(peer, Peer { qp: Some(qp), staging: None, mtu });
        Ok((endpoint, remote))
    }

    /// Shuts a process out. When it returns `Ok`, nothing that it has sent will be written any more (R4);
    /// also if it was never in.
    ///
    /// # Errors
    /// `Unreachable` if the device would not destroy the queue pair; the process may still write then. Ask
    /// again.
    pub fn disconnect(&self, peer: PeerId) -> Result<()> {
        self.end(&mut self.state(), peer)
    }

    /// Puts archives, one behind the other, where the process can read them, until the next call. Answers
    /// where; exactly as long as all of them.
    ///
    /// # Errors
    /// `OwnershipLost` if the lease is sealed; `Denied` if the process is not in; `TooLarge` for more than a
    /// batch and one archive; `Invalid` if the limit on locked memory is too low; `Unreachable` if the device
    /// refuses.
    pub fn stage(&self, peer: PeerId, archives: &[&[u8]]) -> Result<RemoteMemory> {
        let mut state = self.state();
        if state.sealed {
            return Err(self.is_over());
        }
        let State { peers, pd, .. } = &mut *state;
        let denied = || Error::new(ErrorKind::Denied, Origin::Transport, "no RDMA link on this connection");
        let peer = peers.get_mut(&peer).ok_or_else(denied)?;
        let room = FETCH_BATCH_BYTES + self.archive_bytes_max;
        let bytes: usize = archives.iter().map(|archive| archive.len()).sum();
        if bytes > room {
            let what = format!("{bytes} bytes of archives are more than the {room} that one answer takes");
            return Err(Error::new(ErrorKind::TooLarge, Origin::Transport, what));
        }
        let staging = match &mut peer.staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(&self.device, pd, room)?),
        };
        let mut offset = 0;
        for archive in archives {
            staging.buffer.write(offset, archive)?;
            offset += archive.len() as u64;
        }
        Ok(RemoteMemory { address: address(&staging.mr), bytes: offset, key: staging.mr.rkey() })
    }

    /// Takes the lease away from everybody, for ever. When it returns `Ok`, not one byte of the lease will
    /// change any more through this door. Idempotent.
    ///
    /// # Errors
    /// `Unreachable` if the device gives back neither the memory nor all queue pairs: somebody may still
    /// write, and the lease must not be scanned. Ask again.
    pub fn seal(&self) -> Result<()> {
        let mut state = self.state();
        state.sealed = true;
        let had_memory = state.memory.is_some();
        let memory = self.take_memory_back(&mut state);
        let peers: Vec<PeerId> = state.peers.keys().copied().collect();
        if had_memory && memory.is_ok() && !peers.is_empty() {
            // The fence is done. While the queue pairs still answer, a zombie is told at once that the memory
            // is gone; afterwards only its retries would tell it, half a second later.
            std::thread::sleep(RDMA_NOTICE);
        }
        // All of them, also when one fails.
        let ended: Vec<Result<()>> = peers.into_iter().map(|peer| self.end(&mut state, peer)).collect();
        let ended: Result<()> = ended.into_iter().collect();
        match (memory, ended) {
            // No memory, or nobody who could write to it: either is enough.
            (Ok(()), _) | (_, Ok(())) => Ok(()),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// The control of the fence's test: moves the queue pairs to the error state and does nothing else. That
    /// waits for nothing, so what is under way may still land afterwards.
    ///
    /// # Errors
    /// `Unreachable` if the device refuses.
    #[cfg(feature = "mutants")]
    pub fn fence_badly(&self) -> Result<()> {
        let state = self.state();
        for qp in state.peers.values().filter_map(|peer| peer.qp.as_ref()) {
            let (mut attributes, _) = self.local.init(Role::Server);
            attributes.qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
            qp.modify(attributes, sys::ibv_qp_attr_mask::IBV_QP_STATE)
                .map_err(|error| error::device(&self.device.name, "does not stop a queue pair", error))?;
        }
        Ok(())
    }

    /// Whether it can let anybody in: not sealed, its device works, and its port has the address that it had.
    /// One that cannot is sealed, dropped and, if its lease lives, opened anew.
    pub fn is_open(&self) -> bool {
        self.fault().is_none() && !self.state().sealed
    }

    /// Processes that are in.
    pub fn peers(&self) -> usize {
        self.state().peers.len()
    }

    /// Device, port, and the smallest path MTU of those who are in; for people.
    pub fn detail(&self) -> String {
        let text = describe(&self.local.choice);
        match self.state().peers.values().map(|peer| peer.mtu).min() {
            Some(mtu) => format!("{text}, path MTU {}", mtu_bytes(mtu)),
            None => text,
        }
    }

    fn fault(&self) -> Option<String> {
        self.device.fault(&self.local.choice, self.changes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is complete before the next begins, so a panic elsewhere harms nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> Error {
        let what = format!("the lease on RDMA device {} is sealed", self.device.name);
        Error::new(ErrorKind::OwnershipLost, Origin::Transport, what)
    }

    fn take_memory_back(&self, state: &mut State) -> Result<()> {
        for tries_left in (0..TRIES).rev() {
            let Some(memory) = state.memory.take() else { return Ok(()) };
            if let Err((memory, error)) = memory.deregister() {
                state.memory = Some(memory);
                if tries_left == 0 {
                    return Err(error::device(
                        &self.device.name,
                        "does not give a lease's memory back",
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends a process's queue pair and then its staging memory.
    fn end(&self, state: &mut State, peer: PeerId) -> Result<()> {
        for tries_left in (0..TRIES).rev() {
            let Some(ending) = state.peers.get_mut(&peer) else { return Ok(()) };
            let Some(qp) = ending.qp.take() else { break };
            if let Err((qp, error)) = qp.destroy() {
                ending.qp = Some(qp);
                if tries_left == 0 {
                    return Err(error::device(&self.device.name, "does not destroy a queue pair", error));
                }
            }
        }
        state.peers.remove(&peer);
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Err(error) = self.seal() {
            tracing::error!(%error, "a lease's memory is left to its device");
        }
    }
}

impl Staging {
    fn new(device: &Device, pd: &Arc<ProtectionDomain>, bytes: usize) -> Result<Self> {
        let buffer = Arc::new(Mapping::anonymous(bytes)?);
        let mr = device.register(pd, buffer.clone(), Access::RemoteRead)?;
        Ok(Self { mr, buffer })
    }
}

fn address(memory: &Mr) -> u64 {
    memory.region().address().addr() as u64
}
