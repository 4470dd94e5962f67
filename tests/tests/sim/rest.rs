//! What must be true when all faults are mended and nothing happens any more.

use crate::browser;
use crate::director;
use crate::request::Request;
use crate::schedule;
use crate::world::world;
use selvage_fabric::node::OpenMode;

/// The view is whole: everyone is up and nobody is dead.
pub fn is_settled() -> bool {
    world(|world| {
        let view = &world.director.view;
        view.nodes.len() == world.nodes.len()
            && view.servers.len() == world.servers.len()
            && view.dead.is_empty()
    })
}

/// What the director tells people is what is.
pub fn check_status() {
    let Some(status) = director::status() else { return };
    world(|world| world.trace(format!("{status:?}")));
}

/// Reads every session that a browser knows, in a fiber.
pub fn read_all() {
    let pid = world(|world| world.new_process(director::HOST));
    schedule::spawn(pid, move || {
        for cookie in browser::cookies() {
            let request = Request::Read { mode: OpenMode::Exclusive };
            if !browser::ask(&request, Some(cookie)) {
                world(|world| world.fail("served at rest", "a request failed though nothing is wrong"));
            }
        }
        world(|world| world.cover("state: all read at rest"));
    });
}
