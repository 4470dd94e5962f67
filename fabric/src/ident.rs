//! Identities and numbers that must not be mixed: session ids, incarnations, tags, epochs, versions, and the
//! cookie.

use crate::error::{Error, ErrorKind, Origin, Result};
use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::LazyLock;

/// Base 32, lower case, no padding: valid in cookies, URLs, file names and PHP session ids.
static TEXT: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    // The specification above is constant and known to be valid; RFC 4648's alphabet stands in otherwise.
    spec.encoding().unwrap_or(BASE32_NOPAD)
});

/// A session's id: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// Characters of the text form.
    pub const TEXT_LEN: usize = 26;

    /// A new id from the kernel's random generator.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            Error::new(ErrorKind::Os, Origin::Node, "the kernel gave no random bytes")
                .with_source(error.to_string())
        })?;
        Ok(Self(bytes))
    }

    /// The id from its text form; `None` unless it is exactly the canonical text of an id.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = TEXT.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// A well mixed 64-bit hash: ids are random, so their bytes serve.
    pub fn hash64(&self) -> u64 {
        u64::from_le_bytes([
            self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5], self.0[6], self.0[7],
        ])
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TEXT.encode(&self.0))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One life of a node or server; a number that never comes back. Zero means none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// No incarnation.
    pub const NONE: Self = Self(0);
    /// Characters of a tag.
    pub const TAG_LEN: usize = 13;

    /// The tag that stands in cookies for this node incarnation.
    pub fn tag(self) -> String {
        TEXT.encode(&self.0.to_be_bytes())
    }

    /// The incarnation behind a tag.
    pub fn from_tag(text: &str) -> Option<Self> {
        let bytes = TEXT.decode(text.as_bytes()).ok()?;
        Some(Self(u64::from_be_bytes(bytes.try_into().ok()?)))
    }
}

/// Number of a view: the director's term, then a number that never falls, not even from term to term (R12).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// The director's term. Derived order compares it first.
    pub term: u32,
    /// Rises by one with each view, and goes on rising in the next term: it alone orders ownership.
    pub number: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.number)
    }
}

/// Version of a session: decides between copies. Derived order compares the ownership epoch first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    /// Ownership epoch: `max(view epoch number, ownership epoch found + 1)` at creation or adoption (R12).
    pub epoch: u32,
    /// Counts the commits and touches of one owner.
    pub counter: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// A key of the cookie's mac.
#[derive(Clone, PartialEq, Eq)]
pub struct CookieKey(pub Vec<u8>);

impl fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieKey(..)")
    }
}

/// What a valid session cookie says: `<id>-<tag>-<mac>`.
///
/// ```
/// use selvage_fabric::ident::{Cookie, CookieKey, Incarnation, SessionId};
///
/// let (old, new) = (CookieKey(vec![1; 32]), CookieKey(vec![2; 32]));
/// let cookie = Cookie { id: SessionId([7; 16]), host: Incarnation(42) };
/// let value = cookie.encode(&[old.clone()]);
/// // Keys are changed by putting the new one first: it signs, and both are taken.
/// assert_eq!(Cookie::decode(&value, &[new.clone(), old]), Some(cookie));
/// assert_eq!(Cookie::decode(&value, &[new]), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cookie {
    /// The session.
    pub id: SessionId,
    /// The node incarnation that hosted it when the cookie was made.
    pub host: Incarnation,
}

impl Cookie {
    /// Bytes of the truncated mac.
    const MAC_BYTES: usize = 10;
    /// Characters of a cookie's value.
    pub const TEXT_LEN: usize = SessionId::TEXT_LEN + 1 + Incarnation::TAG_LEN + 1 + 16;

    /// The cookie's value, signed with the first key.
    ///
    /// # Panics
    /// If `keys` is empty; the configuration refuses that.
    pub fn encode(&self, keys: &[CookieKey]) -> String {
        let mut text = format!("{}-{}", self.id, self.host.tag());
        let mac = hmac(&keys[0], text.as_bytes()).finalize().into_bytes();
        text.push('-');
        text.push_str(&TEXT.encode(&mac[..Self::MAC_BYTES]));
        text
    }

