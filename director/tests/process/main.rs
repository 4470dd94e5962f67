//! The real program, on one host and with others: see the modules.

mod held;
mod local;
mod remote;
mod site;
