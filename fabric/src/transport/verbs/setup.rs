//! The node's side of a connection: a queue pair and its registered memory, one round trip over control.

use super::channel::{Channel, Path, RemoteLease};
use super::data::VerbsLink;
use super::device::{Device, Verbs};
use super::endpoint::{LocalEnd, Role};
use super::objects::{Cq, Mr, Qp, QpCaps};
use super::{EXTRA_WRS, error};
use crate::config::Rdma;
use crate::control::message::{Endpoint, RemoteMemory};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::Incarnation;
use crate::lease::LeaseGeometry;
use crate::limits::RDMA_INLINE_BYTES;
use crate::transport::Region;
use std::net::IpAddr;
use std::sync::Arc;

/// A connection that waits for the server's answer.
pub struct Opening {
    qp: Qp,
    cq: Arc<Cq>,
    source: Arc<Mr>,
    device: Arc<Device>,
    local: LocalEnd,
    config: Rdma,
    offer: Endpoint,
    changes: u32,
}

impl Opening {
    /// Makes this end: `segment` is the memory that pushes are sent from, `local` this host's address of the
    /// control connection, if it has one.
    ///
    /// # Errors
    /// As [`Verbs::availability`]; `Invalid` if the limit on locked memory is too low; `Unreachable` if the
    /// device refuses.
    pub fn begin(verbs: &Verbs, segment: &Arc<dyn Region>, local: Option<IpAddr>) -> Result<Self> {
        let config = verbs.config().clone();
        let (device, local, changes) = verbs.open(local)?;
        let source = device.source(segment)?;
        let refuse = |what: &str, error| error::device(&device.name, what, error);
        let send_wrs = (2 * config.queue_depth + EXTRA_WRS).min(device.send_wrs_max());
        let cq = Arc::new(
            Cq::new(device.context(), send_wrs + 1, true)
                .map_err(|error| refuse("makes no completion queue", error))?,
        );
        let caps = QpCaps { send_wrs, inline_bytes: RDMA_INLINE_BYTES };
        let qp = Qp::new(device.pd(), &cq, caps).map_err(|error| refuse("makes no queue pair", error))?;
        let (attributes, mask) = local.init(Role::Node);
        qp.modify(attributes, mask).map_err(|error| refuse("cannot begin a queue pair", error))?;
        let offer = local.endpoint(qp.number(), random()?, config.service_level);
        Ok(Self { qp, cq, source, device, local, config, offer, changes })
    }

    /// What the server must be told.
    pub fn offer(&self) -> Endpoint {
        self.offer
    }

    /// Connects to what the server has answered. After this, pushes go.
    ///
    /// # Errors
    /// `Corrupt` if the answer cannot be; `Unreachable` if the two ports cannot speak to each other.
    pub fn finish(
        self,
        answer: &Endpoint,
        memory: RemoteMemory,
        geometry: LeaseGeometry,
        server: Incarnation,
    ) -> Result<VerbsLink> {
        geometry.check()?;
        if memory.bytes < geometry.total_bytes() || memory.address.checked_add(memory.bytes).is_none() {
            let RemoteMemory { address, bytes, .. } = memory;
            let what = format!(
                "the server told {bytes} bytes at {address:#x} for a lease of {} bytes",
                geometry.total_bytes()
            );
            return Err(Error::new(ErrorKind::Corrupt, Origin::Transport, what));
        }
        connect(&self.qp, &self.device, &self.local, &self.config, self.offer.packet_sequence, answer)?;
        let Self { qp, cq, source, device, local, changes, .. } = self;
        let path = Path { mtu: local.mtu(answer), choice: local.choice, changes };
        let lease = RemoteLease { memory, geometry, server };
        VerbsLink::new(Channel { qp, cq, source, lease, path, device })
    }
}

/// Takes a queue pair from INIT to RTS.
pub(super) fn connect(
    qp: &Qp,
    device: &Device,
    local: &LocalEnd,
    config: &Rdma,
    packet_sequence: u32,
    remote: &Endpoint,
) -> Result<()> {
    local.check(remote)?;
    let (attributes, mask) = local.receive(remote, config);
    qp.modify(attributes, mask).map_err(|error| {
        let what = format!("port {} finds no way to the other end", local.choice.port.number);
        error::device(&device.name, &what, error)
    })?;
    let (attributes, mask) = local.send(packet_sequence, remote, config);
    qp.modify(attributes, mask)
        .map_err(|error| error::device(&device.name, "cannot finish a queue pair", error))
}

/// A packet sequence number: random, so that packets of an older connection do not fit.
pub(super) fn random() -> Result<u32> {
    getrandom::u32().map_err(|error| {
        let what = "the system gives no random numbers";
        Error::new(ErrorKind::Os, Origin::Transport, what).with_source(error.to_string())
    })
}
