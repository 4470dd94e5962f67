//! `selvage drain`, `undrain`, `maintenance`, `ready` and `weight`.

use super::Common;
use super::call::Caller;
use super::table::plain;
use clap::Args;
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use serde_json::Value;
use std::time::Duration;

/// Which node.
#[derive(Args, Debug)]
pub(super) struct Node {
    /// The node's name.
    node: String,
}

/// A node that is to be taken out.
#[derive(Args, Debug)]
pub(super) struct Leaving {
    #[command(flatten)]
    node: Node,
    /// Wait so many seconds for the hand-over; the director goes on with it after that, too. It takes one and
    /// a half times `hold_ms`, and 30 s for the adoption, at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3600))]
    within: u32,
}

/// A node's weight.
#[derive(Args, Debug)]
pub(super) struct Weight {
    #[command(flatten)]
    node: Node,
    /// 0: no new sessions; "default": what is configured.
    weight: String,
}

/// Takes a node out, and waits for the hand-over of its sessions.
pub(super) fn take_out(common: &Common, leaving: &Leaving, what: &str) -> Result<String> {
    let caller = Caller::new(common.url()?)?.patient(Duration::from_secs(leaving.within.into()));
    post(common, &caller, &leaving.node, what).map_err(|error| match error.kind {
        ErrorKind::Timeout => {
            let text = format!("{error}; the hand-over goes on there: see selvage status");
            Error::new(ErrorKind::Timeout, Origin::Director, text)
        }
        _ => error,
    })
}

/// Takes a node back.
pub(super) fn take_back(common: &Common, node: &Node, what: &str) -> Result<String> {
    post(common, &Caller::new(common.url()?)?, node, what)
}

/// Changes a node's weight.
pub(super) fn weigh(common: &Common, weight: &Weight) -> Result<String> {
    let what = format!("weight?weight={}", encode(&weight.weight));
    post(common, &Caller::new(common.url()?)?, &weight.node, &what)
}

fn post(common: &Common, caller: &Caller, node: &Node, what: &str) -> Result<String> {
    let path = format!("/admin/nodes/{}/{what}", encode(&node.node));
    let answer: Value = caller.json(Method::POST, &path)?;
    common.say(&answer, || {
        format!("node {}: {}\n", plain(&node.node), plain(answer["result"].as_str().unwrap_or("done")))
    })
}

/// For a path or a query.
pub(super) fn encode(text: &str) -> String {
    const SPECIAL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, SPECIAL).to_string()
}
