//! `selvage sessions`: list, show, kill.

use super::call::Caller;
use super::nodes::encode;
use super::table::{bytes, is_coloured, number, plain, since, table, text, time, until, word};
use super::{Common, Said, usage};
use crate::limits::REQUEST_WAIT_MAX;
use crate::sessions::{PAGE_DEFAULT, PAGE_MAX, SessionPage, SessionPicture, SessionRow, Wanted};
use clap::{Args, Subcommand};
use hyper::Method;
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use selvage_fabric::ident::SessionId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

/// What to do with sessions.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// List sessions. It is no snapshot: what moves meanwhile may be missing or twice.
    List(List),
    /// Show one session: its state, and its attributes without their values.
    Show(Show),
    /// Destroy a session, or all sessions of an owner, at whatever node they are, with all their copies.
    ///
    /// With --owner, "done" means that no session that had this owner is left, whatever dies afterwards.
    /// Otherwise it says what is not certain, and can be repeated.
    Kill(Kill),
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only sessions of this owner.
    #[arg(long)]
    owner: Option<String>,
    /// Only sessions that this node hosts.
    #[arg(long)]
    node: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = PAGE_DEFAULT)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_MAX)))]
    limit: u32,
    /// Where to go on, as the last list has said.
    #[arg(long)]
    cursor: Option<String>,
    /// All of them, page after page.
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    all: bool,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// The session's id: the part of its cookie before the first "-".
    #[arg(value_parser = parse_id)]
    id: SessionId,
    /// With the attributes' values, which may be personal data; long ones are cut.
    #[arg(long)]
    values: bool,
}

#[derive(Args, Debug)]
pub(super) struct Kill {
    #[command(flatten)]
    doomed: Doomed,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=REQUEST_WAIT_MAX.as_secs() as i64))]
    within: u32,
}

/// What is to be destroyed.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Doomed {
    /// The session's id: the part of its cookie before the first "-".
    #[arg(value_parser = parse_id)]
    id: Option<SessionId>,
    /// All sessions of this owner.
    #[arg(long)]
    owner: Option<String>,
}

/// The admin API's answer to a kill.
#[derive(Deserialize)]
struct Killed {
    destroyed: u64,
}

/// Does it.
pub(super) fn run(common: &Common, command: &Command) -> Result<Said> {
    let caller = Caller::new(common.url()?)?;
    let said = match command {
        Command::List(wanted) => return run_list(common, &caller, wanted),
        Command::Show(Show { id, values }) => {
            let path = format!("/admin/sessions/{id}?values={values}");
            let picture: SessionPicture = caller.json(Method::GET, &path)?;
            common.say(&picture, || describe(&picture))
        }
        Command::Kill(kill) => {
            let caller = caller.patient(Duration::from_secs(kill.within.into()));
            run_kill(common, &caller, kill)
        }
    };
    said.map(Said::whole)
}

fn run_list(common: &Common, caller: &Caller, wanted: &List) -> Result<Said> {
    let page = match wanted.all {
        true => list_all(|cursor| list(caller, wanted, cursor))?,
        false => list(caller, wanted, wanted.cursor.as_deref())?,
    };
    // What was asked for is a page: more beyond it is as it should be, but not more within it.
    let is_late = page.next.is_some() && page.sessions.len() < wanted.limit as usize;
    let text = common.say(&page, || describe_page(&page, is_late))?;
    Ok(Said { text, is_whole: page.missing.is_empty() && !is_late })
}

fn list(caller: &Caller, wanted: &List, cursor: Option<&str>) -> Result<SessionPage> {
    let limit = if wanted.all { PAGE_MAX } else { wanted.limit };
    let mut path = format!("/admin/sessions?limit={limit}");
    let given = [("owner", wanted.owner.as_deref()), ("node", wanted.node.as_deref()), ("cursor", cursor)];
    for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        // Writing into a string cannot fail.
        let _ = write!(path, "&{name}={}", encode(value));
    }
    caller.json(Method::GET, &path)
}

