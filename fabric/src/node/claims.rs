//! Claims and fetched archives: how a session is taken over from sealed leases, one at a time or in batches.

use super::host::{Host, Plan};
use super::push::{Cargo, Stamp, protect};
use super::servers::unexpected;
use crate::archive::OwnedArchive;
use crate::cache::{EntryInit, EntryState, Hold};
use crate::control::message::{ClaimAnswer, FetchedArchive, FromServer, SealedCopy, ToServer};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Incarnation, SessionId, Version};
use crate::limits::BATCH_SESSIONS_MAX;
use crate::numbers::NodeCounter;
use crate::rules::{Rule, holds};

/// What claiming a session at every up server has shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Claimed {
    /// It is this node's to adopt: the best copy over all servers (R5), and the servers that have it, by
    /// their index in the view. `None`: no server has a copy.
    Ours(Option<(SealedCopy, Vec<usize>)>),
    /// Another incarnation has claimed it.
    Elsewhere(Incarnation),
}

/// Claims sessions at every up server, in the order of the view (R1), and takes the highest version of all
/// (R5); of one version the tombstone.
///
/// # Errors
/// If one server could not answer. Claims that were made stay; claim again, or [`unclaim`].
pub(super) fn claim(host: &Host, plan: &Plan, ids: &[SessionId]) -> Result<Vec<Claimed>> {
    host.count(NodeCounter::Claims, ids.len() as u64);
    let mut claimed = vec![Claimed::Ours(None); ids.len()];
    for (index, server) in plan.view.servers.iter().enumerate() {
        if index > 0 && !holds(Rule::R1Claim) {
            break;
        }
        // What another has already is not claimed on.
        let open = |claimed: &Claimed| matches!(claimed, Claimed::Ours(_));
        let asked: Vec<SessionId> =
            ids.iter().zip(&claimed).filter(|(_, claimed)| open(claimed)).map(|(id, _)| *id).collect();
        if asked.is_empty() {
            break;
        }
        let request = ToServer::Claim { epoch: plan.view.epoch, ids: asked.clone() };
        let FromServer::Claims(answers) = host.servers.call(server, &request)? else {
            return Err(unexpected(server, "claims"));
        };
        if answers.len() != asked.len() {
            return Err(unexpected(server, "one answer per claim"));
        }
        for (claimed, answer) in claimed.iter_mut().filter(|claimed| open(claimed)).zip(answers) {
            *claimed = merge(claimed, answer, index);
        }
    }
    Ok(claimed)
}

fn merge(claimed: &Claimed, answer: ClaimAnswer, server: usize) -> Claimed {
    let Claimed::Ours(best) = claimed else { return claimed.clone() };
    let copy = match answer {
        ClaimAnswer::Elsewhere(node) => return Claimed::Elsewhere(node),
        ClaimAnswer::Granted(None) => return claimed.clone(),
        ClaimAnswer::Granted(Some(copy)) => copy,
    };
    let rank = |copy: &SealedCopy| (copy.version, !copy.live);
    Claimed::Ours(Some(match best {
        None => (copy, vec![server]),
        Some((held, at)) if rank(held) == rank(&copy) => {
            let expiry_ms = held.expiry_ms.max(copy.expiry_ms);
            (SealedCopy { expiry_ms, ..*held }, at.iter().copied().chain([server]).collect())
        }
        Some((held, at)) if rank(held) > rank(&copy) || !holds(Rule::R5FetchAsksAll) => (*held, at.clone()),
        Some(_) => (copy, vec![server]),
    }))
}

/// Gives claims up at every up server; what cannot be reached forgets them with this incarnation.
pub(super) fn unclaim(host: &Host, plan: &Plan, ids: &[SessionId]) {
    if ids.is_empty() {
        return;
    }
    for server in &plan.view.servers {
        if let Err(error) = host.servers.call(server, &ToServer::Unclaim { ids: ids.to_vec() }) {
            tracing::debug!(server = server.name, %error, "cannot give claims up");
        }
    }
}

/// A session to fetch: its best copy and the servers that have it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub id: SessionId,
    pub copy: SealedCopy,
    pub at: Vec<usize>,
}

/// Fetches archives, each from the first server that can give a copy which passes its checks. The answers
/// stand in the order of `wanted`.
pub(super) fn fetch_archives(host: &Host, plan: &Plan, wanted: &[Wanted]) -> Vec<Result<OwnedArchive>> {
    let mut results: Vec<Option<Result<OwnedArchive>>> = wanted.iter().map(|_| None).collect();
    for (index, server) in plan.view.servers.iter().enumerate() {
        let mut asked: Vec<usize> = (0..wanted.len())
            .filter(|&at| wanted[at].at.contains(&index) && !matches!(results[at], Some(Ok(_))))
            .collect();
        while !asked.is_empty() {
            let ids = asked.iter().map(|&at| wanted[at].id).collect();
            let archives = host.servers.fetch(server, ids).unwrap_or_else(|error| {
                tracing::debug!(server = server.name, %error, "cannot fetch");
                Vec::new()
            });
            let before = asked.len();
            for archive in archives {
                if let Some(place) = asked.iter().position(|&at| wanted[at].id == archive.id) {
                    let at = asked.swap_remove(place);
                    results[at] = Some(check(host, &wanted[at], &archive));
                }
            }
            if asked.len() == before {
                break;
            }
        }
    }
    let missing =
        || Error::new(ErrorKind::NotYet, Origin::Node, "no server with a copy of the session could be asked");
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing()))).collect()
}

