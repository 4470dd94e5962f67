//! End-to-end tests with real processes: session servers, director, nginx, and HTTP clients.

mod bad_input;
mod browser;
mod chaos;
mod claims;
mod handover;
mod kills;
mod kinds;
mod metrics;
mod operating;
mod operator;
mod owners;
mod readme;
mod rolling;
mod without_rdma;
mod zombies;