/// All pages as one.
fn list_all(mut list: impl FnMut(Option<&str>) -> Result<SessionPage>) -> Result<SessionPage> {
    let mut whole = list(None)?;
    while let Some(cursor) = whole.next.take() {
        let page = list(Some(&cursor))?;
        if page.epoch != whole.epoch {
            let (one, other) = (whole.epoch, page.epoch);
            let what = format!("sessions that moved when the cluster changed from epoch {one} to {other}");
            whole.missing.push(what);
        }
        whole.sessions.extend(page.sessions);
        // What one page could not see the next one does not speak of, or says again.
        for missing in page.missing {
            if !whole.missing.contains(&missing) {
                whole.missing.push(missing);
            }
        }
        whole.epoch = page.epoch;
        whole.next = page.next;
        if whole.next.as_ref().is_some_and(|next| !is_further(next, &cursor)) {
            whole.missing.push(format!("what comes after {cursor}, where the list does not go on"));
            break;
        }
    }
    Ok(whole)
}

/// Whether a list that has come from `before` to `after` has an end.
fn is_further(after: &str, before: &str) -> bool {
    Wanted::parse_cursor(after) > Wanted::parse_cursor(before)
}

fn describe_page(page: &SessionPage, is_late: bool) -> String {
    let mut rows =
        table(&["SESSION", "OWNER", "NODE", "COPIES", "VERSION", "SIZE", "AGE", "EXPIRES IN", "LOCKED"]);
    for session in &page.sessions {
        rows.add_row(vec![
            word(&session.id),
            word(session.owner.as_deref().unwrap_or_default()),
            word(&session.node),
            number(session.copies),
            number(plain(&session.version)),
            number(bytes(session.bytes.into())),
            number(time(since(session.created_ms))),
            number(time(until(session.expires_ms.min(session.ends_ms)))),
            word(if session.locked { "yes" } else { "" }),
        ]);
    }
    let mut page_text = match page.sessions.is_empty() {
        true => "no sessions\n".to_owned(),
        false => text(rows),
    };
    // Writing into a string cannot fail.
    for missing in &page.missing {
        let _ = writeln!(page_text, "not in this list: {}", plain(missing));
    }
    if let Some(next) = &page.next {
        let why = if is_late { "the time was over, and there may be more" } else { "there are more" };
        let _ = writeln!(page_text, "{why}: --cursor {}", plain(next));
    }
    page_text
}

fn describe(picture: &SessionPicture) -> String {
    let session: &SessionRow = &picture.session;
    let facts = [
        ("session", session.id.clone()),
        ("owner", session.owner.clone().unwrap_or_else(|| "-".to_owned())),
        ("node", session.node.clone()),
        ("version", session.version.clone()),
        ("copies", session.copies.to_string()),
        ("size", bytes(session.bytes.into())),
        ("created", format!("{} ago", time(since(session.created_ms)))),
        ("expires", format!("in {} unless it is used", time(until(session.expires_ms)))),
        ("ends", format!("in {} at the latest", time(until(session.ends_ms)))),
        ("locked", if session.locked { "by a request" } else { "no" }.to_owned()),
    ];
    let mut page = String::new();
    for (name, value) in facts {
        // Writing into a string cannot fail.
        let _ = writeln!(page, "{name:9}{}", plain(&value));
    }
    if picture.attributes.is_empty() {
        return page + "no attributes\n";
    }
    let has_values = picture.attributes.iter().any(|attribute| attribute.value.is_some());
    let head: &[&str] =
        if has_values { &["ATTRIBUTE", "KIND", "BYTES", "VALUE"] } else { &["ATTRIBUTE", "KIND", "BYTES"] };
    let mut rows = table(head);
    for attribute in &picture.attributes {
        let kind = serde_json::to_value(attribute.kind).unwrap_or_default();
        let mut row =
            vec![word(&attribute.name), word(kind.as_str().unwrap_or_default()), number(attribute.bytes)];
        if has_values {
            row.push(word(&value_text(attribute.value.as_ref(), attribute.cut)));
        }
        rows.add_row(row);
    }
    page.push('\n');
    page + &text(rows)
}

fn value_text(value: Option<&Value>, cut: bool) -> String {
    let text = match value {
        None => return "(not shown: the answer is full)".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => match other["base64"].as_str() {
            Some(base64) => format!("base64 {base64}"),
            None => other.to_string(),
        },
    };
    if cut { text + "..." } else { text }
}

