//! What a process writes about itself while it runs: filter and form, the same for every part.
//!
//! Callers: the daemons' mains, and `libselvage` if it is asked. Nothing else decides what is written: code
//! says what happened with `tracing`, its values as fields. Cookies, keys and values of sessions are never
//! among them; a session's id alone opens nothing, because its cookie needs the signature.

use crate::error::{Error, ErrorKind, Origin};
use std::io::IsTerminal;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Names what is written: `info`, `warn`, `selvage_fabric::node=debug`, and so on.
pub const FILTER_VARIABLE: &str = "SELVAGE_LOG";
/// Names the form in which it is written.
pub const FORMAT_VARIABLE: &str = "SELVAGE_LOG_FORMAT";

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => {
                let context = format!("the log's format is text or json, not \"{other}\"");
                Err(Error::new(ErrorKind::Invalid, Origin::Config, context))
            }
        }
    }
}

impl Format {
    /// What `SELVAGE_LOG_FORMAT` names; text if that is nothing known.
    fn from_environment() -> Self {
        std::env::var(FORMAT_VARIABLE).ok().and_then(|format| format.parse().ok()).unwrap_or_default()
    }
}

/// Begins to write the log of a daemon to standard error: what `SELVAGE_LOG` asks for, else `RUST_LOG`, else
/// everything from `info`; in this form, or else the one that `SELVAGE_LOG_FORMAT` names.
pub fn begin(format: Option<Format>) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).or_else(|_| EnvFilter::try_from_default_env());
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    // Where there is a log already, that one goes on.
    let _ = write(filter, format.unwrap_or_else(Format::from_environment));
}

/// As [`begin`], for a library: only if `SELVAGE_LOG` asks for it. What a host program's own variables say is
/// for its own log.
pub fn begin_if_asked() {
    if let Ok(filter) = EnvFilter::try_from_env(FILTER_VARIABLE) {
        // A program in Rust that links the library may have its own log already; then that one counts.
        let _ = write(filter, Format::from_environment());
    }
}

fn write(filter: EnvFilter, format: Format) -> Result<(), TryInitError> {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => log.with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
        Format::Json => log.json().flatten_event(true).finish().try_init(),
    }
}
