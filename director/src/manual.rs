//! The manual pages of a program, made from its command line: `PROGRAM --manual FOLDER` writes them. For
//! `cargo x install` only, so it is in no help text and no command line knows it.

use clap::Command;
use clap_mangen::Man;
use std::ffi::OsString;
use std::io::Result;
use std::path::Path;
use std::process::ExitCode;

/// Writes the pages if that is what the program was started for; whether it went well.
pub fn asked_for(command: Command, section: &str) -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [first, folder] = &arguments[..] else { return None };
    if first != "--manual" {
        return None;
    }
    Some(match write(command, section, Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write the manual to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    })
}

/// A page for the command and one for each of its commands.
fn write(command: Command, section: &str, folder: &Path) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    // Gives commands their long names, which are those of their pages.
    command.build();
    page(&command, section, folder)
}

fn page(command: &Command, section: &str, folder: &Path) -> Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        page(inner, section, folder)?;
    }
    Man::new(command.clone()).section(section).generate_to(folder).map(drop)
}