    /// The cookie behind a value; `None` for anything that no key of `keys` has signed. Constant time in the
    /// mac.
    pub fn decode(value: &str, keys: &[CookieKey]) -> Option<Self> {
        if value.len() != Self::TEXT_LEN || !value.is_ascii() {
            return None;
        }
        let (signed, mac) = value.rsplit_once('-')?;
        let (id, tag) = signed.split_once('-')?;
        let mac = TEXT.decode(mac.as_bytes()).ok()?;
        if mac.len() != Self::MAC_BYTES {
            return None;
        }
        if !keys.iter().any(|key| hmac(key, signed.as_bytes()).verify_truncated_left(&mac).is_ok()) {
            return None;
        }
        Some(Self { id: SessionId::parse(id)?, host: Incarnation::from_tag(tag)? })
    }

    /// The first cookie of this name in a `Cookie` header that one of the keys has signed. Directors and
    /// nodes both look here: were they to find different ones, a request would go to a host that serves
    /// another session.
    pub fn in_header(header: &[u8], name: &str, keys: &[CookieKey]) -> Option<Self> {
        // Cookies of others may have any bytes. Ours are ASCII, so a lossy reading cannot make one up.
        let header = String::from_utf8_lossy(header);
        let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(other, _)| *other == name);
        ours.find_map(|(_, value)| Self::decode(value.trim_matches('"'), keys))
    }
}

fn hmac(key: &CookieKey, message: &[u8]) -> Hmac<sha2::Sha256> {
    // HMAC takes keys of any length, so this cannot fail.
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key.0).unwrap_or_else(|_| unreachable!());
    mac.update(message);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_round_trip_and_rotation() {
        let old = CookieKey(vec![1; 32]);
        let new = CookieKey(vec![2; 32]);
        let cookie = Cookie { id: SessionId([7; 16]), host: Incarnation(0x1234_5678_9abc) };
        let text = cookie.encode(std::slice::from_ref(&old));
        assert_eq!(text.len(), Cookie::TEXT_LEN);
        assert_eq!(Cookie::decode(&text, &[new.clone(), old]), Some(cookie));
        assert_eq!(Cookie::decode(&text, &[new]), None);
    }

    #[test]
    fn a_changed_character_is_no_cookie() {
        let keys = [CookieKey(vec![9; 32])];
        let text = Cookie { id: SessionId([3; 16]), host: Incarnation(5) }.encode(&keys);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(Cookie::decode(&changed, &keys), None, "byte {at}");
        }
        for bad in ["", "-", "--", "x", "a-b-c", &text[1..], &format!("{text}a")] {
            assert_eq!(Cookie::decode(bad, &keys), None);
        }
    }

    #[test]
    fn a_cookie_is_found_in_any_header() {
        let keys = [CookieKey(vec![1; 32])];
        let cookie = Cookie { id: SessionId([5; 16]), host: Incarnation(77) };
        let value = cookie.encode(&keys);
        let found = |header: &[u8]| Cookie::in_header(header, "sid", &keys);
        for good in [
            format!("sid={value}"),
            format!("sid=\"{value}\""),
            format!("a=b; sid=wrong; xsid={value}; sid={value}; sid=x"),
        ] {
            assert_eq!(found(good.as_bytes()), Some(cookie), "{good}");
        }
        // Other people's cookies may have any bytes.
        assert_eq!(found(&[b"name=\xe9\xff; sid=", value.as_bytes()].concat()), Some(cookie));
        for bad in ["", ";", "=", "sid", "sid=", "SID=x", &format!("xsid={value}"), &format!("sid={value}x")]
        {
            assert_eq!(found(bad.as_bytes()), None, "{bad}");
        }
    }
}
