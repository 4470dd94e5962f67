//! The admin API's part about sessions:
//!
//! | request | answer |
//! |---|---|
//! | `GET /admin/sessions?owner=&node=&limit=&cursor=` | a page of the list |
//! | `GET /admin/sessions/ID?values=true` | one session, its attributes with or without their values |
//! | `DELETE /admin/sessions/ID` | `{"destroyed": 0 or 1}` |
//! | `DELETE /admin/owners/NAME/sessions` | `{"destroyed": N}`: none of the owner's sessions is left |
//!
//! All take `within_ms`. What is not certain is 503 and may be asked again; a session that does not exist
//! is 404 to `GET` and 0 to `DELETE`. Names are percent-encoded. Web pages are refused, also those whose
//! own name was made to stand for this host: `Host` must be an address or `localhost`.

use super::{Admin, Answer, answer, error, is_of_page, of_page, stopping};
use crate::limits::{REQUEST_WAIT, REQUEST_WAIT_MAX};
use crate::sessions::{self, Failure, PAGE_DEFAULT, PAGE_MAX, Wanted};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use selvage_fabric::control::message::Doomed;
use selvage_fabric::ident::SessionId;
use selvage_fabric::limits::OWNER_BYTES_MAX;
use serde::Serialize;
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

/// What a request's query says.
#[derive(Default)]
struct Query {
    owner: Option<String>,
    node: Option<String>,
    limit: Option<u32>,
    cursor: Option<(String, u32)>,
    values: bool,
    within: Option<Duration>,
}

impl Admin {
    /// Serves what is about sessions; `None` for everything else.
    pub(super) async fn sessions(&self, parts: &[&str], request: &Request<Incoming>) -> Option<Answer> {
        let allowed = match parts {
            ["admin", "sessions"] => "GET",
            ["admin", "sessions", _] => "GET, DELETE",
            ["admin", "owners", _, "sessions"] => "DELETE",
            _ => return None,
        };
        if !allowed.split(", ").any(|method| method == request.method().as_str()) {
            let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            return Some(refused);
        }
        if is_of_page(request) || !is_addressed_by_number(request) {
            return Some(of_page());
        }
        let served = async {
            let query = Query::parse(request.uri().query().unwrap_or_default())?;
            let within = query.within.unwrap_or(REQUEST_WAIT);
            Ok(match parts {
                ["admin", "sessions"] => self.list(query, within).await?,
                ["admin", "sessions", id] if request.method() == Method::GET => {
                    let shown = sessions::show(&self.handle, parse_id(id)?, query.values, within).await;
                    shown.map_or_else(failed, |picture| page(&picture))
                }
                ["admin", "sessions", id] => self.destroy(Doomed::Session(parse_id(id)?), within).await,
                ["admin", "owners", name, "sessions"] => {
                    self.destroy(Doomed::Owner(parse_owner(name)?), within).await
                }
                _ => return Err("no such page".to_owned()),
            })
        };
        Some(served.await.unwrap_or_else(|why: String| error(StatusCode::BAD_REQUEST, &why)))
    }

    async fn list(&self, query: Query, within: Duration) -> Result<Answer, String> {
        if let Some(node) = &query.node
            && self.config.node(node).is_none()
        {
            return Ok(error(StatusCode::NOT_FOUND, &format!("no node \"{node}\" is configured")));
        }
        let limit = query.limit.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(format!("limit is {limit}; it must be 1 to {PAGE_MAX}"));
        }
        let wanted = Wanted { owner: query.owner, node: query.node, limit, cursor: query.cursor };
        Ok(sessions::list(&self.handle, &wanted, within).await.map_or_else(failed, |list| page(&list)))
    }

    async fn destroy(&self, doomed: Doomed, within: Duration) -> Answer {
        match sessions::destroy(&self.handle, doomed, within).await {
            Ok(destroyed) => answer(StatusCode::OK, &json!({ "destroyed": destroyed })),
            Err(failure) => failed(failure),
        }
    }
}

/// Whether the request goes to an address or to `localhost`, and not to a name: a foreign page can make a
/// name of its own stand for this host, and then read what is answered.
fn is_addressed_by_number(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    host.and_then(|host| host.parse::<Authority>().ok()).is_some_and(|authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok()
    })
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let number = || value.parse().map_err(|_| format!("{name} is \"{value}\", which is no number"));
            match &*name {
                "owner" => query.owner = Some(value.into_owned()),
                "node" => query.node = Some(value.into_owned()),
                "limit" => query.limit = Some(number()?),
                "within_ms" => query.within = Some(parse_within(number()?)?),
                "values" if matches!(&*value, "true" | "false") => query.values = value == "true",
                "cursor" => {
                    let cursor = Wanted::parse_cursor(&value);
                    query.cursor = Some(cursor.ok_or_else(|| format!("\"{value}\" is no cursor"))?);
                }
                _ => return Err(format!("\"{name}={value}\" is not known here")),
            }
        }
        Ok(query)
    }
}

/// A shorter time than was asked for would be a surprise to who waits.
fn parse_within(within_ms: u32) -> Result<Duration, String> {
    let within = Duration::from_millis(within_ms.into());
    match within <= REQUEST_WAIT_MAX {
        true => Ok(within),
        false => Err(format!("within_ms is {within_ms}; it may be {} at most", REQUEST_WAIT_MAX.as_millis())),
    }
}

fn parse_id(text: &str) -> Result<SessionId, String> {
    SessionId::parse(text).ok_or_else(|| {
        format!(
            "\"{text}\" is no session id: {} characters, the first part of the cookie",
            SessionId::TEXT_LEN
        )
    })
}

fn parse_owner(text: &str) -> Result<String, String> {
    let owner = percent_decode_str(text).decode_utf8().map_err(|_| "the owner is not UTF-8".to_owned())?;
    match owner.len() {
        1..=OWNER_BYTES_MAX => Ok(owner.into_owned()),
        bytes => Err(format!("the owner has {bytes} bytes; it must have 1 to {OWNER_BYTES_MAX}")),
    }
}

fn page(value: &impl Serialize) -> Answer {
    match serde_json::to_value(value) {
        Ok(value) => answer(StatusCode::OK, &value),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
    }
}

fn failed(failure: Failure) -> Answer {
    match failure {
        Failure::Stopping => stopping(),
        Failure::Missing => error(StatusCode::NOT_FOUND, "no node hosts this session"),
        Failure::Uncertain(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}
