//! What members count and time: the catalogue that those who count and those who show have in common.
//!
//! Nodes and servers report plain lists of numbers, in the order of these catalogues, and the director gives
//! them their names. So reports stay small, and nobody can make the director show a name that it does not
//! know. Within a control protocol version new entries go to the end: an older reader leaves out what it does
//! not know.
//!
//! Counters only rise within a life (an incarnation) of their member. Callers: `cache` keeps the numbers of a
//! node, `node`, the session server and the director count.

mod catalog;
mod histogram;

pub use catalog::{NodeCounter, NodeTime, ServerCounter, ServerTime};
pub(crate) use histogram::lower_bound_ns;
pub use histogram::{BUCKETS, Histogram, SharedHistogram, bound_s, bucket_of};

/// Of so many commits of a process one is timed, and each of its pushes: reading the clock each time would
/// show.
pub const SAMPLE: u64 = 16;
