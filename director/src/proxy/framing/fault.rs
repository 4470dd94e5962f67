//! What is wrong with the bytes of a request, and how that is answered.

use hyper::StatusCode;
use std::fmt;

/// Why bytes are no request that everybody would read in the same way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An LF that no CR precedes.
    BareLf,
    /// A CR that no LF follows.
    BareCr,
    /// A control character, NUL included.
    Control(u8),
    /// A first line that is no request line, or too many empty ones before it.
    RequestLine,
    /// A version other than 1.0 and 1.1.
    Version,
    /// A target that is too long.
    Target,
    /// A header line that goes on with the next (obs-fold).
    Fold,
    /// A space between a header's name and its colon.
    SpaceBeforeColon,
    /// A header line without a name or a colon.
    HeaderLine,
    /// Too many header lines.
    HeaderCount,
    /// A head or a trailer section that is too long.
    HeadBytes,
    /// A `Content-Length` that is no number.
    Length,
    /// More than one `Content-Length`.
    Lengths,
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthAndCoding,
    /// A transfer coding that the director does not know.
    UnknownCoding,
    /// `chunked` that is not the last coding, or more than once, or none where one was announced.
    Coding,
    /// `Transfer-Encoding` in HTTP/1.0.
    CodingInOldVersion,
    /// A chunk whose size is no number, or a chunk-size line that is too long.
    ChunkSize,
    /// Chunk extensions of one body that are too long together.
    Extensions,
    /// A chunk that does not end where its size says.
    ChunkEnd,
    /// A head that did not come in time.
    Late,
}

impl Fault {
    /// The status that says so.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Target => StatusCode::URI_TOO_LONG,
            Self::HeaderCount | Self::HeadBytes => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Late => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BareLf => "a line ends with LF alone",
            Self::BareCr => "a CR stands alone",
            Self::Control(byte) => return write!(f, "a control character (0x{byte:02x}) is in a line"),
            Self::RequestLine => "the first line is no request line",
            Self::Version => "only HTTP/1.1 and HTTP/1.0 are spoken here",
            Self::Target => "the request's target is too long",
            Self::Fold => "a header goes on in a second line",
            Self::SpaceBeforeColon => "a space is between a header's name and its colon",
            Self::HeaderLine => "a header line has no name or no colon",
            Self::HeaderCount => "there are too many header lines",
            Self::HeadBytes => "the header section is too long",
            Self::Length => "the Content-Length is no number",
            Self::Lengths => "there is more than one Content-Length",
            Self::LengthAndCoding => "there are a Content-Length and a Transfer-Encoding",
            Self::UnknownCoding => "the only transfer coding that is known here is chunked",
            Self::Coding => "the transfer coding is not chunked, once and last",
            Self::CodingInOldVersion => "HTTP/1.0 has no Transfer-Encoding",
            Self::ChunkSize => "a chunk's size is no number",
            Self::Extensions => "the chunk extensions are too long",
            Self::ChunkEnd => "a chunk does not end where its size says",
            Self::Late => "the request's head did not come in time",
        })
    }
}

impl std::error::Error for Fault {}
