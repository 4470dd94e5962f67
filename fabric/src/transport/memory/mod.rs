//! The memory of leases, whichever way nodes write to it: a memfd that the server makes, maps and reads.
//!
//! `mapping` holds the unsafe code, `lease` is the server's end.

mod lease;
mod mapping;

pub use lease::{HUGE_PAGE_BYTES, ServerLease, create};
pub use mapping::Mapping;
