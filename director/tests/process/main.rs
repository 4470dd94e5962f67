//! The real program, on one host and with others: see the modules.

mod clients;
mod elder;
mod front;
mod held;
mod local;
mod remote;
mod sessions;
mod site;
