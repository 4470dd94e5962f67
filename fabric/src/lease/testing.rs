//! Golden files: bytes that must not change without a new layout version.

use super::layout::LAYOUT_VERSION;

/// Compares bytes with a golden file; with `SELVAGE_BLESS=1` in the environment, writes it instead.
pub(crate) fn compare_golden(path: &str, bytes: &[u8]) {
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        std::fs::write(path, bytes).unwrap();
    }
    let golden = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(
        golden == bytes,
        "the bytes differ from {path}: bump LAYOUT_VERSION (now {LAYOUT_VERSION}), then renew the golden files with \
         SELVAGE_BLESS=1"
    );
}
