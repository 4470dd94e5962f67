//! The choice of transport for a pair of node and server: automatic, or forced by the configuration.

use super::TransportKind;
use crate::error::{Error, ErrorKind, Origin, Result};

/// What is known about the way between a node and a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Both run on one host: the server's Unix socket was reached, and it passed a memfd.
    pub same_host: bool,
}

/// Chooses: shared memory on one host. `forced` must then be possible.
///
/// # Errors
/// `Unreachable`, saying why, if no transport reaches the server or the forced one does not.
pub fn choose(reach: Reach, forced: Option<TransportKind>) -> Result<TransportKind> {
    let refuse = |what: String| Err(Error::new(ErrorKind::Unreachable, Origin::Transport, what));
    match (forced, reach.same_host) {
        (None | Some(TransportKind::Shm), true) => Ok(TransportKind::Shm),
        (None, false) => refuse("the server is on another host, and no transport reaches it there".into()),
        (Some(kind), same_host) => {
            let place = if same_host { "on this host" } else { "on another host" };
            refuse(format!("transport {kind:?} is forced, but it does not reach a server {place}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_means_shared_memory() {
        let (here, there) = (Reach { same_host: true }, Reach { same_host: false });
        assert_eq!(choose(here, None).unwrap(), TransportKind::Shm);
        assert_eq!(choose(here, Some(TransportKind::Shm)).unwrap(), TransportKind::Shm);
        for (reach, forced) in
            [(there, None), (there, Some(TransportKind::Shm)), (here, Some(TransportKind::Sim))]
        {
            assert_eq!(choose(reach, forced).unwrap_err().kind, ErrorKind::Unreachable);
        }
    }
}
