//! `selvage status | top | sessions | drain | ...`: see `selvage_director::tool`.

#![forbid(unsafe_code)]

use clap::Parser;
use selvage_director::{manual, tool};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(written) = manual::asked_for(tool::command(), "1") {
        return written;
    }
    tool::run(&tool::Arguments::parse())
}
