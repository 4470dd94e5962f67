//! What may pass between browser and node, and what ends at the director.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Version};
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation};
use std::net::IpAddr;

/// A node's word that a session is hosted elsewhere: the tag of the host. It never reaches a browser.
pub const ELSEWHERE: HeaderName = HeaderName::from_static("selvage-elsewhere");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Headers that are for the next hop only, beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The session that the request's cookie names. Of several cookies of that name the first valid one counts; a
/// wrong mac is no cookie.
pub fn session(headers: &HeaderMap, name: &str, keys: &[CookieKey]) -> Option<Cookie> {
    headers.get_all(COOKIE).iter().find_map(|value| Cookie::in_header(value.as_bytes(), name, keys))
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
pub fn for_node(headers: &mut HeaderMap, client: IpAddr) {
    remove_hop_by_hop(headers);
    // The director has answered it already.
    headers.remove(EXPECT);
    headers.remove(ELSEWHERE);
    let so_far = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let mut chain: Vec<String> = so_far.map(str::to_owned).collect();
    chain.push(client.to_string());
    if let Ok(value) = HeaderValue::from_str(&chain.join(", ")) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    match headers.get(HOST).cloned() {
        Some(host) => headers.insert(FORWARDED_HOST, host),
        None => headers.remove(FORWARDED_HOST),
    };
}

/// Makes a node's headers fit for a browser.
pub fn for_browser(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    headers.remove(ELSEWHERE);
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
            // What frames the message or names its host is not the connection's, whatever it says.
            .filter(|name| *name != CONTENT_LENGTH && *name != HOST && *name != COOKIE)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}