fn run_kill(common: &Common, caller: &Caller, kill: &Kill) -> Result<String> {
    let within_ms = u64::from(kill.within) * 1000;
    let (what, path) = match (&kill.doomed.owner, &kill.doomed.id) {
        (Some(owner), _) => {
            (format!("all sessions of {}", plain(owner)), format!("/admin/owners/{}/sessions", encode(owner)))
        }
        (None, Some(id)) => (format!("session {id}"), format!("/admin/sessions/{id}")),
        (None, None) => return Err(usage("say which session, or --owner")),
    };
    if !kill.yes && !is_confirmed(&what)? {
        return Err(Error::new(ErrorKind::Conflict, Origin::Director, "nothing was destroyed"));
    }
    let killed: Killed = caller.json(Method::DELETE, &format!("{path}?within_ms={within_ms}"))?;
    common.say(&json!({ "destroyed": killed.destroyed }), || match killed.destroyed {
        0 => "there was nothing to destroy\n".to_owned(),
        1 => "1 session was destroyed\n".to_owned(),
        destroyed => format!("{destroyed} sessions were destroyed\n"),
    })
}

/// Asks the person at the terminal.
fn is_confirmed(what: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("nobody is there to be asked: say --yes"));
    }
    let os = |why| Error::os(Origin::Director, "cannot ask", why);
    let (bold, end) = if is_coloured() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    eprint!("{bold}Destroy {what}, for ever?{end} [y/N] ");
    std::io::stderr().flush().map_err(os)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(os)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn parse_id(text: &str) -> Result<SessionId, String> {
    SessionId::parse(text).ok_or_else(|| {
        format!(
            "no session id: {} characters, the part of the cookie before the first \"-\"",
            SessionId::TEXT_LEN
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_fabric::ident::Epoch;
    use std::cell::Cell;

    fn page(next: Option<&str>, missing: &[&str], number: u32) -> SessionPage {
        SessionPage {
            sessions: Vec::new(),
            next: next.map(str::to_owned),
            missing: missing.iter().map(|what| (*what).to_owned()).collect(),
            epoch: Epoch { term: 1, number },
        }
    }

    fn all(pages: &[SessionPage]) -> SessionPage {
        let at = Cell::new(0);
        let whole = list_all(|cursor| {
            let page = pages.get(at.get()).expect("it goes on and on").clone();
            let before = at.get().checked_sub(1).and_then(|before| pages[before].next.as_deref());
            assert_eq!(cursor, before, "each page says where the next one begins");
            at.set(at.get() + 1);
            Ok(page)
        });
        whole.unwrap()
    }

    #[test]
    fn what_any_page_misses_the_whole_list_misses() {
        let whole = all(&[
            page(Some("n2.0"), &["n1"], 7),
            page(Some("n2.9"), &["n1", "n0"], 7),
            page(Some("n10.3"), &[], 7),
        ]);
        assert_eq!(whole.missing[..2], ["n1", "n0"], "once each");
        assert!(whole.missing[2].contains("after n2.9") && whole.missing.len() == 3, "names only rise");
        assert_eq!(whole.next.as_deref(), Some("n10.3"));
        let whole = all(&[page(Some("n1.5"), &[], 7), page(Some("n1.6"), &[], 7), page(None, &[], 7)]);
        assert_eq!((whole.missing.len(), whole.next), (0, None));
    }

    #[test]
    fn a_list_ends_where_it_does_not_go_on() {
        for stuck in ["n1.5", "n1.4", "n0.9", "nothing"] {
            let whole = all(&[page(Some("n1.5"), &[], 7), page(Some(stuck), &[], 7)]);
            assert!(whole.missing[0].contains("after n1.5"), "{stuck}: {:?}", whole.missing);
        }
    }

    #[test]
    fn pages_of_different_views_are_no_whole_list() {
        let whole = all(&[page(Some("n1.5"), &[], 7), page(Some("n2.1"), &[], 8), page(None, &[], 8)]);
        assert_eq!(whole.missing, ["sessions that moved when the cluster changed from epoch 1.7 to 1.8"]);
    }
}
