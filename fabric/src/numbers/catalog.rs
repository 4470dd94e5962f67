//! The names of everything that is counted and timed.

/// An enum whose variants have a name and a help text, in the order in which reports have their numbers.
macro_rules! catalog {
    ($(#[$doc:meta])* $catalog:ident { $($variant:ident, $name:literal, $help:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $catalog {
            $(#[doc = $help] $variant,)+
        }

        impl $catalog {
            /// All of them, in the order of reports.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name, without prefix, unit and suffix.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// What it means: a sentence without its full stop.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => $help),+
                }
            }
        }
    };
}

catalog! {
    /// What the processes of a node count.
    NodeCounter {
        Commits, "commits", "Commits that changed a session";
        ShortCommits, "short_commits", "Commits that were answered with fewer copies than configured";
        Touches, "touches", "Times that a session's later expiry was written, without its archive";
        Creates, "created_sessions", "Sessions that were created, new ids of regenerated ones included";
        Adoptions, "adopted_sessions", "Sessions that were taken over from a node that is gone";
        Destroys, "destroyed_sessions", "Sessions that were destroyed by their users";
        Expiries, "expired_sessions", "Sessions whose time was over";
        Recopies, "recopies", "Pushes of the background that gave sessions the copies that they lacked";
        BadCopies, "bad_copies", "Fetched copies of sessions that failed a check";
        LeaseFull, "lease_full", "Pushes that found no room in a lease (nothing is ever evicted)";
        Quarantines, "quarantines_released", "Slots of leases that were in doubt and are usable again";
        Unprotected, "sessions_left_short",
            "Times that a session was left with fewer copies than it could have";
        Regenerations, "regenerated_sessions", "Sessions that were given a new id";
        PayloadPushes, "payload_pushes", "Pushes of a session's archive to a server, by whatever cause";
        CellPushes, "cell_pushes", "Pushes of a later expiry alone to a server";
        Claims, "claims", "Sessions that were claimed at the servers, each once per attempt";
        LinkLosses, "link_losses", "Links to servers that were lost while they were in use";
        ProcessDeaths, "process_deaths", "Processes of the node that ended without leaving";
    }
}

catalog! {
    /// What the processes of a node time.
    NodeTime {
        Commit, "commit",
            "Time of a commit from its call to its answer, pushes included (of one commit in 16)";
        Fetch, "fetch",
            "Time to fetch a request's session whose host is gone, waits for its sealing included";
        LockWait, "lock_wait", "Time that an open waited for a session's lock, if another request had it";
    }
}

catalog! {
    /// What a session server counts.
    ServerCounter {
        CellsBad, "bad_cells", "Cells of sealed leases that failed a check";
        ClaimsDisputed, "claims_disputed", "Claims that two live nodes said they had";
        ClaimsElsewhere, "claims_elsewhere", "Claims of sessions that another live node has";
        ClaimsGranted, "claims_granted", "Claims that were granted";
        Destroyed, "destroyed_sessions", "Sessions that nodes declared destroyed or expired";
        FetchErrors, "fetch_errors", "Sessions that could not be given to the node that fetched them";
        Fetched, "fetched_sessions", "Sessions that were given to nodes that fetched them";
        LeasesFull, "leases_refused", "Leases that were refused for want of memory";
        LeasesMade, "leases_made", "Leases that were made";
        LeasesReleased, "leases_released", "Leases whose memory was given back";
        LeasesSealed, "leases_sealed", "Leases that were sealed and indexed";
        PeersBad, "bad_peers", "Peers that were refused, or cut off for what they sent";
        RdmaConnects, "rdma_connects", "RDMA links that were made";
        RdmaLinksStuck, "rdma_stuck", "RDMA links that their device did not destroy when it was told to";
        RdmaRefused, "rdma_refused", "RDMA links that were refused or could not be made";
        RefusedBad, "refused_bad", "Requests that made no sense";
        RefusedDenied, "refused_denied", "Requests that the asker may not make";
        RefusedOldTerm, "refused_old_term", "Views and requests that were older than the newest seen";
        Settled, "settled_sessions", "Sealed sessions that are safe with their new hosts";
        StagedBytes, "staged_bytes", "Bytes of sessions that were laid ready to be read over RDMA";
        Swept, "swept_sessions", "Sealed sessions that were dropped because their time was over";
        Views, "views", "Views that were accepted";
    }
}

catalog! {
    /// What a session server times.
    ServerTime {
        Seal, "seal", "Time to take a lease away from all its writers and index it";
        Index, "index", "Time to scan and index a sealed lease, which is a part of sealing it";
        Fetch, "fetch", "Time to read a batch of sessions out of sealed leases";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The order is what reports go by, so each must stand where its number says.
    #[test]
    fn catalogues_are_in_order_and_have_good_names() {
        macro_rules! check {
            ($($catalog:ident),+) => {$({
                let names: BTreeSet<&str> = $catalog::ALL.iter().map(|it| it.name()).collect();
                assert_eq!(names.len(), $catalog::ALL.len(), "a name twice in {}", stringify!($catalog));
                for (at, it) in $catalog::ALL.iter().enumerate() {
                    assert_eq!(*it as usize, at);
                    let plain = |letter: u8| letter.is_ascii_lowercase() || letter == b'_';
                    assert!(it.name().bytes().all(plain), "{it:?}");
                    assert!(!it.help().is_empty() && !it.help().ends_with('.'), "{it:?}");
                }
            })+};
        }
        check!(NodeCounter, NodeTime, ServerCounter, ServerTime);
    }
}
