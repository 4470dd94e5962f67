//! The machine that follows the framing of requests, byte by byte: no clock, no socket.

use super::fault::Fault;
use crate::limits;

/// Bounds of a request's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Request line and header lines together, with their ends; a trailer section, too.
    pub head_bytes_max: usize,
    /// Header lines.
    pub headers_max: usize,
    /// The request's target.
    pub target_bytes_max: usize,
}

/// What a byte completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A request's head. Without a body the request has ended, too.
    Head {
        /// A body follows.
        has_body: bool,
        /// It asks for another protocol: what comes next may be no HTTP.
        asks_upgrade: bool,
    },
    /// A request's body and its trailers.
    End,
}

/// Bytes that were understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// How many; at least one of a slice that has any.
    pub bytes: usize,
    /// What the last of them completed.
    pub event: Option<Event>,
}

/// Where in a request the next byte stands, and what must be remembered for it.
#[derive(Debug)]
pub struct Framing {
    bounds: Bounds,
    place: Place,
    /// The line that has begun, without a guess about its end.
    line: Vec<u8>,
    seen: Seen,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    RequestLine,
    Headers,
    /// So many bytes of a body with a length are left.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// What the lines of this request have said.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    empty_lines: usize,
    is_head_method: bool,
    /// Of the head; later of the trailers.
    bytes: usize,
    /// Header lines; later trailer lines.
    lines: usize,
    is_old: bool,
    length: Option<u64>,
    is_chunked: bool,
    has_upgrade: bool,
    connection_says_upgrade: bool,
    extension_bytes: usize,
}

