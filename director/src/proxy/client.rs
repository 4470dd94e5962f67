//! Who asks, and over what: the peer of the connection, or the browser that a trusted proxy speaks for.

use hyper::HeaderMap;
use hyper::header::HeaderName;
use ipnet::IpNet;
use std::net::IpAddr;

/// The addresses that a request has come through, the newest last.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// What the browser has spoken: `http` or `https`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Where a request has come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The browser, as far as it is known: the peer, unless that is a trusted proxy that names another.
    pub address: IpAddr,
    /// Whether the browser has spoken TLS.
    pub secure: bool,
    /// Whether the peer is a proxy whose word counts.
    pub trusted: bool,
    /// Version of TLS on this connection, as people write it.
    pub tls: Option<&'static str>,
}

impl Client {
    /// The peer of a connection, over TLS or without.
    pub fn new(peer: IpAddr, tls: Option<&'static str>) -> Self {
        let peer = peer.to_canonical();
        Self { peer, address: peer, secure: tls.is_some(), trusted: false, tls }
    }

    /// As the headers say, if the peer may say so: the newest address that is no trusted proxy's is the
    /// browser's; what stands before it anybody may have written.
    pub fn behind(mut self, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
        self.trusted = is_trusted(&self.peer);
        if !self.trusted {
            return self;
        }
        let chain: Vec<&str> =
            headers.get_all(FORWARDED_FOR).iter().flat_map(|value| value.to_str()).collect();
        for hop in chain.iter().rev().flat_map(|value| value.rsplit(',')) {
            // What is no address ends what can be believed.
            let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
            self.address = address.to_canonical();
            if !is_trusted(&self.address) {
                break;
            }
        }
        if let Some(protocol) = headers.get_all(FORWARDED_PROTO).iter().next_back() {
            self.secure = protocol.as_bytes().eq_ignore_ascii_case(b"https");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(peer: &str, told: &[&str], protocol: Option<&str>) -> Client {
        let mut headers = HeaderMap::new();
        for value in told {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        if let Some(protocol) = protocol {
            headers.insert(FORWARDED_PROTO, protocol.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Client::new(peer.parse().unwrap(), None).behind(&headers, &trusted)
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for (peer, told, expected) in [
            ("192.0.2.1", vec!["198.51.100.7"], "192.0.2.1"),
            ("10.0.0.1", vec!["198.51.100.7"], "198.51.100.7"),
            // What a browser puts in front is not believed.
            ("10.0.0.1", vec!["1.2.3.4, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", vec!["1.2.3.4, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", vec!["198.51.100.7", "10.0.0.2 , fd00::3"], "198.51.100.7"),
            ("10.0.0.1", vec!["10.0.0.9"], "10.0.0.9"),
            ("10.0.0.1", vec!["198.51.100.7, nonsense"], "10.0.0.1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("::ffff:10.0.0.1", vec!["2001:db8::1"], "2001:db8::1"),
        ] {
            assert_eq!(behind(peer, &told, None).address, address(expected), "{peer} says {told:?}");
        }
        assert!(behind("10.0.0.1", &[], Some("HTTPS")).secure);
        assert!(!behind("192.0.2.1", &[], Some("https")).secure);
    }
}
