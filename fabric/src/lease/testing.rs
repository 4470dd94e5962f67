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
        "the bytes differ from {path}: bump LAYOUT_VERSION (now {LAYOUT_VERSION}), then renew the golden \
         files with SELVAGE_BLESS=1"
    );
}

/// Compares the section of a document between `<!-- name: generated -->` and `<!-- name: end -->` with what
/// it should be; with `SELVAGE_BLESS=1` in the environment, writes it instead.
pub(crate) fn compare_section(path: &str, name: &str, text: &str) {
    let document = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (begin, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("{path} has no {begin}"));
    let (section, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{path} has no {end}"));
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        std::fs::write(path, format!("{before}{begin}{text}{end}{after}")).unwrap();
        return;
    }
    assert!(
        section == text,
        "{path}: section {name} is not what the structures say; renew it with SELVAGE_BLESS=1"
    );
}
