//! The RDMA devices of this host, and the ones that this process has open.
//!
//! [`Verbs`] is the process's hold on RDMA: links and doors over one device share one open context, and links
//! share one registration of the cache segment. It is made after a fork, by the process that uses it: a child
//! must not touch what its parent has opened, and what it inherits is left alone when it is dropped.
//!
//! Unsafe: device events and the fork question, which sideway does not have.

use super::choose::{Choice, choose};
use super::endpoint::{LocalEnd, Reads};
use super::error;
use super::look::{describe, look_at, partition_keys, shown_at};
use super::objects::{Access, Mr, set_nonblocking};
use crate::config::Rdma;
use crate::error::Result;
use crate::transport::Region;
use rdma_mummy_sys as sys;
use sideway::ibverbs::device::{DeviceList, GetDeviceListErrorKind};
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use std::mem::ManuallyDrop;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, Weak};

/// Reads under way on one queue pair, at most; more bring nothing.
const READS_MAX: i32 = 16;
/// A process's hold on RDMA.
pub struct Verbs {
    config: Rdma,
    open: Mutex<Vec<Weak<Device>>>,
}

/// An open device.
pub(super) struct Device {
    /// Its name, like `mlx5_0`.
    pub(super) name: String,
    context: ManuallyDrop<Arc<DeviceContext>>,
    /// The domain of the links of this process. Leases have domains of their own.
    pd: ManuallyDrop<Arc<ProtectionDomain>>,
    pid: u32,
    reads: Reads,
    send_wrs_max: u32,
    /// Memory that only this process's requests read, by where it lies.
    sources: Mutex<Vec<Weak<Mr>>>,
    /// Where the kernel shows it, as long as it has it.
    shown_at: Option<PathBuf>,
    /// Counts the events that may change GIDs, LIDs or partition keys.
    changes: AtomicU32,
    fault: OnceLock<String>,
}

impl Verbs {
    /// Takes the settings; opens nothing yet.
    pub fn new(config: &Rdma) -> Self {
        Self { config: config.clone(), open: Mutex::new(Vec::new()) }
    }

    /// The settings.
    pub(super) fn config(&self) -> &Rdma {
        &self.config
    }

    /// What a connection would go over now: device, port, GID and MTU, for people. `local` is this host's
    /// address of the control connection, if there is one.
    ///
    /// # Errors
    /// `Unreachable` or `Invalid`, saying what is missing, where and what to do.
    pub fn availability(&self, local: Option<IpAddr>) -> Result<String> {
        Ok(describe(&self.choose(local)?.1))
    }

    /// The name of the device that a connection would go over now, if there is one.
    pub fn device_name(&self, local: Option<IpAddr>) -> Option<String> {
        self.choose(local).ok().map(|(_, choice)| choice.device)
    }

    /// Chooses device, port and GID, and opens the device or shares it. Answers also the device's count of
    /// changes up to which the choice is known to hold.
    pub(super) fn open(&self, local: Option<IpAddr>) -> Result<(Arc<Device>, LocalEnd, u32)> {
        let (context, choice) = self.choose(local)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|device| device.strong_count() > 0);
        let shared = open
            .iter()
            .filter_map(Weak::upgrade)
            .find_map(|device| device.serves(&choice).map(|changes| (device, changes)));
        let (device, changes) = match shared {
            Some(shared) => shared,
            None => {
                // Its events are kept since its context was opened, which was before the choice.
                let device = Arc::new(Device::new(choice.device.clone(), context)?);
                open.push(Arc::downgrade(&device));
                (device, 0)
            }
        };
        let local = LocalEnd { choice, partition_index: 0, reads: device.reads };
        Ok((device, local, changes))
    }

    fn choose(&self, local: Option<IpAddr>) -> Result<(Arc<DeviceContext>, Choice)> {
        if !self.config.enabled {
            return Err(error::switched_off());
        }
        prepare_for_forks();
        let list = DeviceList::new().map_err(|error| {
            let GetDeviceListErrorKind::Ibverbs(error) = error.0 else { return error::no_device() };
            error::cannot_list(error)
        })?;
        if list.is_empty() {
            return Err(error::no_device());
        }
        let (contexts, facts): (Vec<_>, Vec<_>) = list.iter().map(|device| look_at(&device)).unzip();
        let choice = choose(&facts, &self.config, local)?;
        let at = facts.iter().position(|facts| facts.name == choice.device);
        let context = at.and_then(|at| contexts.into_iter().nth(at)?).ok_or_else(error::no_device)?;
        Ok((context, choice))
    }
}

