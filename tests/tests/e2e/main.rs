//! End-to-end tests with real processes: session servers, director, nginx, and HTTP clients.

mod bad_input;
mod chaos;
mod claims;
mod kills;
mod operator;
mod readme;
mod without_rdma;
mod zombies;
