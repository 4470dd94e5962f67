//! The requests, and what is claimed of them.

/// A request, or what is none.
pub struct Row {
    /// What it is about.
    pub name: &'static str,
    /// Raw bytes; `{long}` stands for 20,000 letters, `{many}` for 200 headers.
    pub send: &'static str,
    /// What is waited for then, and sent after it.
    pub then: Option<(&'static str, &'static str)>,
    /// The web server's answer to all.
    pub answer: Option<&'static str>,
    /// How the two compare.
    pub claim: Claim,
}

/// How the director compares with HAProxy.
pub enum Claim {
    /// Web server and browser see the same.
    Same,
    /// They do not, and this is why.
    Differs(&'static str),
}

impl Row {
    /// What is sent first.
    pub fn bytes(&self) -> Vec<u8> {
        let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
        let text = self.send.replace("{long}", &"a".repeat(20_000)).replace("{many}", &many);
        // Letters beyond ASCII stand for single bytes.
        text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect()
    }

    /// Methods of the requests, as far as they can be guessed from the lines.
    pub fn methods(&self) -> Vec<&str> {
        let is_method = |line: &&str| line.contains(" HTTP/1.");
        self.send.lines().filter(is_method).filter_map(|line| line.split(' ').next()).collect()
    }
}

const fn same(name: &'static str, send: &'static str) -> Row {
    Row { name, send, then: None, answer: None, claim: Claim::Same }
}

const fn differs(name: &'static str, send: &'static str, why: &'static str) -> Row {
    Row { name, send, then: None, answer: None, claim: Claim::Differs(why) }
}

/// All of them.
pub const ROWS: &[Row] = &[
    // Good requests.
    same("GET", "GET /p?q=1 HTTP/1.1\r\nhost: a\r\nx-y: z\r\n\r\n"),
    same("HEAD", "HEAD /p HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("body with a length", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"),
    same(
        "body in chunks",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ),
    same(
        "chunked in capitals",
        "POST /p HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    same(
        "chunk extensions",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    ),
    same(
        "size with leading zeros",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n00005\r\nhello\r\n0\r\n\r\n",
    ),
    differs(
        "trailers",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        "hyper sends only trailers that a `Trailer` header announces, so the director announces those that \
         it has.",
    ),
    same("two in one piece", "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n"),
    same(
        "one behind a body",
        "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    differs(
        "HTTP/1.0",
        "GET /p HTTP/1.0\r\nhost: a\r\n\r\n",
        "The director speaks HTTP/1.1 to web nodes, whatever the browser speaks.",
    ),
    same(
        "connection: close",
        "GET /1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    same("empty line before", "\r\nGET /p HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("OPTIONS *", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("empty header", "GET /p HTTP/1.1\r\nhost: a\r\nx-y:\r\n\r\n"),
    same("GET with a body", "GET /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"),
    // What is to be read in one way only.
    differs(
        "length and coding",
        "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
        "HAProxy drops the length; two opinions are a sign of an attack, so the director takes neither.",
    ),
    differs(
        "coding and length",
        "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n\
         GET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
        "As above.",
    ),
    differs(
        "two equal lengths",
        "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "HAProxy merges them; RFC 9112 (6.3) allows to refuse, and no browser sends two.",
    ),
    same("two lengths", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
    differs(
        "lengths in a list",
        "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
        "As above.",
    ),
    same("length with a sign", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello"),
    same("length in hexadecimal", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nhello"),
    same("empty length", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n"),
    same(
        "length that overflows",
        "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551621\r\n\r\nhello",
    ),
    differs(
        "unknown coding",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "RFC 9112 (6.1) has 501 for a coding that is not known.",
    ),
    same(
        "coding with a vertical tab",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    differs(
        "xchunked",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "As above.",
    ),
    same(
        "chunked twice",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    same(
        "chunked in two lines",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\n",
    ),
    same(
        "chunked before another",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    differs(
        "chunked behind another",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "As above.",
    ),
    differs(
        "coding in HTTP/1.0",
        "POST /p HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 has no codings; whether the web server would look at it is anybody's guess (RFC 9112, \
         6.1).",
    ),
    differs(
        "LF in the head",
        "GET /p HTTP/1.1\nhost: a\n\n",
        "HAProxy takes LF for a line's end and repairs it; the director does not guess.",
    ),
    differs("LF after a header", "GET /p HTTP/1.1\r\nhost: a\nx-y: z\r\n\r\n", "As above."),
    same("CR alone", "GET /p HTTP/1.1\r\nhost: a\rx-y: z\r\n\r\n"),
    differs(
        "header in two lines",
        "GET /p HTTP/1.1\r\nhost: a\r\nx-y: 1\r\n 2\r\n\r\n",
        "HAProxy joins the lines; RFC 9112 (5.2) allows to refuse.",
    ),
    same("space before the colon", "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello"),
    differs(
        "NUL in a header",
        "GET /p HTTP/1.1\r\nhost: a\r\nx-y: \0\r\n\r\n",
        "HAProxy passes control characters on; RFC 9110 (5.5) allows to refuse.",
    ),
    same("no header name", "GET /p HTTP/1.1\r\nhost: a\r\n: x\r\n\r\n"),
    same("no colon", "GET /p HTTP/1.1\r\nhost: a\r\nxyz\r\n\r\n"),
    same("space in a header's name", "GET /p HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n"),
    same(
        "no chunk size",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    ),
    same(
        "chunk size 0x5",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    same(
        "chunk size with a sign",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    differs(
        "chunk size with a space",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
        "Only an extension may follow a size; HAProxy forgives.",
    ),
    same(
        "chunk size that overflows",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n\
         0\r\n\r\n",
    ),
    differs(
        "LF after a chunk size",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "As for LF in the head.",
    ),
    differs(
        "LF in a chunk extension",
        "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
        "As above: one reader would see the chunk begin there, another an extension that goes on.",
    ),
    same(
        "chunk that is too long",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
    ),
    differs(
        "LF after a chunk",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
        "As above.",
    ),
    same(
        "trailer without a colon",
        "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx\r\n\r\n",
    ),
    // Request lines and hosts.
    differs("no host", "GET /p HTTP/1.1\r\n\r\n", "RFC 9112 (3.2) has 400 for HTTP/1.1 without a host."),
    same("two hosts", "GET /p HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    differs(
        "the same host twice",
        "GET /p HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "RFC 9112 (3.2) has 400 for more than one line.",
    ),
    differs("host with a path", "GET /p HTTP/1.1\r\nhost: a/b\r\n\r\n", "It is no host (RFC 9110, 7.2)."),
    differs(
        "absolute form",
        "GET http://a/p?q HTTP/1.1\r\nhost: a\r\n\r\n",
        "To web servers requests go in origin form (RFC 9112, 3.2.1).",
    ),
    differs(
        "absolute form of another host",
        "GET http://b/p HTTP/1.1\r\nhost: a\r\n\r\n",
        "The target's host counts and the web node sees no other (RFC 9112, 3.2.2).",
    ),
    differs(
        "CONNECT",
        "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n",
        "The director is no way to anywhere else.",
    ),
    differs(
        "two spaces",
        "GET  /p HTTP/1.1\r\nhost: a\r\n\r\n",
        "HAProxy forgives; RFC 9112 (3) has one space.",
    ),
    differs("tabs", "GET\t/p\tHTTP/1.1\r\nhost: a\r\n\r\n", "HAProxy forgives; RFC 9112 (3) has one space."),
    same("fragment", "GET /p#f HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("byte beyond ASCII in the target", "GET /\u{e4} HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("no path", "GET p HTTP/1.1\r\nhost: a\r\n\r\n"),
    same("HTTP/0.9", "GET /p\r\n"),
    differs(
        "HTTP/1.2",
        "GET /p HTTP/1.2\r\nhost: a\r\n\r\n",
        "HAProxy takes it for HTTP/1.1; the director says what it speaks.",
    ),
    differs("HTTP/2.0", "GET /p HTTP/2.0\r\nhost: a\r\n\r\n", "As above; HTTP/2 comes by ALPN."),
    differs(
        "preface of HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HAProxy speaks HTTP/2 without TLS, too; the director only with TLS.",
    ),
    same("version in small letters", "GET /p http/1.1\r\nhost: a\r\n\r\n"),
    same("no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03"),
    // Bounds and times.
    differs(
        "long target",
        "GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n",
        "HAProxy has one buffer for a head; the director says which bound was met.",
    ),
    differs("long header", "GET /p HTTP/1.1\r\nhost: a\r\nx-y: {long}\r\n\r\n", "As above."),
    differs("200 headers", "GET /p HTTP/1.1\r\nhost: a\r\n{many}\r\n", "As above."),
    same("half a head", "GET /p HTTP/1.1\r\nhost: a\r\n"),
    differs(
        "half a body",
        "POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello",
        "The director keeps the body first, so that it can send the request again, and waits with its own \
         time.",
    ),
    // Headers of one hop, expectations, other protocols.
    differs(
        "headers of one hop",
        "GET /p HTTP/1.1\r\nhost: a\r\nconnection: x-hop\r\nx-hop: 1\r\nproxy-connection: keep-alive\r\n\
         te: trailers\r\n\r\n",
        "The director passes on no header that is for one hop (RFC 9110, 7.6.1).",
    ),
    differs(
        "Connection: content-length",
        "POST /p HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 5\r\n\r\nhello",
        "The same; but what frames the message is not the connection's.",
    ),
    Row {
        name: "Expect: 100-continue",
        send: "POST /p HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
        then: Some(("100", "hello")),
        answer: None,
        claim: Claim::Same,
    },
    differs(
        "another expectation",
        "GET /p HTTP/1.1\r\nhost: a\r\nexpect: tea\r\n\r\n",
        "RFC 9110 (10.1.1) has 417 for what is not known.",
    ),
    Row {
        name: "WebSocket",
        send: "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nbytes",
        then: Some(("101", " and more")),
        answer: Some(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        ),
        claim: Claim::Same,
    },
    same(
        "upgrade that is declined",
        "GET /1 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: any\r\n\r\nGET /2 HTTP/1.1\r\n\
         host: a\r\n\r\n",
    ),
    differs(
        "upgrade to HTTP/2",
        "GET /p HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
         http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        "Requests inside would pass the director unseen, to a node that hosts other sessions.",
    ),
    // Answers.
    Row {
        name: "answer with trailers",
        send: "GET /p HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n",
        then: None,
        answer: Some(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nok\r\n0\r\n\
             x-t: 1\r\n\r\n",
        ),
        claim: Claim::Same,
    },
    Row {
        name: "answer with length and coding",
        send: "GET /p HTTP/1.1\r\nhost: a\r\n\r\n",
        then: None,
        answer: Some(
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        claim: Claim::Same,
    },
    Row {
        name: "answer with two lengths",
        send: "GET /p HTTP/1.1\r\nhost: a\r\n\r\n",
        then: None,
        answer: Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"),
        claim: Claim::Same,
    },
    Row {
        name: "answer unasked in another protocol",
        send: "GET /p HTTP/1.1\r\nhost: a\r\n\r\n",
        then: None,
        answer: Some("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: any\r\n\r\n"),
        claim: Claim::Same,
    },
];