impl Device {
    fn new(name: String, context: Arc<DeviceContext>) -> Result<Self> {
        let attributes =
            context.query_device().map_err(|error| error::device(&name, "cannot be queried", error))?;
        let bounded = |count: i32| u8::try_from(count.clamp(1, READS_MAX)).unwrap_or(1);
        let reads = Reads {
            asked: bounded(attributes.max_qp_init_rd_atom()),
            answered: bounded(attributes.max_qp_rd_atom()),
        };
        let send_wrs_max = u32::try_from(attributes.max_qp_wr()).unwrap_or(1);
        // SAFETY: the pointer is used while `context` lives.
        let raw = unsafe { context.context() };
        // SAFETY: the context is open, and its descriptor never changes.
        let fd = unsafe { (*raw.as_ptr()).async_fd };
        // SAFETY: the descriptor is open as long as `context`.
        let events = unsafe { BorrowedFd::borrow_raw(fd) };
        set_nonblocking(events).map_err(|error| error::device(&name, "has no event channel", error))?;
        let pd =
            context.alloc_pd().map_err(|error| error::device(&name, "gives no protection domain", error))?;
        Ok(Self {
            shown_at: shown_at(&context),
            name,
            context: ManuallyDrop::new(context),
            pd: ManuallyDrop::new(pd),
            pid: std::process::id(),
            reads,
            send_wrs_max,
            sources: Mutex::new(Vec::new()),
            changes: AtomicU32::new(0),
            fault: OnceLock::new(),
        })
    }

