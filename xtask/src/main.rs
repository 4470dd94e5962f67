//! `cargo x`: the one entry for building, running, showing, testing and checking Selvage. CI calls nothing
//! else.

mod ci;
mod deb;
mod demo;
mod figures;
mod fuzz;
mod guest;
mod install;
mod kills;
mod proofs;
mod rdma;
mod run;
mod setup;
mod sim;
mod soak;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, runs, shows, tests and checks Selvage.
#[derive(Parser)]
#[command(name = "cargo x", bin_name = "cargo x")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this host lacks (as root, with apt-get), or say what is missing
    Setup,
    /// Start a cluster on this host in the foreground; Ctrl-C stops it and leaves nothing
    Run(run::Arguments),
    /// Put the product's files in their places: programs, libraries, headers, units, manual pages
    Install(install::Arguments),
    /// Remove what install has put there
    Uninstall(install::UninstallArguments),
    /// Make Debian packages
    Deb(deb::Arguments),
    /// Kill web nodes and session servers under load, and count what was lost
    Demo(demo::Arguments),
    /// Run all tests
    Test(test::Arguments),
    /// Run the tests that need RDMA: over two soft-RoCE devices, and over several hosts, which are guests
    RdmaTest(rdma::test::Arguments),
    /// Measure pushes over RDMA against a raw-verbs loop
    RdmaBench(rdma::bench::Arguments),
    /// Run a program of this host in a guest with two soft-RoCE devices, rxe0 and rxe1
    Guest(guest::Arguments),
    /// Check the protocols of shared words under loom
    Loom,
    /// Check all that a network card may do to a lease, and all that may befall a small cluster
    Model,
    /// Simulate whole clusters with faults, many seeds of a minute each, and check what they promised
    Sim(sim::Arguments),
    /// Kill or stop real processes at each named step, and compare the books
    Kills(kills::Arguments),
    /// Feed bytes to everything that takes them from outside, guided by what they reach
    Fuzz(fuzz::Arguments),
    /// A cluster under load for a long time, while everything happens to it in turn
    Soak(soak::Arguments),
    /// Run everything that a change must pass
    Ci,
    /// Check the rules on structure that no compiler knows
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::ensure(setup::EVERYTHING),
        Command::Run(arguments) => run::main(&arguments),
        Command::Install(arguments) => install::main(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Deb(arguments) => deb::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Test(arguments) => test::main(&arguments),
        Command::RdmaTest(arguments) => return end(rdma::test::main(&arguments)),
        Command::RdmaBench(arguments) => return end(rdma::bench::main(&arguments)),
        Command::Guest(arguments) => return end(guest::main(&arguments)),
        Command::Loom => proofs::loom(),
        Command::Model => proofs::model(),
        Command::Sim(arguments) => sim::main(&arguments),
        Command::Kills(arguments) => kills::main(&arguments),
        Command::Fuzz(arguments) => fuzz::main(&arguments),
        Command::Soak(arguments) => soak::main(&arguments),
        Command::Ci => ci::main(),
        Command::Tidy => tidy::main(),
    };
    end(result.map(|()| ExitCode::SUCCESS))
}

fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
