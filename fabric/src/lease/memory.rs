//! Memory that holds a lease, seen from the side that reads it.

use crate::error::Result;

/// Memory of a lease. All accesses are copies or atomic words; no reference into it is ever made (invariant 10).
pub trait LeaseMemory: Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// Copies a range out, by relaxed words.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;
    /// Copies into a range, by relaxed words.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Loads an aligned word with Acquire.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn load_u64(&self, offset: u64) -> Result<u64>;
    /// Stores an aligned word with Release.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn store_u64(&self, offset: u64, value: u64) -> Result<()>;
    /// Loads an aligned word with Acquire.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn load_u32(&self, offset: u64) -> Result<u32>;
    /// Stores an aligned word with Release.
    ///
    /// # Errors
    /// `Corrupt` if it lies outside or is not aligned.
    fn store_u32(&self, offset: u64, value: u32) -> Result<()>;
}

/// A lease in private memory, for tests and simulation.
pub struct HeapMemory {}

impl HeapMemory {
    /// Zeroed memory.
    pub fn new(_bytes: u64) -> Self {
        unimplemented!()
    }
}
