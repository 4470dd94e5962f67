//! The nginx module in the packaged nginx, with two workers per node, against a real cluster.

#[path = "../support/mod.rs"]
mod support;

mod api;
mod app;
mod crowd;
mod directives;
mod edges;
mod held;
mod late;
mod life;
mod memory;
mod mistakes;
mod php;
mod upstream;
mod variables;
mod web;
