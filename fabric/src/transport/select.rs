//! The choice of transport for a pair of node and server: automatic, or forced by the configuration. Pure.

use super::TransportKind;
use crate::error::{Error, ErrorKind, Origin, Result};

/// What is known about the way between a process of a node and a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Both run on one host: the server's Unix socket was reached, and it has the life that the view names.
    pub same_host: bool,
    /// Why this process has no RDMA, if it has none. Whether the server has, it says when it is asked for a
    /// connection.
    pub no_rdma: Option<String>,
}

/// Chooses: shared memory on one host, else RDMA. `forced` must be possible; RDMA can be forced on one host,
/// too.
///
/// # Errors
/// `Unreachable`, saying why, if no transport reaches the server or the forced one does not.
pub fn choose(reach: &Reach, forced: Option<TransportKind>) -> Result<TransportKind> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Unreachable, Origin::Transport, what));
    match (forced, reach.same_host, &reach.no_rdma) {
        (None | Some(TransportKind::Shm), true, _) => Ok(TransportKind::Shm),
        (None, false, None) | (Some(TransportKind::Verbs), _, None) => Ok(TransportKind::Verbs),
        (None, false, Some(why)) => {
            refuse(format!("the server is on another host, and only RDMA would reach it there: {why}"))
        }
        (Some(TransportKind::Verbs), _, Some(why)) => {
            refuse(format!("transport = \"verbs\" is set, but {why}"))
        }
        (Some(TransportKind::Shm), false, _) => {
            refuse("transport = \"shm\" is set, but the server is on another host".into())
        }
        (Some(TransportKind::Sim), ..) => refuse("the simulation reaches no server".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransportKind::{Shm, Sim, Verbs};

    fn reach(same_host: bool, no_rdma: Option<&str>) -> Reach {
        Reach { same_host, no_rdma: no_rdma.map(str::to_owned) }
    }

    #[test]
    fn one_host_means_shared_memory_and_two_mean_rdma() {
        let none = Some("libibverbs.so.1 is not installed");
        for (reach, forced, chosen) in [
            (reach(true, None), None, Shm),
            (reach(true, none), None, Shm),
            (reach(true, none), Some(Shm), Shm),
            (reach(false, None), None, Verbs),
            (reach(false, None), Some(Verbs), Verbs),
            (reach(true, None), Some(Verbs), Verbs),
        ] {
            assert_eq!(choose(&reach, forced).unwrap(), chosen, "{reach:?} {forced:?}");
        }
    }

    #[test]
    fn what_is_not_possible_is_said() {
        let none = Some("libibverbs.so.1 is not installed");
        for (reach, forced, part) in [
            (reach(false, none), None, "libibverbs.so.1"),
            (reach(false, none), Some(Verbs), "libibverbs.so.1"),
            (reach(true, none), Some(Verbs), "libibverbs.so.1"),
            (reach(false, None), Some(Shm), "another host"),
            (reach(true, None), Some(Sim), "simulation"),
        ] {
            let error = choose(&reach, forced).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unreachable);
            assert!(error.context.contains(part), "{error}");
        }
    }
}
