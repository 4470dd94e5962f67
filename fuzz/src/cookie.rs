//! `Cookie` headers that anyone may have written:
//!
//! - only what one of our keys has signed is a cookie, and it stands there letter by letter;
//! - a good one is found among whatever else is in the header; with one byte changed it is none;
//! - director and node find the same one;
//! - ids and tags have one text form.

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};
use selvage_director::proxy::headers::session;
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation, SessionId};
use std::sync::LazyLock;

const NAME: &str = "selvage";
static KEYS: LazyLock<[CookieKey; 2]> = LazyLock::new(|| [CookieKey(vec![1; 32]), CookieKey(vec![2; 32])]);

pub fn run(bytes: &[u8]) {
    let keys = &*KEYS;
    let found = Cookie::in_header(bytes, NAME, keys);
    if let Some(cookie) = found {
        assert!(signs(bytes, &cookie), "a cookie that nobody signed: {cookie:?}");
    }
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, value);
        assert_eq!(session(&headers, NAME, keys), found);
        let good = Cookie { id: SessionId([9; 16]), host: Incarnation(9) };
        let more = format!("{NAME}={}", good.encode(keys));
        headers.append(COOKIE, HeaderValue::from_str(&more).expect("a header"));
        assert_eq!(session(&headers, NAME, keys), found.or(Some(good)), "the first valid one");
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(SessionId::parse(text).is_none_or(|id| id.to_string() == text));
        assert!(Incarnation::from_tag(text).is_none_or(|host| host.tag() == text));
    }
    changed(bytes);
}

/// Whether one of the keys' cookies stands in the header.
fn signs(header: &[u8], cookie: &Cookie) -> bool {
    KEYS.iter().any(|key| {
        let value = cookie.encode(std::slice::from_ref(key));
        header.windows(value.len()).any(|part| part == value.as_bytes())
    })
}

/// A good one among junk, and with one byte changed.
fn changed(bytes: &[u8]) {
    let keys = &*KEYS;
    let [at, change, key, id @ ..] = bytes else { return };
    let Some((id, junk)) = id.split_first_chunk() else { return };
    let cookie = Cookie { id: SessionId(*id), host: Incarnation(u64::from(*at) << 8) };
    let key = &keys[usize::from(*key) % keys.len()];
    let value = cookie.encode(std::slice::from_ref(key));
    assert_eq!(Cookie::decode(&value, keys), Some(cookie));
    let among = [junk, b"; ", NAME.as_bytes(), b"=", value.as_bytes(), b";", junk].concat();
    let first = Cookie::in_header(junk, NAME, keys);
    assert_eq!(Cookie::in_header(&among, NAME, keys), first.or(Some(cookie)));

    let mut forged = value.clone().into_bytes();
    let at = usize::from(*at) % forged.len();
    forged[at] ^= change;
    let Ok(forged) = String::from_utf8(forged) else { return };
    if forged != value {
        assert_eq!(Cookie::decode(&forged, keys), None, "{forged} for {value}");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let cookie = Cookie { id: SessionId([7; 16]), host: Incarnation(42) };
    let (new, old) = (cookie.encode(&KEYS[..1]), cookie.encode(&KEYS[1..]));
    let foreign = cookie.encode(&[CookieKey(vec![3; 32])]);
    let mut headers = vec![
        format!("{NAME}={new}"),
        format!("{NAME}={old}; theme=dark"),
        format!("a=b; {NAME}=\"{new}\";c=\"d\""),
        format!("{NAME}={foreign}; {NAME}={new}"),
        format!("x{NAME}={new};{NAME} = {old}"),
        format!("{NAME}={}", new.to_uppercase()),
        format!("{NAME}={}", &new[1..]),
        format!("\u{e9}=\u{e9}; {NAME}={new}"),
        cookie.id.to_string(),
        cookie.host.tag(),
        ";;=;=;".to_owned(),
        "\u{1}\u{80}\u{0}0123456789abcdef; a=b".to_owned(),
    ];
    headers.push(headers.join("; "));
    headers.into_iter().map(String::into_bytes).collect()
}
