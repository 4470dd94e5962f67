//! HTTP/1.1 as strictly as RFC 9112 allows to send it: what the director writes must be understood in the
//! same way by every reader, so this one knows no leniency at all. Nor does the director's framing check,
//! which is held against the same reader: of a browser it takes some more forms, but none that is in doubt.

use selvage_director::limits;
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

/// Who has sent a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sender {
    /// HTTP/1.0, other forms of targets, empty lines before it and chunk extensions are right, too.
    Browser,
    Director,
}

/// How far a browser's bytes are requests: how many whole ones, and what is wrong behind them.
pub fn followed(mut bytes: &[u8]) -> (usize, Result<End, Fault>) {
    let mut whole = 0;
    loop {
        match followed_one(bytes) {
            Ok(End::At(at)) => {
                bytes = &bytes[at..];
                whole += 1;
            }
            other => return (whole, other),
        }
    }
}

fn followed_one(bytes: &[u8]) -> Result<End, Fault> {
    let mut empty = 0;
    while bytes[2 * empty..].starts_with(b"\r\n") {
        empty += 1;
    }
    if empty > limits::EMPTY_LINES_MAX {
        return Err(fault("many empty lines", bytes));
    }
    let Some((line, headers, at)) = head(&bytes[2 * empty..])? else { return Ok(End::Open) };
    let at = 2 * empty + at;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("no request line: {line:?}"));
    };
    let is_method = (1..=limits::METHOD_BYTES_MAX).contains(&method.len()) && method.bytes().all(is_token);
    let is_target = !target.is_empty() && target.chars().all(|it| it.is_ascii_graphic() && it != '#');
    let is_old = version == "HTTP/1.0";
    if !is_method || !is_target || !(is_old || version == "HTTP/1.1") {
        return Err(format!("no request line: {line:?}"));
    }
    if is_old && headers.contains_key("transfer-encoding") {
        return Err("a coding in HTTP/1.0".to_owned());
    }
    let (_, end) = body(&bytes[at..], &headers, Some(0), Sender::Browser)?;
    Ok(end.after(at))
}

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
    let (body, end) = body(&bytes[at..], &headers, Some(0), Sender::Director)?;
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
        false => body(&bytes[at..], &headers, None, Sender::Director)?,
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
        // A head that has not come whole may be one; some bytes can be in none.
        let is_bare = |pair: &[u8]| (pair[0] == b'\r') != (pair[1] == b'\n');
        return match bytes.first() == Some(&b'\n') || bytes.windows(2).any(is_bare) {
            true => Err(fault("a CR or LF alone", bytes)),
            false => Ok(None),
        };
    };
    let mut lines = lines(&bytes[..length + 2])?;
    let first = latin(lines.next().unwrap_or_default());
    let mut headers = Headers::new();
    for line in lines {
        let (name, value) = field(line)?;
        headers.entry(name).or_default().push(value);
    }
    Ok(Some((first, headers, length + 4)))
}

/// A header or a trailer.
fn field(line: &[u8]) -> Result<(String, Vec<u8>), Fault> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| fault("no colon", line))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(fault("no header name", line));
    }
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(fault("a control character in a header", line));
    }
    Ok((latin(name).to_ascii_lowercase(), value.trim_ascii().to_vec()))
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
fn body(
    bytes: &[u8],
    headers: &Headers,
    without: Option<usize>,
    sender: Sender,
) -> Result<(Vec<u8>, End), Fault> {
    let encodings = headers.get("transfer-encoding").map_or(&[][..], Vec::as_slice);
    let lengths = headers.get("content-length").map_or(&[][..], Vec::as_slice);
    let length = match (encodings, lengths) {
        ([], []) => without,
        ([], [length]) => Some(number(length, 10)?),
        ([encoding], []) if encoding.eq_ignore_ascii_case(b"chunked") => return chunks(bytes, sender),
        _ => return Err(format!("two opinions about a length: {encodings:?}, {lengths:?}")),
    };
    let Some(length) = length else { return Ok((bytes.to_vec(), End::Open)) };
    match bytes.get(..length) {
        Some(body) => Ok((body.to_vec(), End::At(length))),
        None => Ok((bytes.to_vec(), End::Open)),
    }
}

fn chunks(bytes: &[u8], sender: Sender) -> Result<(Vec<u8>, End), Fault> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = line(&bytes[at..])? else { return Ok((body, End::Open)) };
        let size = chunk_size(line, sender)?;
        at += line.len() + 2;
        if size == 0 {
            return Ok((body, trailers(&bytes[at..])?.after(at)));
        }
        let chunk = &bytes[at..];
        let Some(end) = chunk.get(size..size + 2) else {
            body.extend_from_slice(&chunk[..size.min(chunk.len())]);
            return Ok((body, End::Open));
        };
        if end != b"\r\n" {
            return Err(fault("no end of a chunk", chunk));
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

/// The size that a line says; the director makes no extensions.
fn chunk_size(line: &[u8], sender: Sender) -> Result<usize, Fault> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let is_extension = sender == Sender::Browser && extension.trim_ascii_start().starts_with(b";");
    if !(extension.is_empty() || is_extension) || line.len() + 2 > limits::CHUNK_LINE_BYTES_MAX {
        return Err(fault("no chunk size", line));
    }
    number(size, 16)
}

fn trailers(bytes: &[u8]) -> Result<End, Fault> {
    let mut at = 0;
    loop {
        let Some(line) = line(&bytes[at..])? else { return Ok(End::Open) };
        at += line.len() + 2;
        if line.is_empty() {
            return Ok(End::At(at));
        }
        field(line)?;
    }
}

/// The first line, if it is whole, without its end.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Fault> {
    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
    let line = &bytes[..end];
    match line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        true => Err(fault("a control character in a line", line)),
        false => Ok(Some(line)),
    }
}

fn number(digits: &[u8], base: u32) -> Result<usize, Fault> {
    let text = latin(digits);
    let is_short = (1..=limits::LENGTH_DIGITS_MAX).contains(&text.len());
    let good = is_short && text.chars().all(|digit| digit.is_digit(base));
    let parsed = good.then(|| usize::from_str_radix(&text, base).ok()).flatten();
    parsed.ok_or_else(|| fault("no length", digits))
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
