//! What a build without the feature `verbs` has instead of RDMA: the same names, and the error that says so.
//! Nothing of it can be made but [`Verbs`].

use super::PeerId;
use crate::config::Rdma;
use crate::control::message::{Endpoint, RemoteMemory};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::lease::LeaseGeometry;
use crate::transport::memory::ServerLease;
use crate::transport::{ChecksumKind, Link, Outcome, Posted, Push, PushId, Region, TransportKind};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

fn absent() -> Error {
    let what = "there is no RDMA: this program was built without the feature `verbs`";
    Error::new(ErrorKind::Unreachable, Origin::Transport, what)
}

/// A process's hold on RDMA.
pub struct Verbs(());

impl Verbs {
    /// Takes the settings.
    pub fn new(_config: &Rdma) -> Self {
        Self(())
    }

    /// Why there is no RDMA.
    ///
    /// # Errors
    /// `Unreachable`, always.
    pub fn availability(&self, _local: Option<IpAddr>) -> Result<String> {
        Err(absent())
    }
}

/// A connection that waits for the server's answer.
pub struct Opening(Infallible);

impl Opening {
    /// Fails.
    ///
    /// # Errors
    /// `Unreachable`, always.
    pub fn begin(_verbs: &Verbs, _segment: &Arc<dyn Region>, _local: Option<IpAddr>) -> Result<Self> {
        Err(absent())
    }

    /// Cannot be called.
    pub fn offer(&self) -> Endpoint {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn finish(
        self,
        _answer: &Endpoint,
        _memory: RemoteMemory,
        _geometry: LeaseGeometry,
        _server: Incarnation,
    ) -> Result<VerbsLink> {
        match self.0 {}
    }
}

/// A node's end of a lease over RDMA.
pub struct VerbsLink(Infallible);

impl VerbsLink {
    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn read_bulk(&self, _memory: RemoteMemory) -> Result<Vec<u8>> {
        match self.0 {}
    }
}

impl Link for VerbsLink {
    fn kind(&self) -> TransportKind {
        match self.0 {}
    }

    fn checksum_kind(&self) -> ChecksumKind {
        match self.0 {}
    }

    fn geometry(&self) -> LeaseGeometry {
        match self.0 {}
    }

    fn server_incarnation(&self) -> Incarnation {
        match self.0 {}
    }

    fn post(&self, _push: &Push<'_>) -> Posted {
        match self.0 {}
    }

    fn poll(&self, _push: PushId) -> Option<Outcome> {
        match self.0 {}
    }

    fn wait(&self, _push: PushId, _timeout: Duration) {
        match self.0 {}
    }

    fn forget(&self, _push: PushId) {
        match self.0 {}
    }

    fn sends_in_place(&self) -> bool {
        match self.0 {}
    }

    fn detail(&self) -> String {
        match self.0 {}
    }

    fn is_broken(&self) -> bool {
        match self.0 {}
    }

    fn beat(&self, _beat: u64, _sessions: u64) {
        match self.0 {}
    }

    fn peer_beat(&self) -> u64 {
        match self.0 {}
    }

    fn is_sealed(&self) -> bool {
        match self.0 {}
    }
}

/// What lets the processes of one node into one lease.
pub struct Door(Infallible);

impl Door {
    /// Fails.
    ///
    /// # Errors
    /// `Unreachable`, always.
    pub fn open(
        _verbs: &Verbs,
        _lease: &ServerLease,
        _local: Option<IpAddr>,
        _archive_bytes_max: usize,
    ) -> Result<Self> {
        Err(absent())
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn connect(&self, _peer: PeerId, _offer: &Endpoint) -> Result<(Endpoint, RemoteMemory)> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn disconnect(&self, _peer: PeerId) -> Result<()> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn stage(&self, _peer: PeerId, _archives: &[&[u8]]) -> Result<RemoteMemory> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn seal(&self) -> Result<()> {
        match self.0 {}
    }

    /// Cannot be called.
    pub fn is_open(&self) -> bool {
        match self.0 {}
    }

    /// Cannot be called.
    pub fn peers(&self) -> usize {
        match self.0 {}
    }

    /// Cannot be called.
    pub fn detail(&self) -> String {
        match self.0 {}
    }
}
