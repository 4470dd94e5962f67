//! The framing check's machine against the strict reader. The first byte chooses how the rest is cut in
//! pieces. Whatever that is:
//!
//! - the machine finds as many whole requests as the reader, and nothing wrong where the reader finds
//!   nothing;
//! - where the reader finds something wrong, so does the machine, in the same request. It may find it before
//!   the reader, who looks at whole heads and lines;
//! - the pieces make no difference.

use crate::wire::{self, End};
use selvage_director::proxy::framing::{Bounds, Event, Fault, Framing};

/// Wider than inputs are long.
const BOUNDS: Bounds = Bounds { head_bytes_max: 1 << 20, headers_max: 1 << 20, target_bytes_max: 1 << 20 };

pub fn run(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let whole = follow([bytes]);
    assert_eq!(follow(bytes.chunks(1 + usize::from(*choice) % 16)), whole, "{}", bytes.escape_ascii());
    let (ended, fault) = whole;
    let (read, verdict) = wire::followed(bytes);
    assert_eq!(ended, read, "{verdict:?}, {fault:?}: {}", bytes.escape_ascii());
    match (&verdict, fault) {
        (Err(_), Some(_)) | (Ok(End::Open), _) => {}
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

/// Requests that ended, and what is wrong.
fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (usize, Option<Fault>) {
    let mut framing = Framing::new(BOUNDS);
    let mut ended = 0;
    for mut piece in pieces {
        while !piece.is_empty() {
            match framing.advance(piece) {
                Ok(taken) => {
                    assert!((1..=piece.len()).contains(&taken.bytes), "{taken:?}");
                    piece = &piece[taken.bytes..];
                    let is_end =
                        matches!(taken.event, Some(Event::End | Event::Head { has_body: false, .. }));
                    ended += usize::from(is_end);
                }
                Err(fault) => return (ended, Some(fault)),
            }
        }
    }
    (ended, None)
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::http::seeds().into_iter().map(|seed| [&[seed.len() as u8], &*seed].concat()).collect()
}
