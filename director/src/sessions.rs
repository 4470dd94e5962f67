//! Sessions as the admin API and the command `selvage` speak of them, and how the director gathers them from
//! its nodes. Callers: [`crate::admin`] (gathers), [`crate::tool`] (reads the JSON).
//!
//! A list is no snapshot: each session is as it was when its node looked at it, and what moves meanwhile may
//! be missing or twice. What could not be asked is said in the answer, and so are nodes that have ended
//! meanwhile.

use crate::cluster::doom::DoomOutcome;
use crate::cluster::status::Status;
use crate::driver::Handle;
use data_encoding::BASE64;
use selvage_fabric::control::message::{
    AttributeFacts, AttributeKind, AttributeValue, Doomed, Errand, ErrandOutcome, SessionDetail, SessionFacts,
};
use selvage_fabric::ident::{Epoch, SessionId};
use selvage_fabric::limits::LIST_SESSIONS_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Sessions on one page if nobody says how many.
pub const PAGE_DEFAULT: u32 = 100;
/// Most sessions on one page.
pub const PAGE_MAX: u32 = 1000;
/// Pause between two looks at whether the director knows the cluster yet.
const START_LOOK: Duration = Duration::from_millis(20);

/// A session, and who hosts it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its id. Without the mac of the cookie it opens nothing.
    pub id: String,
    /// The user it belongs to.
    pub owner: Option<String>,
    /// The node that hosts it.
    pub node: String,
    /// Ownership epoch and counter.
    pub version: String,
    /// Servers that have its newest version.
    pub copies: u32,
    /// When it was created, Unix ms.
    pub created_ms: u64,
    /// When it ends if nobody uses it, Unix ms.
    pub expires_ms: u64,
    /// When it ends at the latest, Unix ms.
    pub ends_ms: u64,
    /// Bytes of its archive.
    pub bytes: u32,
    /// A request has its lock.
    pub locked: bool,
}

/// A page of the list.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionRow>,
    /// What to give as `cursor` for the next page; `None` at the end. With fewer sessions than were wanted
    /// the time was over.
    pub next: Option<String>,
    /// What could not be looked at, and why: with any of it the list is not complete.
    pub missing: Vec<String>,
    /// The view's epoch at its end. Between pages of different ones sessions may have moved.
    #[serde(default)]
    pub epoch: Epoch,
}

/// A session and its attributes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionPicture {
    /// The session.
    #[serde(flatten)]
    pub session: SessionRow,
    /// Its attributes.
    pub attributes: Vec<Attribute>,
}

/// An attribute.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: AttributeKind,
    /// Bytes of its value.
    pub bytes: u32,
    /// Its value, if it was asked for; bytes are `{"base64": "..."}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// The value is longer than what is shown of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What a list shall have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Only sessions of this owner.
    pub owner: Option<String>,
    /// Only those of this node.
    pub node: Option<String>,
    /// At most so many.
    pub limit: u32,
    /// Where to go on: the node, and the place in its cache.
    pub cursor: Option<(String, u32)>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The director is stopping.
    Stopping,
    /// There is no such session.
    Missing,
    /// It is not certain, for people.
    Uncertain(String),
}

impl Wanted {
    /// A cursor from its text.
    pub fn parse_cursor(text: &str) -> Option<(String, u32)> {
        let (node, place) = text.rsplit_once('.')?;
        Some((node.to_owned(), place.parse().ok()?))
    }
}

/// A page of the sessions of live nodes, in the order of the nodes' names.
///
/// # Errors
/// `Stopping`.
pub async fn list(handle: &Handle, wanted: &Wanted, within: Duration) -> Result<SessionPage, Failure> {
    let deadline = Instant::now() + within;
    let status = known(handle, deadline).await?;
    let mut page = SessionPage::default();
    let (first, place) = wanted.cursor.clone().unwrap_or_default();
    if !first.is_empty() && !status.nodes.iter().any(|node| node.name == first && node.incarnation != 0) {
        page.missing.push(format!("the rest of the sessions of {first}, which is not up any more"));
    }
    let hosts = status.nodes.iter().filter(|node| node.incarnation != 0 && node.name >= first);
    for node in hosts.filter(|node| wanted.node.as_ref().is_none_or(|wanted| *wanted == node.name)) {
        let from = if node.name == first { place } else { 0 };
        page.next = list_node(handle, wanted, &node.name, from, deadline, &mut page).await?;
        if page.next.is_some() {
            break;
        }
    }
    let now = handle.status().await.ok_or(Failure::Stopping)?;
    page.missing.extend(unseen(&status, &now));
    page.epoch = now.epoch;
    Ok(page)
}

