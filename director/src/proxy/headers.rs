//! What may pass between browser and node, and what ends at the director.

use crate::proxy::client::{Client, FORWARDED_FOR, FORWARDED_PROTO};
use bytes::Bytes;
use hyper::body::Frame;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT,
    FORWARDED, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Version};
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation};
use std::net::IpAddr;

/// A node's word that a session is hosted elsewhere: the tag of the host. It never reaches a browser.
pub const ELSEWHERE: HeaderName = HeaderName::from_static("selvage-elsewhere");

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// Settings of an upgrade to HTTP/2, which the director never passes on.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The name by which the director calls itself in `Via`.
const PSEUDONYM: &str = "selvage";

/// Headers that are for the next hop only, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];

/// Headers that `Connection` cannot take away: they frame the message, name its host or session, or say who
/// asks.
const NOT_OF_A_HOP: [HeaderName; 8] =
    [CONTENT_LENGTH, HOST, COOKIE, FORWARDED, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PORT];

/// The session that the request's cookie names. Of several cookies of that name the first valid one counts; a
/// wrong mac is no cookie.
pub fn session(headers: &HeaderMap, name: &str, keys: &[CookieKey]) -> Option<Cookie> {
    headers.get_all(COOKIE).iter().find_map(|value| Cookie::in_header(value.as_bytes(), name, keys))
}

/// Whether a request brings a cookie of this name, whatever it is worth.
pub fn brings(headers: &HeaderMap, name: &str) -> bool {
    let mut pairs =
        headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.any(|pair| {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        parts.next().is_some_and(|first| first.trim_ascii() == name.as_bytes()) && parts.next().is_some()
    })
}

/// Whether a request says for which host it is, and says only one: one that names two could mean one to us
/// and another to the node (RFC 9112, 3.2). Before HTTP/1.1 none had to be named.
pub fn names_one_host(headers: &HeaderMap, version: Version) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => is_host(host),
        (Some(_), Some(_)) => false,
    }
}

/// Whether this is a host, with a port or without, and nothing else.
pub fn is_host(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| !text.contains('@') && text.parse::<Authority>().is_ok())
}

/// The host that a node's `421` names.
pub fn elsewhere(headers: &HeaderMap) -> Option<Incarnation> {
    Incarnation::from_tag(headers.get(ELSEWHERE)?.to_str().ok()?)
}

/// Whether an answer is of one mind about its length. For a body hyper looks; an answer to HEAD has none, and
/// its lengths would only fail at the browser's end, where no word of ours can be said any more.
pub fn names_one_length(headers: &HeaderMap) -> bool {
    let number = |value: &HeaderValue| {
        let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        text.and_then(|text| text.parse::<u64>().ok())
    };
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(number);
    match lengths.next() {
        None => true,
        Some(first) => first.is_some() && lengths.all(|length| length == first),
    }
}

/// Makes a browser's headers fit for a node.
pub fn for_node(headers: &mut HeaderMap, version: Version, client: &Client) {
    let takes_trailers = headers.get_all(TE).iter().any(|value| value.as_bytes() == b"trailers");
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    headers.remove(ELSEWHERE);
    if takes_trailers {
        // For this hop, as it was for the last one.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    join_cookies(headers);
    forwarded(headers, client);
    via(headers, version);
}

/// Makes a node's headers fit for a browser.
pub fn for_browser(headers: &mut HeaderMap, version: Version) {
    remove_hop_by_hop(headers);
    headers.remove(ELSEWHERE);
    // Said twice, it is the same; with an answer without a body the browser's end would fail at the second.
    if let Some(length) = headers.get(CONTENT_LENGTH).cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
    via(headers, version);
}

/// Takes those fields out of a trailer section that have no place there: they would have decided how the
/// message is read, where it goes, or who asks (RFC 9110, 6.5.1).
pub fn without_bad_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Err(data) => data,
        Ok(mut trailers) => {
            remove_hop_by_hop(&mut trailers);
            for name in NOT_OF_A_HOP.iter().chain(&[
                AUTHORIZATION,
                CONTENT_ENCODING,
                CONTENT_RANGE,
                CONTENT_TYPE,
                EXPECT,
                SET_COOKIE,
                TRAILER,
                VIA,
                ELSEWHERE,
            ]) {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
    }
}

/// The value of `Trailer` for these.
pub fn names_of(trailers: &HeaderMap) -> Option<HeaderValue> {
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// One line of cookies: HTTP/2 may have split it, and HTTP/1.1 has no other form (RFC 9113, 8.2.3); of
/// several lines a node might read the first only.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(line) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, line);
    }
}

/// Says who asks, how, and for which host. What others have said of that before counts only if the peer is a
/// proxy that is trusted; then it is gone on from.
fn forwarded(headers: &mut HeaderMap, client: &Client) {
    if !client.trusted {
        for name in [FORWARDED, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PORT] {
            headers.remove(name);
        }
    }
    let host = headers.get(HOST).cloned();
    let scheme = if client.tls.is_some() { "https" } else { "http" };
    // As RFC 7239, 6, writes addresses.
    let mut element = match client.peer {
        IpAddr::V4(address) => format!("for={address};proto={scheme}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\";proto={scheme}"),
    };
    // A host has no quotes; it is checked before.
    if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()) {
        element.push_str(&format!(";host=\"{host}\""));
    }
    append(headers, FORWARDED, &element);
    append(headers, FORWARDED_FOR, &client.peer.to_string());
    let port = host.as_ref().and_then(port_of).unwrap_or(if client.secure { 443 } else { 80 });
    let proto = HeaderValue::from_static(if client.secure { "https" } else { "http" });
    let first = |headers: &mut HeaderMap, name, value: Option<HeaderValue>| {
        if let (false, Some(value)) = (headers.contains_key(&name), value) {
            headers.insert(name, value);
        }
    };
    headers.insert(FORWARDED_PROTO, proto);
    first(headers, FORWARDED_HOST, host);
    first(headers, FORWARDED_PORT, Some(HeaderValue::from(port)));
}

/// The port that a host names.
fn port_of(host: &HeaderValue) -> Option<u16> {
    host.to_str().ok()?.parse::<Authority>().ok()?.port_u16()
}

/// Says that the message went through here, and in which version it came.
fn via(headers: &mut HeaderMap, version: Version) {
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    append(headers, VIA, &format!("{version} {PSEUDONYM}"));
}

/// Adds an element to a list, in one line.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        // The encoding decided how the body was read; a length beside it would be a second, foreign opinion.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !NOT_OF_A_HOP.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}
