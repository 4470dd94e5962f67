//! HTTP/1.1 as strictly as RFC 9112 allows to send it: what the director writes must be understood in the
//! same way by every reader, so this one knows no leniency at all.

use std::collections::BTreeMap;

/// Lower-case names, values in their order.
pub type Headers = BTreeMap<String, Vec<Vec<u8>>>;

/// A request on its way to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// A response on its way to a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// Headers of one hop (RFC 9110, 7.6.1), and those that frame a message.
pub const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
];

/// How a message has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is whole, and takes so many bytes.
    At(usize),
    /// More is to come.
    Open,
}

/// What cannot be a message.
pub type Fault = String;

/// The request at the beginning of `bytes`.
pub fn request(bytes: &[u8]) -> Result<(Option<Request>, End), Fault> {
    let Some((line, headers, at)) = head(bytes)? else { return Ok((None, End::Open)) };
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("no request line: {line:?}"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(format!("no method: {line:?}"));
    }
    let is_origin = target.starts_with('/') || target == "*";
    if !is_origin || target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(format!("no target in origin form: {line:?}"));
    }
    match headers.get("host").map(Vec::as_slice) {
        Some([host]) if is_host(host) => {}
        other => return Err(format!("not one host: {other:?}")),
    }
    let (body, end) = body(&bytes[at..], &headers, Some(0))?;
    let request = Request { method: method.to_owned(), target: target.to_owned(), headers, body };
    Ok((Some(request), end.after(at)))
}

/// The response to a request of `method` at the beginning of `bytes`. `Open` with an answer: its body is not
/// whole, or ends with the connection.
pub fn answer(bytes: &[u8], method: &str) -> Result<(Option<Answer>, End), Fault> {
    let Some((line, headers, at)) = head(bytes)? else { return Ok((None, End::Open)) };
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    let status = rest
        .filter(|rest| rest.as_bytes().get(3) == Some(&b' '))
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse::<u16>().ok())
        .filter(|status| (100..1000).contains(status))
        .ok_or_else(|| format!("no status line: {line:?}"))?;
    let without_body = method == "HEAD" || matches!(status, 100..200 | 204 | 304);
    let (body, end) = match without_body {
        true => (Vec::new(), End::At(0)),
        false => body(&bytes[at..], &headers, None)?,
    };
    Ok((Some(Answer { status, headers, body }), end.after(at)))
}

/// All final responses to requests of these methods; the last one may be open.
pub fn answers(mut bytes: &[u8], methods: &[String]) -> Result<Vec<(Answer, End)>, Fault> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        // What comes beyond the requests that were understood answers one that was not.
        let method = methods.get(found.len()).map_or("GET", String::as_str);
        let (Some(answer), end) = answer(bytes, method)? else { break };
        let at = match end {
            End::At(at) => at,
            End::Open => bytes.len(),
        };
        bytes = &bytes[at..];
        if answer.status >= 200 || answer.status == 101 {
            found.push((answer, end));
        }
    }
    Ok(found)
}

impl End {
    fn after(self, before: usize) -> Self {
        match self {
            Self::At(at) => Self::At(before + at),
            Self::Open => Self::Open,
        }
    }
}

/// First line, headers, and where the body begins.
fn head(bytes: &[u8]) -> Result<Option<(String, Headers, usize)>, Fault> {
    let Some(length) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let mut lines = lines(&bytes[..length + 2])?;
    let first = latin(lines.next().unwrap_or_default());
    let mut headers = Headers::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| fault("no colon", line))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(fault("no header name", line));
        }
        let value = value.trim_ascii();
        if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(fault("a control character in a header", line));
        }
        headers.entry(latin(name).to_ascii_lowercase()).or_default().push(value.to_vec());
    }
    Ok(Some((first, headers, length + 4)))
}

/// Lines that end with CRLF; no CR or LF stands alone.
fn lines(bytes: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Fault> {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let Some(([], lines)) = lines.split_last().map(|(last, lines)| (*last, lines)) else {
        return Err(fault("no line end", bytes));
    };
    let whole: Option<Vec<&[u8]>> = lines.iter().map(|line| line.strip_suffix(b"\r")).collect();
    match whole {
        Some(lines) if lines.iter().all(|line| !line.contains(&b'\r')) => Ok(lines.into_iter()),
        _ => Err(fault("a CR or LF alone", bytes)),
    }
}

/// The body; `without` is its length if nothing says one. `None`: it ends with the connection.
fn body(bytes: &[u8], headers: &Headers, without: Option<usize>) -> Result<(Vec<u8>, End), Fault> {
    let encodings = headers.get("transfer-encoding").map_or(&[][..], Vec::as_slice);
    let lengths = headers.get("content-length").map_or(&[][..], Vec::as_slice);
    let length = match (encodings, lengths) {
        ([], []) => without,
        ([], [length]) => Some(number(length, 10)?),
        ([encoding], []) if encoding == b"chunked" => return chunks(bytes),
        _ => return Err(format!("two opinions about a length: {encodings:?}, {lengths:?}")),
    };
    let Some(length) = length else { return Ok((bytes.to_vec(), End::Open)) };
    match bytes.get(..length) {
        Some(body) => Ok((body.to_vec(), End::At(length))),
        None => Ok((bytes.to_vec(), End::Open)),
    }
}

fn chunks(bytes: &[u8]) -> Result<(Vec<u8>, End), Fault> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = bytes[at..].windows(2).position(|window| window == b"\r\n") else {
            return Ok((body, End::Open));
        };
        let size = number(&bytes[at..at + line], 16)?;
        at += line + 2;
        let chunk = &bytes[at..];
        let Some(end) = chunk.get(size..size + 2) else {
            body.extend_from_slice(&chunk[..size.min(chunk.len())]);
            return Ok((body, End::Open));
        };
        if end != b"\r\n" {
            // The director sends no trailers, and chunks end where they say.
            return Err(fault("no end of a chunk", chunk));
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
        if size == 0 {
            return Ok((body, End::At(at)));
        }
    }
}

fn number(digits: &[u8], base: u32) -> Result<usize, Fault> {
    let text = latin(digits);
    let good = !text.is_empty() && text.chars().all(|digit| digit.is_digit(base));
    let parsed = good.then(|| usize::from_str_radix(&text, base).ok()).flatten();
    // Far over what any input says.
    parsed.filter(|number| *number < 1 << 48).ok_or_else(|| fault("no length", digits))
}

/// A name or an address, and perhaps a port.
pub fn is_host(host: &[u8]) -> bool {
    let taken = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%[]".contains(byte);
    !host.is_empty() && host.iter().all(taken)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn fault(what: &str, bytes: &[u8]) -> Fault {
    format!("{what}: {}", bytes.escape_ascii())
}