/// Copies a fetched archive out and checks it: hostile until then (invariant 6). R7: it carries the id and
/// version of its cell.
fn check(host: &Host, wanted: &Wanted, fetched: &FetchedArchive) -> Result<OwnedArchive> {
    let corrupt = |why: String| {
        host.count(NodeCounter::BadCopies, 1);
        Error::new(ErrorKind::Corrupt, Origin::Node, format!("a copy of session {}: {why}", wanted.id))
    };
    if let Some(error) = &fetched.error {
        return Err(corrupt(error.clone()));
    }
    if fetched.version < wanted.copy.version {
        return Err(corrupt(format!("version {} instead of {}", fetched.version, wanted.copy.version)));
    }
    let archive = OwnedArchive::copy_of(&fetched.archive, &host.archive_limits())
        .map_err(|error| corrupt(error.to_string()))?;
    let (id, version) = (archive.session().id(), archive.session().version());
    let fits = version.epoch == fetched.version.epoch && version.counter <= fetched.version.counter;
    if holds(Rule::R7Blocks) && (id != wanted.id || !fits) {
        return Err(corrupt(format!("its archive is that of {id}, version {version}")));
    }
    Ok(archive)
}

/// Makes a fetched session this node's own: new ownership epoch (R12), into the cache, then to its placement.
///
/// # Errors
/// `NotYet` if sealed leases of the view that the claim went by have been released since: who wants to
/// destroy sessions does not wait for those any more, so none may appear. Look again by the new view.
pub(super) fn admit(
    host: &Host,
    plan: &Plan,
    hold: &mut Hold,
    wanted: &Wanted,
    mut archive: OwnedArchive,
) -> Result<Stamp> {
    let newest = host.plan().clone();
    let is_kept = |life| newest.view.dead.iter().any(|dead| dead.incarnation == life);
    if !plan.view.dead.iter().all(|dead| is_kept(dead.incarnation)) {
        let context = "sealed leases were released while the session was fetched";
        return Err(Error::new(ErrorKind::NotYet, Origin::Node, context));
    }
    let found = wanted.copy.version;
    let version = match holds(Rule::R12Epochs) {
        true => Version {
            epoch: plan.view.epoch.number.max(found.epoch.saturating_add(1)),
            counter: found.counter + 1,
        },
        false => found,
    };
    archive.restamp(version);
    let created_ms = archive.session().created_ms();
    let absolute_ms = created_ms.saturating_add(archive.session().absolute_ms());
    hold.set_init(EntryInit { created_ms, absolute_ms, adopted: true })?;
    hold.stage(archive.bytes().len() as u32)?.copy_from_slice(archive.bytes());
    hold.publish(version, wanted.copy.expiry_ms)?;
    host.count(NodeCounter::Adoptions, 1);
    Ok(Stamp { id: wanted.id, version, expiry_ms: wanted.copy.expiry_ms })
}

/// Servers that came into the view since `plan` have been told no claim of this one by us, unless the
/// steward's registration saw the session: claims there, too, before the session is served (R1).
pub(super) fn claim_at_newcomers(host: &Host, plan: &Plan, ids: &[SessionId]) -> Result<()> {
    let newest = host.plan().clone();
    let newcomer = |server: &crate::view::ServerEntry| plan.view.server(server.incarnation).is_none();
    if !newest.view.servers.iter().any(newcomer) || ids.is_empty() {
        return Ok(());
    }
    let claimed = claim(host, &newest, ids)?;
    match claimed.iter().all(|claimed| matches!(claimed, Claimed::Ours(_))) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotYet, Origin::Node, "a new server knows another claimant")),
    }
}

/// Copies an admitted session to its placement. Returns whether it has every copy that the view can give.
pub(super) fn protect_admitted(host: &Host, hold: &mut Hold, stamp: &Stamp) -> Result<bool> {
    let plan = host.plan();
    let reach = protect(host, hold, &plan, stamp, Cargo::Missing { same_since: None })?;
    Ok(reach.copies >= plan.copies_possible())
}

/// Tells a server every claim of this node, in batches (R1).
pub(super) fn register_claims(host: &Host, server: Incarnation) -> Result<()> {
    let plan = host.plan().clone();
    let Some(entry) = plan.view.server(server) else {
        return Err(Error::new(ErrorKind::Unreachable, Origin::Node, "the server has left the view"));
    };
    let ids = if holds(Rule::R1Claim) { claimed_ids(host)? } else { Vec::new() };
    let mut batches: Vec<_> = ids.chunks(BATCH_SESSIONS_MAX).map(<[_]>::to_vec).collect();
    if batches.is_empty() {
        batches.push(Vec::new());
    }
    let last = batches.len() - 1;
    for (index, ids) in batches.into_iter().enumerate() {
        let request = ToServer::RegisterClaims { epoch: plan.view.epoch, ids, last: index == last };
        host.servers.call(entry, &request)?;
    }
    Ok(())
}

/// The sessions that this node holds claims on: what a server that is new must be told (R1).
fn claimed_ids(host: &Host) -> Result<Vec<SessionId>> {
    let mut ids = Vec::new();
    for index in 0..host.cache.spec().sessions_max {
        if let Some(info) = host.cache.entry(index)?
            && info.adopted
            && info.state != EntryState::Adopting
        {
            ids.push(info.id);
        }
    }
    Ok(ids)
}