/// Takes a node's sessions from this place on; where to go on if there is no room or no time for all.
async fn list_node(
    handle: &Handle,
    wanted: &Wanted,
    node: &str,
    from: u32,
    deadline: Instant,
    page: &mut SessionPage,
) -> Result<Option<String>, Failure> {
    let mut cursor = from;
    loop {
        let room = wanted.limit.saturating_sub(page.sessions.len() as u32);
        let left = deadline.saturating_duration_since(Instant::now());
        if room == 0 || left.is_zero() {
            return Ok(Some(format!("{node}.{cursor}")));
        }
        let errand = Errand::List { owner: wanted.owner.clone(), cursor, limit: room.min(LIST_SESSIONS_MAX) };
        let next = match handle.ask(node, errand, left).await.ok_or(Failure::Stopping)? {
            Ok(ErrandOutcome::Listed { mut sessions, next }) => {
                if sessions.len() > room as usize {
                    page.missing.push(format!("some sessions of {node}: it gave more than were asked for"));
                    sessions.truncate(room as usize);
                }
                page.sessions.extend(sessions.into_iter().map(|facts| SessionRow::new(facts, node)));
                next
            }
            other => {
                page.missing.push(format!("the sessions of {node}: {}", why(other)));
                return Ok(None);
            }
        };
        match next {
            None => return Ok(None),
            Some(next) if next > cursor => cursor = next,
            // A list that does not go on must not hold this up for ever.
            Some(_) => {
                page.missing
                    .push(format!("the rest of the sessions of {node}: its list does not go on at {cursor}"));
                return Ok(None);
            }
        }
    }
}

/// The cluster; soon after the director's start, as soon as it knows it, if it does so in time.
async fn known(handle: &Handle, deadline: Instant) -> Result<Status, Failure> {
    loop {
        let status = handle.status().await.ok_or(Failure::Stopping)?;
        if !status.starting || Instant::now() >= deadline {
            return Ok(status);
        }
        tokio::time::sleep(START_LOOK).await;
    }
}

/// Whose sessions nobody, or another than was asked, may have had between these two looks at the cluster.
fn unseen(before: &Status, after: &Status) -> Vec<String> {
    let mut unseen = Vec::new();
    if before.starting {
        unseen.push("sessions of nodes that this director, which has just started, may not know".to_owned());
    }
    let mut dead: Vec<_> = before.dead.iter().chain(&after.dead).collect();
    dead.sort_by(|a, b| (&a.name, a.incarnation).cmp(&(&b.name, b.incarnation)));
    dead.dedup_by_key(|dead| dead.incarnation);
    for dead in &dead {
        unseen.push(format!("sessions of {} ({}), which are being adopted", dead.name, dead.tag));
    }
    for life in before.nodes.iter().filter(|node| node.incarnation != 0) {
        let lives_on = after.nodes.iter().any(|node| node.incarnation == life.incarnation);
        if !lives_on && !dead.iter().any(|dead| dead.incarnation == life.incarnation) {
            unseen.push(format!("sessions of {} ({}), which were adopted meanwhile", life.name, life.tag));
        }
    }
    unseen
}

/// One session, wherever it is hosted.
///
/// # Errors
/// `Missing`, `Uncertain`, `Stopping`.
pub async fn show(
    handle: &Handle,
    id: SessionId,
    values: bool,
    within: Duration,
) -> Result<SessionPicture, Failure> {
    let status = known(handle, Instant::now() + within).await?;
    let names = status.nodes.iter().filter(|node| node.incarnation != 0).map(|node| node.name.clone());
    let asked: Vec<_> = names
        .map(|name| {
            let handle = handle.clone();
            tokio::spawn(async move {
                let answer = handle.ask(&name, Errand::Show { id, values }, within).await;
                (name, answer)
            })
        })
        .collect();
    let mut trouble = Vec::new();
    for answer in asked {
        let Ok((name, answer)) = answer.await else {
            trouble.push("a question to a node broke off".to_owned());
            continue;
        };
        match answer.ok_or(Failure::Stopping)? {
            Ok(ErrandOutcome::Shown(Some(detail))) => return Ok(SessionPicture::new(*detail, &name)),
            Ok(ErrandOutcome::Shown(None)) => {}
            other => trouble.push(format!("node {name}: {}", why(other))),
        }
    }
    let now = handle.status().await.ok_or(Failure::Stopping)?;
    trouble.extend(unseen(&status, &now));
    match trouble.is_empty() {
        true => Err(Failure::Missing),
        false => Err(Failure::Uncertain(trouble.join("; "))),
    }
}

/// Destroys sessions wherever they are; how many there were.
///
/// # Errors
/// `Uncertain`, `Stopping`.
pub async fn destroy(handle: &Handle, doomed: Doomed, within: Duration) -> Result<u64, Failure> {
    match handle.doom(doomed, within).await {
        Some(DoomOutcome::Done { sessions }) => Ok(sessions),
        Some(DoomOutcome::Uncertain { sessions, why }) => Err(Failure::Uncertain(format!(
            "{sessions} sessions were destroyed, and some may be left: {why}"
        ))),
        None => Err(Failure::Stopping),
    }
}

fn why(answer: Result<ErrandOutcome, String>) -> String {
    match answer {
        Ok(ErrandOutcome::Failed(why)) | Err(why) => why,
        Ok(_) => "it answered something else".to_owned(),
    }
}

