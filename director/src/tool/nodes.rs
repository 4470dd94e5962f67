//! `selvage drain`, `undrain`, `maintenance`, `ready` and `weight`.

use super::Common;
use super::call::Caller;
use clap::Args;
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use selvage_fabric::error::Result;
use serde_json::Value;

/// Which node.
#[derive(Args, Debug)]
pub(super) struct Node {
    /// The node's name.
    node: String,
}

/// A node's weight.
#[derive(Args, Debug)]
pub(super) struct Weight {
    #[command(flatten)]
    node: Node,
    /// 0: no new sessions; "default": what is configured.
    weight: String,
}

/// Changes a node's state.
pub(super) fn change(common: &Common, node: &Node, what: &str) -> Result<String> {
    post(common, node, what)
}

/// Changes a node's weight.
pub(super) fn weigh(common: &Common, weight: &Weight) -> Result<String> {
    post(common, &weight.node, &format!("weight?weight={}", encode(&weight.weight)))
}

fn post(common: &Common, node: &Node, what: &str) -> Result<String> {
    let path = format!("/admin/nodes/{}/{what}", encode(&node.node));
    let answer: Value = Caller::new(common.url()?)?.json(Method::POST, &path)?;
    common.say(&answer, || format!("node {}: {}\n", node.node, answer["result"].as_str().unwrap_or("done")))
}

/// For a path or a query.
pub(super) fn encode(text: &str) -> String {
    const SPECIAL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, SPECIAL).to_string()
}
