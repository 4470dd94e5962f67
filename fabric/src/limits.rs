//! Every bound and knob of the fabric, with the relations between them asserted at compile time.

use std::time::Duration;

/// Unit of block offsets and the smallest block, bytes.
pub const BLOCK_UNIT_BYTES: usize = 256;
/// Default and smallest chunk: the piece of a heap that is given to one size class, bytes.
pub const CHUNK_BYTES_MIN: usize = 1 << 20;
/// Largest archive that can be configured, bytes.
pub const ARCHIVE_BYTES_MAX: usize = 16 << 20;
/// Default for the largest archive, bytes.
pub const ARCHIVE_BYTES_DEFAULT: usize = 1 << 20;
/// Most attributes of one session.
pub const ATTRIBUTES_MAX: usize = 1024;
/// Longest attribute name, bytes.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 128;
/// Longest owner (user) name of a session, bytes.
pub const OWNER_BYTES_MAX: usize = 128;
/// Longest node or server name, bytes; names are `[a-z0-9-]+`.
pub const NAME_BYTES_MAX: usize = 32;
/// Most slots of a lease, and so most sessions of a node.
pub const SLOTS_MAX: u32 = 1 << 26;
/// Most requests that a director may be told to have under way at once.
pub const REQUESTS_MAX: usize = 1 << 20;
/// Most copies that a session can have at rest.
pub const COPIES_MAX: usize = 2;
/// Places a session can occupy at one instant: its copies, and old ones on their way out.
pub const PLACES_MAX: usize = 4;
/// Most session servers of a cluster.
pub const SERVERS_MAX: usize = 64;
/// Most nodes of a cluster.
pub const NODES_MAX: usize = 1024;
/// Most processes attached to one node at once.
pub const PROCESSES_MAX: usize = 256;
/// Open sessions (waiting, locked or pinned) of one process at once.
pub const HOLDS_PER_PROCESS: usize = 4096;
/// Open sessions of all processes of a node at once.
pub const HOLDS_MAX: usize = 65_536;
/// Requests that may wait for one session's lock; the next one is refused as busy.
pub const WAITERS_MAX: u32 = 64;
/// Longest control message, bytes. A batch is cut below it.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes of archives that one batch of fetched sessions aims at.
pub const FETCH_BATCH_BYTES: usize = 1 << 20;
/// Sessions named in one batch message.
pub const BATCH_SESSIONS_MAX: usize = 4096;
/// Errands of the director that a node does at once; more are refused.
pub const ERRANDS_MAX: usize = 8;
/// Longest time that a node spends on one errand.
pub const ERRAND_WAIT: Duration = Duration::from_secs(30);
/// Most sessions in one piece of a list.
pub const LIST_SESSIONS_MAX: u32 = 256;
/// Most entries of the cache that are looked at for one piece of a list.
pub const LIST_ENTRIES_MAX: u32 = 1 << 14;
/// Longest beginning of an attribute's value that is shown to operators, bytes.
pub const SHOWN_VALUE_BYTES_MAX: usize = 16 << 10;
/// Most bytes of attributes' values in one answer.
pub const SHOWN_BYTES_MAX: usize = 256 << 10;
/// Control connections that a server or director accepts at once.
pub const CONNECTIONS_MAX: usize = 4096;
/// Bytes that an RDMA work request must be able to carry in itself: a cell.
pub const RDMA_INLINE_BYTES: u32 = 64;

