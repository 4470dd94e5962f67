//! The data path of shared memory: one memory copy, one cell, one fence, one look at the seal word.

/// A node's end of a lease in shared memory. See [`super::setup::map`].
pub struct ShmLink {}
