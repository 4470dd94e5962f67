//! Errands: what stewards are asked to do for operators and applications.
//!
//! An errand goes to one life of one node, over the connection of its present steward, and again over the
//! next one if that steward goes before it has answered; what it does may be done twice. It ends with the
//! steward's answer, with the life, or with its time. A steward never has more of them than it takes.

use super::{Cluster, Effect, Link, Moment, Ticket};
use crate::limits;
use selvage_fabric::control::message::{Errand, ErrandOutcome, FromDirector};
use selvage_fabric::ident::Incarnation;
use selvage_fabric::limits::ERRANDS_MAX;
use std::collections::HashMap;
use std::time::Duration;

/// How an errand ended, or why it did not.
pub type ErrandAnswer = Result<ErrandOutcome, String>;

/// An errand under way.
#[derive(Debug)]
pub(super) struct Trip {
    /// Its number; a later one is higher.
    number: u64,
    node: String,
    incarnation: Incarnation,
    errand: Errand,
    until: Moment,
    /// Where it was sent.
    sent: Option<Link>,
    asker: Asker,
    /// Its end, when it is there.
    answer: Option<ErrandAnswer>,
}

/// Who waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    Ticket(Ticket),
    /// See [`super::doom`].
    Doom(u64),
}

impl Cluster {
    /// An operator's errand to a node.
    pub(super) fn ask(
        &mut self,
        node: &str,
        errand: Errand,
        ticket: Ticket,
        until: Moment,
        out: &mut Vec<Effect>,
    ) {
        let life = self.nodes.get(node).and_then(|node| node.life.as_ref()).map(|life| life.incarnation);
        let why = match life {
            _ if self.trips.len() >= limits::TRIPS_MAX => {
                "too many requests are under way; try again".to_owned()
            }
            Some(life) => return self.set_out(node, life, errand, until, Asker::Ticket(ticket)),
            None => format!("node {node} is not up"),
        };
        out.push(Effect::ErrandAnswer { ticket, answer: Err(why) });
    }

    pub(super) fn set_out(
        &mut self,
        node: &str,
        incarnation: Incarnation,
        errand: Errand,
        until: Moment,
        asker: Asker,
    ) {
        self.errand_last += 1;
        let (number, node) = (self.errand_last, node.to_owned());
        self.trips.push(Trip { number, node, incarnation, errand, until, sent: None, asker, answer: None });
    }

    /// A steward's answer; one that nobody waits for any more counts for nothing.
    pub(super) fn errand_ended(&mut self, link: Link, number: u64, outcome: ErrandOutcome) {
        let mut trips = self.trips.iter_mut();
        if let Some(trip) = trips.find(|trip| trip.number == number && trip.sent == Some(link)) {
            trip.answer = Some(Ok(outcome));
        }
    }

    /// Sends errands out, and hands over those that have ended.
    pub(super) fn tend_errands(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.trips.is_empty() {
            return;
        }
        let mut busy: HashMap<Link, usize> = HashMap::new();
        for trip in &mut self.trips {
            let life = self.nodes.get(&trip.node).and_then(|node| node.life.as_ref());
            let Some(life) = life.filter(|life| life.incarnation == trip.incarnation) else {
                trip.answer = Some(Err(format!("node {} has ended meanwhile", trip.node)));
                continue;
            };
            // Who destroys goes by its own time.
            if now >= trip.until && matches!(trip.asker, Asker::Ticket(_)) {
                trip.answer
                    .get_or_insert_with(|| Err(format!("node {} has not answered in time", trip.node)));
            }
            let (Some(link), None) = (life.link, &trip.answer) else { continue };
            let under_way = busy.entry(link).or_default();
            if *under_way >= ERRANDS_MAX {
                continue;
            }
            *under_way += 1;
            if trip.sent != Some(link) {
                trip.sent = Some(link);
                let within_ms = time_for_node(trip.until.saturating_sub(now)).as_millis() as u32;
                let (number, errand) = (trip.number, trip.errand.clone());
                let message = FromDirector::Errand { number, errand, within_ms };
                out.push(Effect::ToNode { link, message });
            }
        }
        let ended = self.trips.extract_if(.., |trip| trip.answer.is_some());
        for trip in ended.collect::<Vec<_>>() {
            let answer = trip.answer.unwrap_or_else(|| Err("it has no answer".to_owned()));
            match trip.asker {
                Asker::Ticket(ticket) => out.push(Effect::ErrandAnswer { ticket, answer }),
                Asker::Doom(doom) => self.doom_heard(doom, &trip.node, trip.incarnation, answer),
            }
        }
    }

    /// Nobody waits for these any more.
    pub(super) fn forget_errands(&mut self, asker: Asker) {
        self.trips.retain(|trip| trip.asker != asker);
    }
}

/// The answer needs its part of the time.
fn time_for_node(left: Duration) -> Duration {
    left - (left / 8).min(limits::ERRAND_WAY)
}