impl SessionRow {
    fn new(facts: SessionFacts, node: &str) -> Self {
        Self {
            id: facts.id.to_string(),
            owner: facts.owner,
            node: node.to_owned(),
            version: facts.version.to_string(),
            copies: facts.copies,
            created_ms: facts.created_ms,
            expires_ms: facts.expiry_ms,
            ends_ms: facts.absolute_ms,
            bytes: facts.bytes,
            locked: facts.locked,
        }
    }
}

impl SessionPicture {
    fn new(detail: SessionDetail, node: &str) -> Self {
        Self {
            session: SessionRow::new(detail.facts, node),
            attributes: detail.attributes.into_iter().map(Attribute::new).collect(),
        }
    }
}

impl Attribute {
    fn new(facts: AttributeFacts) -> Self {
        let AttributeFacts { name, kind, bytes, value } = facts;
        let shown = match &value {
            Some(AttributeValue::Bytes(shown)) => shown.len(),
            Some(AttributeValue::Text(shown)) => shown.len(),
            _ => bytes as usize,
        };
        let value = value.map(|value| match value {
            AttributeValue::Bytes(bytes) => json!({ "base64": BASE64.encode(&bytes) }),
            AttributeValue::Text(text) => json!(text),
            AttributeValue::I64(number) => json!(number),
            // What JSON has no number for is its name.
            AttributeValue::F64(number) if number.is_finite() => json!(number),
            AttributeValue::F64(number) => json!(number.to_string()),
            AttributeValue::Bool(truth) => json!(truth),
        });
        Self { name, kind, bytes, value, cut: shown < bytes as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_a_node_and_a_place() {
        assert_eq!(Wanted::parse_cursor("n1.77"), Some(("n1".to_owned(), 77)));
        for bad in ["", "n1", "n1.", "n1.x", "n1.-1", ".", "n1.99999999999"] {
            assert_eq!(Wanted::parse_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_stand_in_json_as_what_they_are() {
        let value = |kind, bytes, value| {
            Attribute::new(AttributeFacts { name: "a".to_owned(), kind, bytes, value: Some(value) })
        };
        let cut = value(AttributeKind::Bytes, 9, AttributeValue::Bytes(vec![1, 2]));
        assert_eq!((cut.value, cut.cut), (Some(json!({ "base64": "AQI=" })), true));
        let whole = value(AttributeKind::Text, 2, AttributeValue::Text("hi".to_owned()));
        assert_eq!((whole.value, whole.cut), (Some(json!("hi")), false));
        let odd = value(AttributeKind::F64, 8, AttributeValue::F64(f64::NAN));
        assert_eq!(odd.value, Some(json!("NaN")));
    }

    /// A cluster with these lives of nodes, and these that are over.
    fn cluster(starting: bool, lives: &[(&str, u64)], dead: &[(&str, u64)]) -> Status {
        let nodes: Vec<Value> = lives
            .iter()
            .map(|(name, life)| {
                json!({
                    "name": name, "tag": life.to_string(), "incarnation": life, "state": "up", "pids": [],
                    "epoch": { "term": 0, "number": 0 }, "sessions": 0, "address": "", "safe": [0, 0, 0],
                    "cache_bytes": [0, 0], "links": [], "counters": {},
                })
            })
            .collect();
        let dead: Vec<Value> = dead
            .iter()
            .map(|(name, life)| {
                let tag = life.to_string();
                json!({ "name": name, "tag": tag, "incarnation": life, "sealed": true, "unsettled": 0 })
            })
            .collect();
        serde_json::from_value(json!({
            "epoch": { "term": 0, "number": 0 }, "starting": starting, "copies": 2, "nodes": nodes,
            "servers": [], "dead": dead, "protection": { "0": 0, "1": 0, "2": 0 }, "spared": 0,
        }))
        .unwrap()
    }

    #[test]
    fn nodes_that_end_while_they_are_asked_are_named() {
        let before = cluster(false, &[("n1", 1), ("n2", 2), ("n3", 3)], &[("n4", 4)]);
        assert_eq!(unseen(&before, &before), ["sessions of n4 (4), which are being adopted"]);
        // One is dead, one was already adopted and is back, and one has come: it had nothing before.
        let after = cluster(false, &[("n1", 1), ("n2", 5), ("n4", 6), ("n5", 0)], &[("n3", 3), ("n4", 4)]);
        let expected = [
            "sessions of n3 (3), which are being adopted",
            "sessions of n4 (4), which are being adopted",
            "sessions of n2 (2), which were adopted meanwhile",
        ];
        assert_eq!(unseen(&before, &after), expected);
        assert_eq!(unseen(&cluster(false, &[("n1", 0)], &[]), &after).len(), 2, "no life, nothing to miss");
        let starts = cluster(true, &[], &[]);
        assert!(unseen(&starts, &cluster(false, &[], &[]))[0].contains("just started"));
    }
}