impl Framing {
    /// Before the first request of a connection.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, place: Place::RequestLine, line: Vec::new(), seen: Seen::default() }
    }

    /// Other bounds from the next line on.
    pub fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Whether no request has begun: empty lines before one do not count.
    pub fn is_between(&self) -> bool {
        self.place == Place::RequestLine && self.line.iter().all(|byte| *byte == b'\r')
    }

    /// Whether the next byte belongs to a request line or a header.
    pub fn is_in_head(&self) -> bool {
        matches!(self.place, Place::RequestLine | Place::Headers)
    }

    /// Whether the request that has begun is a HEAD, as far as its line has come: its answer has no body.
    pub fn is_head_method(&self) -> bool {
        self.seen.is_head_method
    }

    /// Takes bytes up to the first that completes something.
    ///
    /// # Errors
    /// If they cannot belong to a request that everybody reads in the same way. Nothing may be asked of this
    /// then: where the next request would begin is unknown.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Taken, Fault> {
        match &mut self.place {
            Place::Body(left) | Place::Chunk(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                let event = match self.place {
                    Place::Body(0) => Some(self.end()),
                    Place::Chunk(0) => {
                        self.place = Place::ChunkEnd;
                        None
                    }
                    _ => None,
                };
                Ok(Taken { bytes: taken, event })
            }
            _ => self.take_line(bytes),
        }
    }

    fn take_line(&mut self, bytes: &[u8]) -> Result<Taken, Fault> {
        for (at, byte) in bytes.iter().enumerate() {
            self.take_byte(*byte)?;
            if *byte == b'\n' {
                let mut line = std::mem::take(&mut self.line);
                let event = self.judge(line.strip_suffix(b"\r\n").unwrap_or_default())?;
                line.clear();
                self.line = line;
                return Ok(Taken { bytes: at + 1, event });
            }
        }
        Ok(Taken { bytes: bytes.len(), event: None })
    }

    fn take_byte(&mut self, byte: u8) -> Result<(), Fault> {
        let is_after_cr = self.line.last() == Some(&b'\r');
        match byte {
            b'\n' if !is_after_cr => return Err(Fault::BareLf),
            b'\n' => {}
            _ if is_after_cr => return Err(Fault::BareCr),
            b'\r' | b'\t' => {}
            byte if byte.is_ascii_control() => return Err(Fault::Control(byte)),
            _ => {}
        }
        self.line.push(byte);
        if self.place == Place::RequestLine && self.line == b"HEAD " {
            self.seen.is_head_method = true;
        }
        let length = self.line.len();
        match self.place {
            Place::RequestLine => {
                // A method, two spaces, the version, CRLF.
                let line_max = self.bounds.target_bytes_max + limits::METHOD_BYTES_MAX + 12;
                within(length, line_max, Fault::Target)?;
                within(self.seen.bytes + length, self.bounds.head_bytes_max, Fault::HeadBytes)
            }
            Place::Headers => within(self.seen.bytes + length, self.bounds.head_bytes_max, Fault::HeadBytes),
            Place::Trailers => {
                let bytes_max = self.bounds.head_bytes_max.min(limits::TRAILER_BYTES_MAX);
                within(self.seen.bytes + length, bytes_max, Fault::HeadBytes)
            }
            Place::ChunkSize => within(length, limits::CHUNK_LINE_BYTES_MAX, Fault::ChunkSize),
            // Nothing but CR and LF, which were looked at above.
            _ if byte != b'\r' && byte != b'\n' => Err(Fault::ChunkEnd),
            _ => Ok(()),
        }
    }

    /// A whole line, without its end.
    fn judge(&mut self, line: &[u8]) -> Result<Option<Event>, Fault> {
        self.seen.bytes += line.len() + 2;
        match self.place {
            Place::RequestLine if line.is_empty() => {
                self.seen.empty_lines += 1;
                within(self.seen.empty_lines, limits::EMPTY_LINES_MAX, Fault::RequestLine)?;
            }
            Place::RequestLine => {
                self.request_line(line)?;
                self.place = Place::Headers;
            }
            Place::Headers if line.is_empty() => return self.head_end().map(Some),
            Place::Headers => self.header(line)?,
            Place::ChunkSize => self.chunk_size(line)?,
            Place::Trailers if line.is_empty() => return Ok(Some(self.end())),
            Place::Trailers => {
                self.field(line)?;
            }
            // A chunk's end has nothing but an end.
            _ => self.place = Place::ChunkSize,
        }
        Ok(None)
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Fault::RequestLine);
        };
        let is_method = is_token(method) && method.len() <= limits::METHOD_BYTES_MAX;
        // A fragment is no part of a target: one reader would drop it, another would look for it.
        let is_target =
            !target.is_empty() && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#');
        if !is_method || !is_target {
            return Err(Fault::RequestLine);
        }
        within(target.len(), self.bounds.target_bytes_max, Fault::Target)?;
        self.seen.is_old = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Fault::Version);
            }
            _ => return Err(Fault::RequestLine),
        };
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Fault> {
        let (name, value) = self.field(line)?;
        let seen = &mut self.seen;
        let has = |wanted: &str| {
            let mut names = value.split(|byte| *byte == b',');
            names.any(|name| name.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        match () {
            () if name.eq_ignore_ascii_case(b"content-length") => {
                if seen.length.replace(number(value, 10).ok_or(Fault::Length)?).is_some() {
                    return Err(Fault::Lengths);
                }
            }
            () if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(strange_coding(value));
                }
                if std::mem::replace(&mut seen.is_chunked, true) {
                    return Err(Fault::Coding);
                }
            }
            () if name.eq_ignore_ascii_case(b"connection") => {
                seen.connection_says_upgrade |= has("upgrade");
            }
            () if name.eq_ignore_ascii_case(b"upgrade") => seen.has_upgrade = true,
            () => {}
        }
        Ok(())
    }

    /// A header's or a trailer's name and value.
    fn field<'a>(&mut self, line: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), Fault> {
        if line.first().is_some_and(|byte| is_blank(*byte)) {
            return Err(Fault::Fold);
        }
        self.seen.lines += 1;
        within(self.seen.lines, self.bounds.headers_max, Fault::HeaderCount)?;
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Fault::HeaderLine)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if is_token(name) {
            return Ok((name, trim(value)));
        }
        let is_spaced = name.last().is_some_and(|byte| is_blank(*byte)) && is_token(trim(name));
        Err(if is_spaced { Fault::SpaceBeforeColon } else { Fault::HeaderLine })
    }

    fn head_end(&mut self) -> Result<Event, Fault> {
        let seen = self.seen;
        let has_body = match (seen.is_chunked, seen.length) {
            (true, _) if seen.is_old => return Err(Fault::CodingInOldVersion),
            (true, Some(_)) => return Err(Fault::LengthAndCoding),
            (true, None) => {
                self.place = Place::ChunkSize;
                true
            }
            (false, None | Some(0)) => {
                self.end();
                false
            }
            (false, Some(length)) => {
                self.place = Place::Body(length);
                true
            }
        };
        let asks_upgrade = seen.has_upgrade && seen.connection_says_upgrade && !seen.is_old && !has_body;
        Ok(Event::Head { has_body, asks_upgrade })
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Fault> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, rest) = line.split_at(digits);
        let size = number(size, 16).ok_or(Fault::ChunkSize)?;
        // Blanks belong to an extension, which begins with a semicolon.
        if !rest.is_empty() && !trim(rest).starts_with(b";") {
            return Err(Fault::ChunkSize);
        }
        self.seen.extension_bytes += rest.len();
        within(self.seen.extension_bytes, limits::EXTENSION_BYTES_MAX, Fault::Extensions)?;
        self.place = match size {
            0 => {
                (self.seen.bytes, self.seen.lines) = (0, 0);
                Place::Trailers
            }
            size => Place::Chunk(size),
        };
        Ok(())
    }

    /// The next byte begins another request.
    fn end(&mut self) -> Event {
        (self.place, self.seen) = (Place::RequestLine, Seen::default());
        Event::End
    }
}

fn within(value: usize, value_max: usize, fault: Fault) -> Result<(), Fault> {
    if value <= value_max { Ok(()) } else { Err(fault) }
}

/// What is wrong with a `Transfer-Encoding` that is not `chunked`.
fn strange_coding(value: &[u8]) -> Fault {
    let mut codings = value.split(|byte| *byte == b',').map(trim);
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let last = codings.next_back().unwrap_or_default();
    let is_strange = codings.clone().any(is_chunked) || codings.any(<[u8]>::is_empty) || last.is_empty();
    if is_strange { Fault::Coding } else { Fault::UnknownCoding }
}

/// Digits and nothing else, not so many that anybody's number overflows.
fn number(digits: &[u8], base: u32) -> Option<u64> {
    if digits.is_empty() || digits.len() > limits::LENGTH_DIGITS_MAX {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = char::from(*digit).to_digit(base)?;
        number.checked_mul(u64::from(base))?.checked_add(u64::from(digit))
    })
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_blank(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && is_blank(*last)
    {
        bytes = rest;
    }
    bytes
}

fn is_token(bytes: &[u8]) -> bool {
    let is_taken = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_taken)
}
