//! One open device of this process.

use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::sync::Arc;
use std::sync::OnceLock;

/// An open device: its context, and the protection domain of this process's links.
pub(super) struct Device {
    /// The domain of the links of this process. Leases have domains of their own.
    pub(super) pd: Arc<ProtectionDomain>,
    /// The open device.
    pub(super) context: Arc<DeviceContext>,
    /// Its name, like `mlx5_0`.
    pub(super) name: String,
    fault: OnceLock<String>,
}

impl Device {
    /// Why nothing works over it any more, if so: the sentence names device and event.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }
}
