//! The server's RDMA: what lets the processes of other hosts into a lease.
//!
//! The traits are the seam between carrying out decisions and the devices, so that the order of a seal can be
//! tested without any. What implements them is the fabric's verbs transport, or nothing where it was left
//! out of the build.

use crate::decide::LinkNumber;
use selvage_fabric::config::Config;
use selvage_fabric::control::message::{Endpoint, RemoteMemory};
use selvage_fabric::error::Result;
use selvage_fabric::transport::memory::ServerLease;
use std::net::IpAddr;
use std::sync::Arc;

/// This host's RDMA.
pub(crate) trait Rdma: Send + Sync {
    /// Registers a lease's memory. `local` is this host's address of the control connection that asks.
    ///
    /// # Errors
    /// Those of the device, or why there is none.
    fn open_door(&self, lease: &ServerLease, local: Option<IpAddr>) -> Result<Arc<dyn Door>>;
    /// What a connection would go over now, for people.
    ///
    /// # Errors
    /// Why there is no RDMA, and what to do about it.
    fn availability(&self) -> Result<String>;
    /// The name of the device of a connection now, such as `mlx5_0`, if there is one.
    fn device(&self) -> Option<String>;
}

/// One lease's registration, with a queue pair for each link.
pub(crate) trait Door: Send + Sync {
    /// Makes a link's queue pair, ready to receive.
    ///
    /// # Errors
    /// `OwnershipLost` once it is sealed; those of the device.
    fn connect(&self, link: LinkNumber, offer: &Endpoint) -> Result<(Endpoint, RemoteMemory)>;
    /// Destroys a link's queue pair, if it has it. After `Ok` nothing of that link is written any more.
    ///
    /// # Errors
    /// The device refuses; the link may still write.
    fn disconnect(&self, link: LinkNumber) -> Result<()>;
    /// Lays archives ready for a link to read, one behind the other, until the next call for it.
    ///
    /// # Errors
    /// `OwnershipLost` once it is sealed; `Denied` without the link; those of the device.
    fn stage(&self, link: LinkNumber, archives: &[&[u8]]) -> Result<RemoteMemory>;
    /// Takes the memory back and destroys all queue pairs. After `Ok` not one byte of the lease changes any
    /// more through this door. Idempotent.
    ///
    /// # Errors
    /// The device refuses; somebody may still write.
    fn seal(&self) -> Result<()>;
    /// Whether it can let anybody in: not sealed, and its device works.
    fn is_open(&self) -> bool;
    /// Device, port and path, for people.
    fn detail(&self) -> String;
}

/// The RDMA of this build, for a server of that name. What it says before anybody connects is of the device
/// of the server's control address.
pub(crate) fn of_this_build(config: &Config, name: &str) -> Box<dyn Rdma> {
    let control = config.server(name).and_then(|server| server.control).map(|control| control.ip());
    build::rdma(config, control.filter(|address| !address.is_unspecified()))
}

#[cfg(feature = "verbs")]
mod build {
    //! Over the verbs transport.

    use super::{Arc, Config, Door, Endpoint, IpAddr, LinkNumber, Rdma, RemoteMemory, Result, ServerLease};
    use selvage_fabric::transport::verbs::{self, PeerId, Verbs};

    struct Devices {
        verbs: Verbs,
        control: Option<IpAddr>,
        archive_bytes_max: usize,
    }

    pub(super) fn rdma(config: &Config, control: Option<IpAddr>) -> Box<dyn Rdma> {
        Box::new(Devices {
            verbs: Verbs::new(&config.rdma),
            control,
            archive_bytes_max: config.session.archive_bytes_max,
        })
    }

    impl Rdma for Devices {
        fn open_door(&self, lease: &ServerLease, local: Option<IpAddr>) -> Result<Arc<dyn Door>> {
            Ok(Arc::new(verbs::Door::open(&self.verbs, lease, local, self.archive_bytes_max)?))
        }

        fn availability(&self) -> Result<String> {
            self.verbs.availability(self.control)
        }

        fn device(&self) -> Option<String> {
            self.verbs.device_name(self.control)
        }
    }

    impl Door for verbs::Door {
        fn connect(&self, link: LinkNumber, offer: &Endpoint) -> Result<(Endpoint, RemoteMemory)> {
            self.connect(PeerId(link.0), offer)
        }

        fn disconnect(&self, link: LinkNumber) -> Result<()> {
            self.disconnect(PeerId(link.0))
        }

        fn stage(&self, link: LinkNumber, archives: &[&[u8]]) -> Result<RemoteMemory> {
            self.stage(PeerId(link.0), archives)
        }

        fn seal(&self) -> Result<()> {
            self.seal()
        }

        fn is_open(&self) -> bool {
            self.is_open()
        }

        fn detail(&self) -> String {
            self.detail()
        }
    }
}

#[cfg(not(feature = "verbs"))]
mod build {
    //! None.

    use super::{Arc, Config, Door, IpAddr, Rdma, Result, ServerLease};
    use selvage_fabric::error::{Error, ErrorKind, Origin};

    struct NoDevices;

    pub(super) fn rdma(_config: &Config, _control: Option<IpAddr>) -> Box<dyn Rdma> {
        Box::new(NoDevices)
    }

    impl NoDevices {
        fn why() -> Error {
            let what = "this server was built without RDMA (cargo feature `verbs`)";
            Error::new(ErrorKind::Unreachable, Origin::Server, what)
        }
    }

    impl Rdma for NoDevices {
        fn open_door(&self, _lease: &ServerLease, _local: Option<IpAddr>) -> Result<Arc<dyn Door>> {
            Err(Self::why())
        }

        fn availability(&self) -> Result<String> {
            Err(Self::why())
        }

        fn device(&self) -> Option<String> {
            None
        }
    }
}
