//! `libselvage`: the node library's C interface, for web servers and everything else that can call C.
//!
//! `include/selvage.h` is generated from these files (tests/header.rs); its first page has the rules that
//! every function keeps. One file per object: [`node`], [`cookie`], [`session`] with [`attributes`] and
//! [`finish`] (commit, destroy, regenerate), [`owner`] (all sessions of one), [`completion`]; [`status`] and
//! [`guard`] serve all. The nginx module in `nginx/` sees only the header.
//!
//! Invariants: every exported function's body runs inside `guard::enter!`; a handle is a `Box` whose
//! address C holds; handles carry the process generation that made them (see [`process`]).

// Types keep their C names, so that nothing is renamed between the two languages.
#![allow(non_camel_case_types)]

pub mod attributes;
pub mod completion;
pub mod cookie;
pub mod finish;
pub mod guard;
mod json;
mod log;
pub mod node;
pub mod owner;
pub mod process;
pub mod session;
mod signals;
pub mod status;
mod text;
