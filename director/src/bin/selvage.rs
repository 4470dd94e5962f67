//! `selvage status | drain | undrain | check-config | ca`: see `selvage_director::tool`.

#![forbid(unsafe_code)]

use clap::Parser;
use selvage_director::tool;
use std::process::ExitCode;

fn main() -> ExitCode {
    match tool::run(tool::Arguments::parse()) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("selvage: {error}");
            ExitCode::FAILURE
        }
    }
}
