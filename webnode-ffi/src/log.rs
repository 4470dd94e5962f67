//! What the library says about itself while it runs: on standard error, and only if it is asked.
//!
//! A library must not write into a host program's standard error unasked: some close it, and use its number
//! for a connection. nginx passes the variables on to its workers with `env SELVAGE_LOG;`.

use std::sync::Once;

/// Begins to write what `SELVAGE_LOG` asks for (`warn`, `info`, `debug`, or as the daemons take it), in the
/// form that `SELVAGE_LOG_FORMAT` names (`text` or `json`). Without the first variable, or with one that
/// cannot be understood, nothing is written. Only the first call counts.
pub fn begin() {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(selvage_fabric::log::begin_if_asked);
}
