//! What the library says about itself while it runs: on standard error, and only if it is asked.
//!
//! A library must not write into a host program's standard error unasked: some close it, and use its number
//! for a connection. nginx passes the variable on to its workers with `env SELVAGE_LOG;`.

use std::io::IsTerminal;
use std::sync::Once;

use tracing_subscriber::EnvFilter;

/// Begins to write what `SELVAGE_LOG` asks for (`warn`, `info`, `debug`, or as the daemons take it). Without
/// the variable, or with one that cannot be understood, nothing is written. Only the first call counts.
pub fn begin() {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(|| {
        if let Ok(filter) = EnvFilter::try_from_env("SELVAGE_LOG") {
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            // A program in Rust that links the library may have its own log already; then that one counts.
            let _ = log.with_ansi(std::io::stderr().is_terminal()).try_init();
        }
    });
}
