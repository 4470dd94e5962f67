//! One-sided heartbeats as evidence of life.
//!
//! A node's beat lies in its lease at each server, a server's in the header of each lease; they are written
//! and read one-sidedly, and servers and nodes report how long ago they saw each other's move. So a member
//! whose control connection is silent, because TCP waits for a retransmission or the path to the director is
//! cut, is not declared dead while another member that is heard sees it beat.
//!
//! Evidence only delays: it comes with a control word of a third party that is not older than the silence
//! limit itself, so members that fall silent together cannot vouch for each other; it says when the beat was
//! last seen to move, so it ends with the beats and a real death is noticed as soon as without it; and it
//! counts for at most [`EVIDENCE_FACTOR`] silence periods since the last control word. Mandates need that
//! word (R8), so they have ended long before.

use super::{Cluster, Moment};
use crate::limits::EVIDENCE_FACTOR;
use selvage_fabric::ident::Incarnation;
use std::time::Duration;

/// What a member's silence means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It was heard within the time allowed.
    Heard,
    /// It was not heard, but its beats go on.
    Spared,
    /// It is declared dead.
    Silent,
}

/// Judges a member that was last heard at `heard` and may be silent for `allowed`. `seen` is the last moment
/// at which its beat is known to have moved.
pub(super) fn judge(
    heard: Moment,
    allowed: Duration,
    seen: impl FnOnce() -> Option<Moment>,
    silence: Duration,
    now: Moment,
) -> Verdict {
    if now <= heard + allowed {
        return Verdict::Heard;
    }
    let in_time = now <= heard + silence * EVIDENCE_FACTOR;
    match in_time && seen().is_some_and(|seen| now <= seen + silence) {
        true => Verdict::Spared,
        false => Verdict::Silent,
    }
}

impl Cluster {
    /// The last moment at which a server of the view saw this node life beat in an open lease.
    pub(super) fn node_seen(&self, incarnation: Incarnation) -> Option<Moment> {
        // What a life told that is not the one in the view says nothing (R6).
        let up = self.servers.values().filter(|server| server.up == Some(server.report.incarnation));
        let seen = up.flat_map(|server| {
            let leases = server.report.leases.iter();
            leases
                .filter(|lease| lease.incarnation == incarnation && !lease.sealed)
                .filter_map(|lease| moved(server.report_at, lease.beat_age_ms))
        });
        seen.max()
    }

    /// The last moment at which a live node saw this server life beat.
    pub(super) fn server_seen(&self, incarnation: Incarnation) -> Option<Moment> {
        let lives = self.nodes.values().filter_map(|node| node.life.as_ref());
        let seen = lives.flat_map(|life| {
            let links = life.beat.links.iter();
            links
                .filter(|link| link.server == incarnation)
                .filter_map(|link| moved(life.beat_at, link.beat_age_ms))
        });
        seen.max()
    }
}

/// When a beat moved that was `age_ms` old in a report that came at `told`. Before the director's start is
/// as good as never.
fn moved(told: Moment, age_ms: Option<u32>) -> Option<Moment> {
    told.checked_sub(Duration::from_millis(age_ms?.into()))
}
