//! Keeps a process's links: opens those that are missing, each on a thread of its own (a server that does not
//! answer must not hold the others up), takes those that broke out of use, and reports on all of them.

use super::host::{Host, LinkState, Plan};
use crate::control::message::LinkReport;
use crate::ident::Incarnation;
use crate::limits::STEWARD_POLL;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The links of one process in one incarnation of its node. Belongs to the agent.
#[derive(Default)]
pub(super) struct LinkKeeper {
    attempts: HashMap<Incarnation, Attempt>,
    /// The last time that servers were asked whether this incarnation is over.
    asked: Option<Attempt>,
    beats: PeerBeats,
}

/// The last try.
struct Attempt {
    began: Instant,
    /// How long the next one waits.
    pause: Duration,
    thread: JoinHandle<()>,
}

/// Longest pause between two tries to open a link.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl LinkKeeper {
    /// To be called every [`STEWARD_POLL`], and at once when a link was lost: a server that has taken its
    /// memory away is asked why as soon as that is noticed. Never blocks.
    pub fn tend(&mut self, host: &Arc<Host>, steward: bool) {
        host.watch_links();
        let plan = host.plan().clone();
        let is_open = |server| plan.lane(server).is_some();
        self.attempts.retain(|server, attempt| {
            !attempt.thread.is_finished() || (plan.view.server(*server).is_some() && !is_open(*server))
        });
        if !steward && plan.is_slow() && !host.has_mandate() {
            self.ask_whether_over(host);
        }
        for (server, link) in plan.links() {
            let pause = match self.attempts.get(&server.incarnation) {
                _ if matches!(link, LinkState::Open(_)) => continue,
                _ if !steward && !host.has_book(server.incarnation) => continue,
                None => STEWARD_POLL,
                Some(last) if !last.thread.is_finished() || last.began.elapsed() < last.pause => continue,
                // Somebody who has failed may fail for long, and a handshake costs both sides something.
                Some(last) if matches!(link, LinkState::Failed(_)) => (2 * last.pause).min(PAUSE_MAX),
                Some(_) => STEWARD_POLL,
            };
            let (host, entry) = (host.clone(), server.clone());
            let opening = std::thread::Builder::new().name("selvage-link".into()).spawn(move || {
                host.open_link(&entry, steward);
            });
            match opening {
                Ok(thread) => {
                    let attempt = Attempt { began: Instant::now(), pause, thread };
                    self.attempts.insert(server.incarnation, attempt);
                }
                Err(error) => tracing::warn!(%error, "cannot start a thread"),
            }
        }
    }

    /// A steward that is stopped lets the mandate run out, and cannot tell that this incarnation is over. A
    /// lease in shared memory can, but over RDMA only the steward reads it: so a server is asked, one per
    /// silence.
    fn ask_whether_over(&mut self, host: &Arc<Host>) {
        let is_early = |asked: &Attempt| !asked.thread.is_finished() || asked.began.elapsed() < asked.pause;
        if self.asked.as_ref().is_some_and(is_early) {
            return;
        }
        let pause = host.config.timing.silence();
        let host = host.clone();
        let asking =
            std::thread::Builder::new().name("selvage-ask".into()).spawn(move || host.ask_whether_over());
        match asking {
            Ok(thread) => self.asked = Some(Attempt { began: Instant::now(), pause, thread }),
            Err(error) => tracing::warn!(%error, "cannot start a thread"),
        }
    }

    /// Waits for the threads; each is bounded.
    pub fn join(self) {
        for attempt in self.attempts.into_values().chain(self.asked) {
            // A panic of an attempt has nothing to add here.
            let _ = attempt.thread.join();
        }
    }

    /// What the director is told about each link.
    pub fn report(&mut self, plan: &Plan, now_ns: u64) -> Vec<LinkReport> {
        self.beats.retain(plan);
        let report = |(server, link): (&crate::view::ServerEntry, &LinkState)| {
            let server = server.incarnation;
            if let LinkState::Open(lane) = link {
                self.beats.look(server, lane.link.peer_beat(), now_ns);
            }
            let (transport, detail) = match link {
                LinkState::Open(lane) => (Some(lane.link.kind()), lane.link.detail()),
                LinkState::Closed => (None, "not opened yet".to_owned()),
                LinkState::Failed(why) => (None, why.to_string()),
            };
            LinkReport { server, transport, detail, beat_age_ms: self.beats.age_ms(server, now_ns) }
        };
        plan.links().map(report).collect()
    }
}

/// When each server's heartbeat was last seen to move.
#[derive(Default)]
struct PeerBeats {
    /// The last beat, and when it came, if an earlier one was seen.
    seen: HashMap<Incarnation, (u64, Option<u64>)>,
}

impl PeerBeats {
    fn look(&mut self, server: Incarnation, beat: u64, now_ns: u64) {
        let (last, moved_ns) = self.seen.entry(server).or_insert((beat, None));
        if *last != beat {
            (*last, *moved_ns) = (beat, Some(now_ns));
        }
    }

    fn age_ms(&self, server: Incarnation, now_ns: u64) -> Option<u32> {
        let (_, moved_ns) = self.seen.get(&server)?;
        let age_ns = now_ns.saturating_sub((*moved_ns)?);
        Some(u32::try_from(age_ns / 1_000_000).unwrap_or(u32::MAX))
    }

    fn retain(&mut self, plan: &Plan) {
        self.seen.retain(|server, _| plan.view.server(*server).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_ages_from_when_it_was_seen_to_move() {
        let (a, b) = (Incarnation(1), Incarnation(2));
        let mut beats = PeerBeats::default();
        assert_eq!(beats.age_ms(a, 0), None);
        beats.look(a, 7, 1_000_000);
        assert_eq!(beats.age_ms(a, 2_000_000), None, "it may have stood there for long");
        beats.look(a, 8, 5_000_000);
        beats.look(a, 8, 9_000_000);
        assert_eq!((beats.age_ms(a, 12_000_000), beats.age_ms(b, 12_000_000)), (Some(7), None));
        // A link that was opened again begins with what it read last: any other value is news.
        beats.look(a, 3, 20_000_000);
        assert_eq!(beats.age_ms(a, 20_000_000), Some(0));
    }
}
