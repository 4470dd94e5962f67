//! Memory of this process that a network card reads from and writes to.
//!
//! Unsafe, because who implements [`Region`] promises what the compiler cannot see: the card goes on using
//! the addresses for as long as the object lives.

/// A piece of mapped memory that stays where it is. The cache's segment is the one there is; links that send
/// in place keep it for their life.
///
/// # Safety
/// From `address` on, `bytes` bytes are mapped readable and writable until the object is dropped, and neither
/// value changes.
pub unsafe trait Region: Send + Sync {
    /// Where it begins.
    fn address(&self) -> *mut u8;
    /// How long it is.
    fn bytes(&self) -> usize;
}
