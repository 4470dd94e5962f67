//! The agent of a guest: does what the test in guest 0 asks for. `cargo x rdma-test` starts one in each.

use anyhow::{Context, Result};
use selvage_tests::guest;
use std::net::TcpListener;

fn main() -> Result<()> {
    let address = std::env::args().nth(1).context("usage: selvage-guest-agent ADDRESS:PORT")?;
    let listener = TcpListener::bind(&address).with_context(|| format!("cannot listen at {address}"))?;
    guest::serve(&listener)
}
