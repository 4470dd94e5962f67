//! The session that is measured: twelve attributes, as a web shop would keep them, in an archive of a chosen
//! size.

use anyhow::{Result, ensure};
use selvage_fabric::archive::{ArchiveLimits, Builder, Head, Value};
use selvage_fabric::ident::{SessionId, Version};
use selvage_fabric::limits;

/// Bytes of the archive of the session that is compared with Redis's value.
pub const ARCHIVE_BYTES: usize = 1024;
/// The attribute that requests change.
pub const CHANGED: &str = "visits";
/// The attribute that a commit gives values of other sizes: a message that is there for one request.
pub const RESIZED: &str = "flash";
/// The attributes that requests read.
pub const READ: [&str; 3] = ["user", "theme", "score"];
/// The attribute that brings the archive to its size.
const FILLER: &str = "cart";

/// The attributes of a session whose archive has exactly `archive_bytes` bytes, sorted by name.
///
/// # Errors
/// If no such archive can be: too small, or not a multiple of the archive's alignment.
pub fn attributes(archive_bytes: usize) -> Result<Vec<(&'static str, Value)>> {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut attributes = vec![
        ("admin", Value::Bool(false)),
        (FILLER, Value::Bytes(Vec::new())),
        ("created", Value::I64(1_700_000_000_000)),
        ("csrf", text("c0ffee00c0ffee00c0ffee00c0ffee00")),
        ("email", text("ada@example.org")),
        (RESIZED, text("")),
        ("locale", text("en-GB")),
        ("name", text("Ada Lovelace")),
        ("score", Value::F64(0.75)),
        ("theme", text("dark")),
        ("user", text("user-4711")),
        (CHANGED, Value::I64(1 << 40)),
    ];
    for _ in 0..8 {
        let bytes = archive(&attributes)?.len();
        if bytes == archive_bytes {
            return Ok(attributes);
        }
        for (_, value) in attributes.iter_mut().filter(|(name, _)| *name == FILLER) {
            if let Value::Bytes(filler) = value {
                filler.resize((filler.len() + archive_bytes).saturating_sub(bytes), b'x');
            }
        }
    }
    ensure!(false, "no archive of these attributes has {archive_bytes} bytes");
    Ok(attributes)
}

/// The archive of these attributes, as a commit would build it.
///
/// # Errors
/// If it is over a limit.
pub fn archive(attributes: &[(&'static str, Value)]) -> Result<Vec<u8>> {
    let pairs = attributes.iter().map(|(name, value)| (*name, value.as_ref()));
    Ok(Builder::new().build(&head(), pairs, &ArchiveLimits::default())?.to_vec())
}

/// Everything beside the attributes.
pub fn head() -> Head<'static> {
    Head {
        id: SessionId([7; 16]),
        version: Version { epoch: 1, counter: 1 },
        created_ms: 1_700_000_000_000,
        idle_ms: limits::IDLE.as_millis() as u64,
        absolute_ms: limits::ABSOLUTE.as_millis() as u64,
        owner: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_size_that_was_asked_for() {
        for bytes in [ARCHIVE_BYTES, 4096, 16 << 10] {
            let attributes = attributes(bytes).unwrap();
            assert_eq!(attributes.len(), 12);
            assert!(attributes.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(archive(&attributes).unwrap().len(), bytes);
        }
        assert!(attributes(16).is_err());
    }
}
