//! What the C library is asked for by threads that run a simulation: clocks, random bytes, the process
//! id. The simulation's answers come from its seed, so production code runs unchanged and every run of one
//! seed is the same, down to the order of hash maps. Other threads of this program get the kernel's.
//!
//! Unsafe code: these are C functions, and they write where their callers say.

use crate::schedule;
use std::ffi::{c_int, c_uint, c_void};

/// The monotonic and the real-time clock.
///
/// # Safety
/// `to` points to a `timespec`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut libc::timespec) -> c_int {
    let time = match schedule::clock(clock == libc::CLOCK_REALTIME) {
        Some(ns) => {
            libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
        }
        None => {
            let clock = match clock {
                libc::CLOCK_REALTIME => rustix::time::ClockId::Realtime,
                _ => rustix::time::ClockId::Monotonic,
            };
            let time = rustix::time::clock_gettime(clock);
            libc::timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec }
        }
    };
    // SAFETY: the caller's obligation, as of the function that this stands for.
    unsafe { to.write(time) };
    0
}

/// Random bytes; the simulation's are its own.
///
/// # Safety
/// `to` has room for `bytes`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(to: *mut c_void, bytes: usize, _flags: c_uint) -> isize {
    if bytes == 0 {
        return 0;
    }
    // SAFETY: the caller's obligation; the bytes may be uninitialised, so they are cleared first.
    unsafe { to.write_bytes(0, bytes) };
    // SAFETY: cleared above, and nobody else has it.
    let out = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) };
    if schedule::fill_random(out) {
        return bytes as isize;
    }
    // SAFETY: the kernel writes `bytes` bytes at `to`, which has room for them.
    unsafe { libc::syscall(libc::SYS_getrandom, to, bytes, 0) as isize }
}

/// The process id: each simulated process has its own.
#[unsafe(no_mangle)]
extern "C" fn getpid() -> c_int {
    schedule::pid().map_or_else(|| rustix::process::getpid().as_raw_nonzero().get(), |pid| pid as c_int)
}
