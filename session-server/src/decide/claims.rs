//! Claims, and what only a claimant may do with sealed sessions: fetch, settle, destroy (R1, R2, R5, R9,
//! R10).

use super::leases::{LeaseState, not_yet};
use super::{Asker, Batch, Effect, LeaseNumber, Server, check_batch};
use selvage_fabric::control::message::{ClaimAnswer, FetchedArchive, FromServer, Refusal, SealedCopy};
use selvage_fabric::ident::{Epoch, Incarnation, SessionId, Version};
use selvage_fabric::lease::SessionCopy;
use selvage_fabric::limits::BATCH_SESSIONS_MAX;
use selvage_fabric::numbers::ServerCounter;
use selvage_fabric::rules::{Rule, holds};

/// Bytes that one claim takes, for the refusal that names a limit.
const CLAIM_BYTES: u64 = 32;
/// Entries of an index that one request for a list looks at.
const LIST_STEPS: usize = 1 << 18;

impl Server {
    /// Claims, in order. First claimant wins (R1).
    ///
    /// By the view that is carried out here, and no other. A claimant whose view is older may count on a
    /// server that has been dropped since, whose copies those who follow the newest view take for gone.
    pub(super) fn claim(
        &mut self,
        asker: &Asker,
        epoch: Epoch,
        ids: &[SessionId],
    ) -> Result<Vec<ClaimAnswer>, Refusal> {
        check_batch(ids.len())?;
        self.check_lives(asker)?;
        self.check_not_newer(epoch)?;
        let ours = self.carried_out;
        if epoch < ours && holds(Rule::R1Claim) {
            return Err(not_yet(&format!(
                "the asker claims by view {epoch}, this server has carried out {ours}"
            )));
        }
        self.check_sealed_open()?;
        self.check_claims_left(asker, ids)?;
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            answers.push(match self.hold_claim(asker.incarnation, id) {
                Err(other) => ClaimAnswer::Elsewhere(other),
                Ok(()) => ClaimAnswer::Granted(self.newest(id)),
            });
        }
        let elsewhere =
            answers.iter().filter(|answer| matches!(answer, ClaimAnswer::Elsewhere(_))).count() as u64;
        self.count(ServerCounter::ClaimsElsewhere, elsewhere);
        self.count(ServerCounter::ClaimsGranted, answers.len() as u64 - elsewhere);
        Ok(answers)
    }

    pub(super) fn unclaim(&mut self, asker: &Asker, ids: &[SessionId]) -> Result<(), Refusal> {
        check_batch(ids.len())?;
        self.check_lives(asker)?;
        for id in ids {
            self.drop_claim(asker.incarnation, id);
        }
        Ok(())
    }

    /// Hears the claims that a node held before this server joined. They are older than any that is asked for
    /// here.
    pub(super) fn register(
        &mut self,
        asker: &Asker,
        epoch: Epoch,
        ids: &[SessionId],
        last: bool,
    ) -> Result<(), Refusal> {
        check_batch(ids.len())?;
        self.check_lives(asker)?;
        self.check_not_newer(epoch)?;
        self.check_claims_left(asker, ids)?;
        for id in ids {
            if self.hold_claim(asker.incarnation, id).is_err() {
                self.count(ServerCounter::ClaimsDisputed, 1);
            }
        }
        if last {
            self.unregistered.remove(&asker.incarnation);
        }
        Ok(())
    }

    /// Which archives to send to a claimant.
    pub(super) fn fetch(&mut self, asker: &Asker, ids: &[SessionId]) -> Result<Effect, Refusal> {
        let batch = self.batch(asker, ids)?;
        Ok(Effect::Fetch { connection: asker.connection, batch })
    }

    /// Which archives to read for a claimant. Every id is answered or left for the next call, so that a
    /// caller that asks for the rest comes to an end.
    pub(super) fn batch(&mut self, asker: &Asker, ids: &[SessionId]) -> Result<Batch, Refusal> {
        check_batch(ids.len())?;
        self.check_lives(asker)?;
        self.check_sealed_open()?;
        let mut copies = Vec::new();
        let mut answered = Vec::new();
        for id in ids {
            let claimed = self.claims.get(id) == Some(&asker.incarnation) || !holds(Rule::R1Claim);
            match self.best(id) {
                _ if !claimed => {
                    answered.push(no_archive(*id, Version::default(), "not claimed by the asker"))
                }
                Some((lease, copy)) if copy.live => copies.push((lease, copy)),
                Some((_, copy)) => answered.push(no_archive(*id, copy.version, "the session is gone")),
                None => answered.push(no_archive(*id, Version::default(), "no sealed copy is here")),
            }
        }
        Ok(Batch { copies, answered })
    }

    pub(super) fn list_sealed(
        &mut self,
        asker: &Asker,
        incarnation: Incarnation,
        cursor: u64,
    ) -> Result<FromServer, Refusal> {
        self.check_lives(asker)?;
        self.check_sealed_open()?;
        let Some((number, lease)) = self.leases.iter().find(|(_, lease)| lease.incarnation == incarnation)
        else {
            return Ok(FromServer::Sealed { sessions: Vec::new(), next: None });
        };
        let (LeaseState::Sealed, Some(index)) = (&lease.state, self.sealed.lease(number.0)) else {
            return Err(not_yet("that incarnation's lease is not sealed"));
        };
        let copies = index.copies();
        let mut at = usize::try_from(cursor).unwrap_or(usize::MAX).min(copies.len());
        let end = at.saturating_add(LIST_STEPS).min(copies.len());
        let mut sessions = Vec::new();
        while at < end && sessions.len() < BATCH_SESSIONS_MAX {
            let copy = &copies[at];
            if copy.live && !copy.settled {
                sessions.push((copy.id, copy.version, copy.expiry_ms));
            }
            at += 1;
        }
        Ok(FromServer::Sealed { sessions, next: (at < copies.len()).then_some(at as u64) })
    }

    /// The sender, as their owner, has these sessions at their full placement (R10).
    pub(super) fn settle(&mut self, asker: &Asker, sessions: &[(SessionId, Version)]) -> Result<(), Refusal> {
        check_batch(sessions.len())?;
        self.check_lives(asker)?;
        let foreign = sessions.iter().find(|(id, _)| {
            self.sealed.find(id).is_some() && self.claims.get(id) != Some(&asker.incarnation)
        });
        if let (Some((id, _)), true) = (foreign, holds(Rule::R1Claim)) {
            return Err(Refusal::Denied(format!("session {id} is not claimed by the sender")));
        }
        for (id, version) in sessions {
            self.sealed.settle(id, *version);
        }
        self.count(ServerCounter::Settled, sessions.len() as u64);
        Ok(())
    }

    /// The sender, as their owner, has ended these sessions (R9, R14).
    pub(super) fn destroyed(
        &mut self,
        asker: &Asker,
        sessions: &[(SessionId, Version)],
    ) -> Result<(), Refusal> {
        check_batch(sessions.len())?;
        self.check_lives(asker)?;
        let foreign = sessions
            .iter()
            .find(|(id, _)| self.claims.get(id).is_some_and(|claimant| *claimant != asker.incarnation));
        if let (Some((id, _)), true) = (foreign, holds(Rule::R1Claim)) {
            return Err(Refusal::Denied(format!("session {id} is claimed by another node")));
        }
        let hidden = self.has_open_lease_of_others(asker.incarnation);
        for (id, version) in sessions {
            if holds(Rule::R9Destroy) {
                self.sealed.destroy(id, *version);
            }
            if hidden {
                self.graves.dig(*id, *version, self.lease_next, asker.incarnation);
            }
            if self.best(id).is_none_or(|(_, copy)| !copy.live) {
                self.drop_claim(asker.incarnation, id);
            }
        }
        self.count(ServerCounter::Destroyed, sessions.len() as u64);
        Ok(())
    }

    /// The claimant's view must not be newer than what is carried out here: the rest is for a later request.
    fn check_not_newer(&self, epoch: Epoch) -> Result<(), Refusal> {
        let ours = self.carried_out;
        if epoch > ours && holds(Rule::R1Claim) {
            return Err(not_yet(&format!("this server has carried out view {ours}, the asker has {epoch}")));
        }
        Ok(())
    }

    /// Sealed sessions are open to claimants only when the view says that all the dead are sealed everywhere
    /// (R2), and when all who held claims before this server joined have told them (R1).
    fn check_sealed_open(&self) -> Result<(), Refusal> {
        let sealed = !self.is_sealing() && self.view.as_ref().is_some_and(|view| view.all_sealed());
        if !sealed && holds(Rule::R2SealByView) {
            return Err(not_yet("not every lease of the ended nodes is sealed everywhere"));
        }
        if !self.unregistered.is_empty() && holds(Rule::R1Claim) {
            let missing = self.unregistered.len();
            return Err(not_yet(&format!("{missing} nodes have not registered their claims here")));
        }
        Ok(())
    }

    /// Bounds the claims of one node: it cannot host more sessions than its leases have slots.
    fn check_claims_left(&self, asker: &Asker, ids: &[SessionId]) -> Result<(), Refusal> {
        let most = 2 * u64::from(self.params.slot_count) + BATCH_SESSIONS_MAX as u64;
        let held = self.claim_counts.get(&asker.incarnation).copied().unwrap_or(0);
        let new = ids.iter().filter(|id| !self.claims.contains_key(id)).count() as u64;
        if held + new > most {
            let left = most.saturating_sub(held) * CLAIM_BYTES;
            return Err(Refusal::Full { needed: new * CLAIM_BYTES, left });
        }
        Ok(())
    }

    /// Takes a claim for a node, or says who has it.
    fn hold_claim(&mut self, claimant: Incarnation, id: &SessionId) -> Result<(), Incarnation> {
        match self.claims.get(id) {
            Some(holder) if *holder == claimant => return Ok(()),
            Some(holder) if holds(Rule::R1Claim) => return Err(*holder),
            Some(_) | None => {}
        }
        if let Some(before) = self.claims.insert(*id, claimant) {
            self.count_claims_down(before);
        }
        *self.claim_counts.entry(claimant).or_default() += 1;
        Ok(())
    }

    fn drop_claim(&mut self, claimant: Incarnation, id: &SessionId) {
        if self.claims.get(id) == Some(&claimant) {
            self.claims.remove(id);
            self.count_claims_down(claimant);
        }
    }

    fn count_claims_down(&mut self, claimant: Incarnation) {
        if let Some(count) = self.claim_counts.get_mut(&claimant) {
            *count -= 1;
        }
    }

    /// The copy of a session that counts here: the highest version of all sealed leases (R5).
    fn best(&self, id: &SessionId) -> Option<(LeaseNumber, SessionCopy)> {
        if holds(Rule::R5FetchAsksAll) {
            return self.sealed.find(id).map(|(lease, copy)| (LeaseNumber(lease), *copy));
        }
        let first = |number: &LeaseNumber| Some((*number, *self.sealed.lease(number.0)?.find(id)?));
        self.leases.keys().find_map(first)
    }

    /// What a claimant is told: the best copy, or a tombstone that a sealed lease has not met yet (R9).
    fn newest(&self, id: &SessionId) -> Option<SealedCopy> {
        let copy = self.best(id).map(|(_, copy)| SealedCopy {
            version: copy.version,
            live: copy.live,
            expiry_ms: copy.expiry_ms,
        });
        let grave = self.graves.version(id).filter(|_| holds(Rule::R9Destroy));
        match (copy, grave) {
            (Some(copy), Some(version)) if copy.version > version => Some(copy),
            (_, Some(version)) => Some(SealedCopy { version, live: false, expiry_ms: 0 }),
            (copy, None) => copy,
        }
    }
}

fn no_archive(id: SessionId, version: Version, why: &str) -> FetchedArchive {
    FetchedArchive { id, version, expiry_ms: 0, archive: Vec::new(), error: Some(why.into()) }
}
