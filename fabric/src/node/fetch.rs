//! A request's session that is not in the cache and whose host is over: claim, fetch, adopt, and serve it
//! here.

use super::claims::{
    Claimed, Wanted, admit, claim, claim_at_newcomers, fetch_archives, protect_admitted, unclaim,
};
use super::destroy::declare_gone;
use super::host::{Host, Plan};
use super::open::timed_out;
use super::push::Stamp;
use crate::cache::{EntryInit, Hold, Inserted};
use crate::error::{Error, ErrorKind, Origin, Result};
use crate::ident::{Cookie, Incarnation};
use crate::numbers::NodeTime;
use crate::rules::{Rule, holds};
use crate::view::View;
use std::time::{Duration, Instant};

/// What became of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fetched {
    /// The cache has it now (or another request is about to find out): open it.
    Hosted,
    /// No server has it, or it is gone.
    Missing,
    /// That live incarnation has claimed it.
    Elsewhere(Incarnation),
}

/// How long to wait before servers that could not answer are asked again.
const PAUSE: Duration = Duration::from_millis(2);

/// Takes the session over. Waits, at most until `deadline`, for the view to say that all leases are sealed
/// (R2) and for every up server to answer (R5).
pub(super) fn fetch(host: &Host, cookie: &Cookie, deadline: Instant) -> Result<Fetched> {
    let since_ns = host.clock.monotonic_ns();
    let fetched = take_over(host, cookie, deadline)?;
    host.observe_since(NodeTime::Fetch, since_ns);
    Ok(fetched)
}

fn take_over(host: &Host, cookie: &Cookie, deadline: Instant) -> Result<Fetched> {
    wait_for_view(host, cookie, deadline)?;
    // The entry first: other requests of this node queue behind it instead of fetching the same session
    // again.
    let Inserted::Granted(mut hold) = host.cache.insert(&cookie.id, EntryInit::default())? else {
        return Ok(Fetched::Hosted);
    };
    loop {
        host.check()?;
        let plan = host.plan().clone();
        if let Some(node) = plan.view.node(cookie.host).filter(|node| node.incarnation != host.incarnation())
        {
            return Ok(Fetched::Elsewhere(node.incarnation));
        }
        let attempt = if is_sealed(&plan.view) {
            try_fetch(host, &plan, cookie, &mut hold)
        } else {
            Err(Error::new(
                ErrorKind::NotYet,
                Origin::Node,
                "the leases of a dead node are not all sealed yet",
            ))
        };
        match attempt {
            Ok(Attempt::Ended(fetched)) => return Ok(fetched),
            Ok(Attempt::Admitted(stamp)) => {
                kill_point!("adopt.request");
                settle_in(host, &plan, &mut hold, &stamp, deadline)?;
                return Ok(Fetched::Hosted);
            }
            Err(error) if is_temporary(&error) && Instant::now() < deadline => {
                tracing::debug!(%error, session = %cookie.id, "a fetch waits");
                host.clock.sleep(PAUSE);
            }
            Err(error) => {
                unclaim(host, &plan, &[cookie.id]);
                return Err(error);
            }
        }
    }
}

/// How one round of claims and fetches ended.
enum Attempt {
    Ended(Fetched),
    /// The session is in the cache.
    Admitted(Stamp),
}

/// After this the session may be served: every server knows the claim (R1), and its copies are made. Failing
/// here leaves it in the cache, where the next request finds it; the steward registers the claim and makes
/// the copies, too.
fn settle_in(host: &Host, plan: &Plan, hold: &mut Hold, stamp: &Stamp, deadline: Instant) -> Result<()> {
    let settled = loop {
        match claim_at_newcomers(host, plan, &[stamp.id]) {
            Ok(()) => break protect_admitted(host, hold, stamp).map(|_| ()),
            Err(error) if is_temporary(&error) && Instant::now() < deadline => host.clock.sleep(PAUSE),
            Err(error) => break Err(error),
        }
    };
    settled.inspect_err(|_| host.unprotected())
}

fn try_fetch(host: &Host, plan: &Plan, cookie: &Cookie, hold: &mut Hold) -> Result<Attempt> {
    let id = cookie.id;
    // R5: where no server is up, nobody can say that another node has not adopted it.
    let others = plan.view.nodes.iter().any(|node| node.incarnation != host.incarnation());
    if others && plan.view.servers.is_empty() && holds(Rule::R5FetchAsksAll) {
        let context = "no session server is up that could tell who hosts the session";
        return Err(Error::new(ErrorKind::NotYet, Origin::Node, context));
    }
    let claimed = claim(host, plan, &[id])?.pop();
    let (copy, at) = match claimed {
        Some(Claimed::Elsewhere(node)) if plan.view.node(node).is_some() => {
            // What servers before that one have granted would keep its host from ending it there.
            unclaim(host, plan, &[id]);
            return Ok(Attempt::Ended(Fetched::Elsewhere(node)));
        }
        // Its claim ends when its leases are sealed.
        Some(Claimed::Elsewhere(_)) => {
            return Err(Error::new(ErrorKind::NotYet, Origin::Node, "a dead node's claim has not ended yet"));
        }
        Some(Claimed::Ours(Some(found))) => found,
        Some(Claimed::Ours(None)) | None => {
            unclaim(host, plan, &[id]);
            return Ok(Attempt::Ended(Fetched::Missing));
        }
    };
    if !copy.live || copy.expiry_ms <= host.clock.unix_ms() {
        // Final everywhere before it is said (R9, R14): a server that missed the tombstone must not revive
        // it.
        kill_point!("destroy.fetched");
        if !declare_gone(host, plan, &[(id, copy.version)]) {
            return Err(Error::new(
                ErrorKind::Unreachable,
                Origin::Node,
                "a server has not taken the tombstone",
            ));
        }
        return Ok(Attempt::Ended(Fetched::Missing));
    }
    let wanted = Wanted { id, copy, at };
    let archive = match fetch_archives(host, plan, std::slice::from_ref(&wanted)).pop() {
        Some(archive) => archive?,
        None => return Err(Error::new(ErrorKind::NotYet, Origin::Node, "no server answered the fetch")),
    };
    Ok(Attempt::Admitted(admit(host, plan, hold, &wanted, archive)?))
}

/// R2: nothing is fetched before every server has confirmed that all leases of the dead are sealed.
fn is_sealed(view: &View) -> bool {
    view.all_sealed() || !holds(Rule::R2SealByView)
}

/// A tag from the future means that this node's view is behind: the host may be alive. Waits for a newer
/// view, but only as long as a heartbeat may be late; a tag of a cluster that is no more is treated as dead
/// then.
fn wait_for_view(host: &Host, cookie: &Cookie, deadline: Instant) -> Result<()> {
    let is_known = |plan: &Plan| cookie.host <= plan.newest;
    let patience = Instant::now() + host.config.timing.silence();
    host.wait_plan(deadline.min(patience), is_known);
    if !host.wait_plan(deadline, |plan| is_sealed(&plan.view)) {
        host.check()?;
        return Err(timed_out(host, "the leases of a dead node to be sealed"));
    }
    Ok(())
}

/// Whether asking again may help.
fn is_temporary(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::NotYet | ErrorKind::Unreachable | ErrorKind::Timeout)
}