/// Default interval of heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(50);
/// Default life of a mandate, counted from the sending of the heartbeat that it answers (R8).
pub const MANDATE: Duration = Duration::from_millis(250);
/// Default silence after which a node or server is declared down.
pub const SILENCE: Duration = Duration::from_millis(300);
/// Default time that a request may wait for a lock, a fetch or a view.
pub const WAIT: Duration = Duration::from_secs(5);
/// Default time that one request may hold a session's lock before it is revoked.
pub const LOCK_HOLD: Duration = Duration::from_secs(60);
/// How often a waiter looks whether the holder of a lock still lives.
pub const LIVENESS_POLL: Duration = Duration::from_millis(10);
/// Longest wait for one of the cache's shard locks while its holder lives; they are held for less than a
/// microsecond unless the holder is stopped.
pub const SHARD_WAIT: Duration = Duration::from_secs(2);
/// How often a process without the steward's role tries to take it.
pub const STEWARD_POLL: Duration = Duration::from_millis(20);
/// Default idle lifetime of a session.
pub const IDLE: Duration = Duration::from_secs(1800);
/// Default absolute lifetime of a session.
pub const ABSOLUTE: Duration = Duration::from_secs(12 * 3600);
/// Default share of the idle lifetime by which the expiry must move before a touch is pushed.
pub const TOUCH_SHARE: f64 = 0.1;
/// Clock skew that a server allows before it sweeps an expired session (R14).
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// Longest time that the old id of a session with a new one can be configured to be readable.
pub const REGENERATE_GRACE_MAX: Duration = Duration::from_secs(60);
/// A control peer must finish its hello within this time.
pub const HELLO_WAIT: Duration = Duration::from_secs(2);

/// Default local ack timeout of RDMA connections, as an exponent: 4.096 us x 2^14 = 67 ms.
pub const RDMA_ACK_TIMEOUT: u8 = 14;
/// Default retries of RDMA connections. Who is dead is decided by heartbeats, not by these.
pub const RDMA_RETRY_COUNT: u8 = 6;
/// Default pushes of one process that can be under way at one server.
pub const RDMA_QUEUE_DEPTH: u32 = 128;

/// How long a push may wait for a place in a full send queue before the link refuses it.
pub const RDMA_FULL_WAIT: Duration = Duration::from_millis(1);
/// How long the queue pairs of a sealed lease answer, so that a node that still writes is refused instead of
/// left to its retries.
pub const RDMA_NOTICE: Duration = Duration::from_millis(5);
/// Bytes of one read of a bulk fetch.
pub const RDMA_BULK_BYTES: usize = 256 << 10;
/// Reads of a bulk fetch that are under way at once on one link.
pub const RDMA_BULK_READS: u32 = 8;
/// Time without any answer after which a bulk fetch is given up.
pub const RDMA_BULK_WAIT: Duration = Duration::from_secs(5);

/// Default most sessions of a node.
pub const SESSIONS_DEFAULT: u32 = 65_536;
/// Default heap of a node's cache, bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 128 << 20;

/// Default weight of a node for new sessions, and the largest.
pub const NODE_WEIGHT: u32 = 100;
/// See [`NODE_WEIGHT`].
pub const NODE_WEIGHT_MAX: u32 = 1000;
/// Times that a director re-sends a request that was answered "elsewhere".
pub const ELSEWHERE_MAX: u32 = 3;
/// Default most bytes of a request body that the director keeps so that it can send it again.
pub const RESEND_BODY_BYTES: usize = 64 << 10;

const _: () =
    assert!(MANDATE.as_millis() < SILENCE.as_millis(), "R8: a mandate ends before its node is declared dead");
const _: () = assert!(HEARTBEAT.as_millis() * 3 <= MANDATE.as_millis(), "two heartbeats may be lost");
const _: () = assert!(
    STEWARD_POLL.as_millis() * 3 < MANDATE.as_millis(),
    "a new steward beats before the mandate ends"
);
const _: () = assert!(RDMA_RETRY_COUNT < 7, "7 retries mean for ever");
const _: () = assert!(COPIES_MAX * 2 <= PLACES_MAX, "all copies can move at once");
const _: () = assert!(CHUNK_BYTES_MIN.is_multiple_of(BLOCK_UNIT_BYTES));
const _: () = assert!(
    ARCHIVE_BYTES_DEFAULT <= ARCHIVE_BYTES_MAX && FETCH_BATCH_BYTES + ARCHIVE_BYTES_MAX < MESSAGE_BYTES_MAX
);