    /// The domain of this process's links.
    pub(super) fn pd(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    /// The open device.
    pub(super) fn context(&self) -> &Arc<DeviceContext> {
        &self.context
    }

    /// Work requests that one queue pair can hold.
    pub(super) fn send_wrs_max(&self) -> u32 {
        self.send_wrs_max
    }

    /// A domain of its own, for a lease.
    pub(super) fn new_domain(&self) -> Result<Arc<ProtectionDomain>> {
        self.context
            .alloc_pd()
            .map_err(|error| error::device(&self.name, "gives no protection domain", error))
    }

    /// Registers memory for this process's own requests to send from; once, however many links ask.
    pub(super) fn source(&self, region: &Arc<dyn Region>) -> Result<Arc<Mr>> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|mr| mr.strong_count() > 0);
        let same = |mr: &Arc<Mr>| Arc::ptr_eq(mr.region(), region);
        if let Some(mr) = sources.iter().filter_map(Weak::upgrade).find(same) {
            return Ok(mr);
        }
        let mr = Arc::new(self.register(&self.pd, region.clone(), Access::Local)?);
        sources.push(Arc::downgrade(&mr));
        Ok(mr)
    }

    /// Registers memory for this process's own reads to land in.
    pub(super) fn land(&self, region: Arc<dyn Region>) -> Result<Mr> {
        self.register(&self.pd, region, Access::Landing)
    }

    /// Registers memory in a domain.
    pub(super) fn register(
        &self,
        pd: &Arc<ProtectionDomain>,
        region: Arc<dyn Region>,
        access: Access,
    ) -> Result<Mr> {
        let bytes = region.bytes();
        if let Some(limits) = error::memlock_short(bytes) {
            return Err(error::memlock(&self.name, bytes, limits));
        }
        Mr::register(pd, region, access)
            .map_err(|error| error::device(&self.name, &format!("cannot register {bytes} bytes"), error))
    }

    /// How many events have come that may change GIDs, LIDs or partition keys.
    pub(super) fn changes(&self) -> u32 {
        self.changes.load(Ordering::Acquire)
    }

    /// Takes note of the device's events, and says why a connection that was made with `choice`, when
    /// [`Self::changes`] was `changes`, is of no more use, if so: the device has failed, or its port has
    /// another address now. Never blocks; a system call.
    pub(super) fn fault(&self, choice: &Choice, changes: u32) -> Option<String> {
        self.take_events();
        // Some drivers do not tell that their device is being removed, and wait for us to let it go.
        if self.fault.get().is_none() && self.shown_at.as_ref().is_some_and(|path| !path.exists()) {
            self.fail("was removed");
        }
        if let Some(fault) = self.fault.get() {
            return Some(fault.clone());
        }
        if self.changes() == changes || self.still_has(choice) {
            return None;
        }
        let (name, number) = (&self.name, choice.port.number);
        Some(format!("RDMA device {name} port {number} has another address now; links are opened again"))
    }

    /// Whether a port still has the GID, the LID and the partition keys that it had when it was chosen.
    fn still_has(&self, choice: &Choice) -> bool {
        let number = choice.port.number;
        let same_gid = self
            .context
            .query_gid(number, u32::from(choice.gid.index))
            .is_ok_and(|gid| gid.raw == choice.gid.gid);
        let same_port = self.context.query_port(number).is_ok_and(|port| {
            let keys = partition_keys(&self.context, number, port.attr.pkey_tbl_len);
            port.attr.lid == choice.port.lid && keys == choice.port.partition_keys
        });
        same_gid && same_port
    }

    /// Takes note of what the device has told since the last call.
    fn take_events(&self) {
        // SAFETY: the pointer is used while `self` lives.
        let raw = unsafe { self.context.context() };
        loop {
            let mut event = Event { element: 0, kind: 0 };
            // SAFETY: the context is open and its descriptor does not block; `Event` has the structure's
            // layout (asserted below).
            let result = unsafe {
                sys::ibv_get_async_event(raw.as_ptr(), (&raw mut event).cast::<sys::ibv_async_event>())
            };
            if result != 0 {
                return;
            }
            // SAFETY: the event was given by the call above and is acknowledged once. At once, because
            // destroying what it names would wait for that.
            unsafe { sys::ibv_ack_async_event((&raw mut event).cast::<sys::ibv_async_event>()) };
            self.note(event.kind);
        }
    }

    fn note(&self, kind: u32) {
        use sys::ibv_event_type as of;
        let name = self.name.as_str();
        let is = |event: of| kind == event as u32;
        if is(of::IBV_EVENT_DEVICE_FATAL) {
            let fault =
                format!("RDMA device {name} has failed or was removed; links over it are opened again");
            tracing::error!(device = name, "{fault}");
            // Only the first word counts.
            let _ = self.fault.set(fault);
        } else if is(of::IBV_EVENT_GID_CHANGE)
            || is(of::IBV_EVENT_LID_CHANGE)
            || is(of::IBV_EVENT_CLIENT_REREGISTER)
            || is(of::IBV_EVENT_PKEY_CHANGE)
            || is(of::IBV_EVENT_PORT_ACTIVE)
        {
            self.changes.fetch_add(1, Ordering::AcqRel);
            tracing::info!(device = name, event = kind, "a port's addresses may have changed");
        } else if is(of::IBV_EVENT_PORT_ERR) {
            tracing::warn!(device = name, "a port is down; its links fail when their retries end");
        } else {
            // A queue pair's own troubles show in its completions; a new subnet manager changes nothing.
            tracing::debug!(device = name, event = kind, "device event");
        }
    }

    fn fail(&self, how: &str) {
        let fault = format!("RDMA device {} {how}; links over it are opened again elsewhere", self.name);
        tracing::error!(device = self.name, "{fault}");
        // Only the first word counts.
        let _ = self.fault.set(fault);
    }

    /// Whether a new connection can share it: a device that came back under its name is another one. Answers
    /// the count of changes up to which it has what was chosen.
    fn serves(&self, choice: &Choice) -> Option<u32> {
        self.take_events();
        let changes = self.changes();
        let same = self.name == choice.device && self.fault.get().is_none() && self.still_has(choice);
        same.then_some(changes)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A forked child's commands would act on the parent's objects.
        if self.pid != std::process::id() {
            return;
        }
        // SAFETY: dropped once, here; the domain before its device.
        unsafe { ManuallyDrop::drop(&mut self.pd) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.context) };
    }
}

/// An asynchronous event. The library's own type is an enum in Rust, which a newer kernel's event would
/// make undefined.
#[repr(C)]
struct Event {
    element: usize,
    kind: u32,
}

const _: () = assert!(size_of::<Event>() == size_of::<sys::ibv_async_event>());
const _: () =
    assert!(std::mem::offset_of!(Event, kind) == std::mem::offset_of!(sys::ibv_async_event, event_type));

/// Where memory that a card knows would be torn apart by fork, libibverbs must be told before anything is
/// registered. Where it would not, it must not be: the advice that it then gives the kernel would take the
/// cache segment away from children.
fn prepare_for_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: asks, and changes nothing.
        let status = unsafe { sys::ibv_is_fork_initialized() };
        if status != sys::IBV_FORK_DISABLED {
            return;
        }
        // SAFETY: nothing of this process is registered yet: every device is opened after this.
        let result = unsafe { sys::ibv_fork_init() };
        if result != 0 {
            tracing::warn!(error = result, "libibverbs cannot be prepared for forks");
        }
    });
}
