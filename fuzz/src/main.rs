//! Fuzzing of everything that takes bytes from outside: `cargo x fuzz`.
//!
//! One program for all targets, so that it is linked once; `SELVAGE_FUZZ_TARGET` chooses. libFuzzer gives
//! inputs, by what of the code they reach; a panic, a failed assertion, a hang or too much memory is a
//! finding. Beside "no panic" each target has properties that must hold for every input; they stand at the
//! head of its file. With `SELVAGE_FUZZ_SEEDS` set to a folder, the target's seeds are written there instead:
//! values that the product really makes.

#![no_main]

mod answer;
mod archive;
mod config;
mod control;
mod cookie;
mod framing;
mod http;
mod lease;
mod members;
mod memory;
mod site;
mod wire;

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

/// What is fuzzed.
struct Target {
    name: &'static str,
    /// One input; panics if a property does not hold.
    run: fn(&[u8]),
    /// Inputs to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 9] = [
    Target { name: "answer", run: answer::run, seeds: answer::seeds },
    Target { name: "archive", run: archive::run, seeds: archive::seeds },
    Target { name: "config", run: config::run, seeds: config::seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "cookie", run: cookie::run, seeds: cookie::seeds },
    Target { name: "framing", run: framing::run, seeds: framing::seeds },
    Target { name: "http", run: http::run, seeds: http::seeds },
    Target { name: "lease", run: lease::run, seeds: lease::seeds },
    Target { name: "members", run: members::run, seeds: members::seeds },
];

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let wanted = std::env::var("SELVAGE_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == wanted) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("SELVAGE_FUZZ_TARGET must be one of {}", names.join(", "));
        std::process::exit(2);
    };
    if let Some(folder) = std::env::var_os("SELVAGE_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&folder).join(format!("seed-{number:03}"));
            if let Err(error) = std::fs::write(&path, seed) {
                eprintln!("cannot write {}: {error}", path.display());
                std::process::exit(2);
            }
        }
        std::process::exit(0);
    }
    target
});

// Before libFuzzer takes an end of the process for a finding.
fuzz_target!(init: LazyLock::force(&TARGET), |bytes: &[u8]| (TARGET.run)(bytes));
