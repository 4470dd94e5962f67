//! Bounds of the director beside those of the fabric, with the relations between them asserted at compile
//! time.

use std::time::Duration;

/// Silence limits are stretched by this factor while a server carries out a view: sealing and indexing take
/// time, and its heartbeat answers wait behind them.
pub const VIEW_WORK_FACTOR: u32 = 3;
/// Silence periods since its last control word for which a member whose one-sided beats go on is not declared
/// dead.
pub const EVIDENCE_FACTOR: u32 = 3;
/// A server that answers heartbeats and yet does not carry out a view within this many silence periods is
/// declared down.
pub const VIEW_BEHIND_FACTOR: u32 = 10;
/// Silence periods after the start in which servers and nodes may report what the cluster was before.
pub const RECOVERY_FACTOR: u32 = 2;
/// Terms further ahead of the clock than this are not believed, s.
pub const TERM_AHEAD_MAX_S: u32 = 366 * 86_400;
/// Numbers of epochs from here on are not believed.
pub const NUMBER_MAX: u32 = u32::MAX - (1 << 20);
/// Dead incarnations of one server that are remembered, so that none re-enters (R6).
pub const BARRED_MAX: usize = 64;
/// Longest time that a drain waits for its sessions' adoption before it answers that it goes on.
pub const ADOPTION_WAIT: Duration = Duration::from_secs(30);
/// Pieces into which a heartbeat interval is cut for looking at deadlines.
pub const TICKS_PER_HEARTBEAT: u32 = 5;
/// Shortest interval between two looks at the deadlines.
pub const TICK_MIN: Duration = Duration::from_millis(1);
/// Heartbeats to one server that may wait for their answers. More than one, so that a lost packet is followed
/// by others, by which TCP notices the loss within a heartbeat instead of a retransmission timeout; and fewer
/// than four, so that the kernel calls the stream thin and does not retransmit ever more slowly.
pub const BEATS_OPEN_MAX: u32 = 3;
/// Events that are handled before the deadlines are looked at again.
pub const EVENTS_PER_TURN: usize = 1024;
/// Messages that may wait for one peer; more means that it does not read, and it is cut off.
pub const OUTBOX_MAX: usize = 256;
/// Events that may wait for the cluster's state machine.
pub const EVENTS_MAX: usize = 16 * 1024;

/// Longest message of a peer that has not shown who it is, bytes.
pub const HELLO_BYTES_MAX: usize = 4096;
/// Peers of one listener that have not shown who they are; the oldest makes room for the next. Their
/// handshakes run on the control thread, so as many take the time that others wait at most.
pub const LOBBY_PLACES: usize = 32;
/// Connections of one node at once: its steward's, and those of stewards before it that are not gone yet.
pub const CONNECTIONS_PER_NODE: usize = 64;
/// Tasks that the control thread runs before it looks for messages again.
pub const CONTROL_TURN: u32 = 8;
/// Shortest interval between two lines of the log about bad peers: who floods the port must not flood it,
/// too.
pub const COMPLAINT_PAUSE: Duration = Duration::from_secs(1);
/// Longest time for another host to take a control connection, or the silence limit if that is longer. A lost
/// first packet is sent again by TCP only after a second, so a new attempt comes sooner.
pub const CONTROL_CONNECT_WAIT: Duration = Duration::from_millis(300);
/// Silence periods without an acknowledgement after which a control connection to another host is given up,
/// and the least time for that.
pub const VANISHED_FACTOR: u32 = 4;
/// See [`VANISHED_FACTOR`].
pub const VANISHED_MIN: Duration = Duration::from_secs(1);
/// Pause before an idle connection to another host is probed, and between two probes.
pub const KEEPALIVE_PAUSE: Duration = Duration::from_secs(1);
/// A node's host that acknowledges nothing for so long on a connection with requests has lost that one,
/// whatever the view says.
pub const UPSTREAM_VANISHED: Duration = Duration::from_secs(10);

/// Errands of operators and applications to nodes that are under way or wait, all together.
pub const TRIPS_MAX: usize = 1024;
/// Requests to destroy sessions wherever they are that are under way at once.
pub const DOOMS_MAX: usize = 64;
/// Longest part of an errand's time that is kept for its answer's way.
pub const ERRAND_WAY: Duration = Duration::from_millis(250);
/// Longest time that an operator's request to nodes may be given.
pub const REQUEST_WAIT_MAX: Duration = Duration::from_secs(60);
/// Time that an operator's request to nodes gets if none is said.
pub const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// Connections of the applications of one node at once, beside its stewards'.
pub const APPLICATIONS_PER_NODE: usize = 32;

/// Longest message from a node, bytes.
pub const NODE_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest message from a server, bytes.
pub const SERVER_MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Numbers of one kind that a peer may report.
pub const COUNTERS_MAX: usize = 256;
/// Longest text about a link or a device that a peer may report, characters; what is longer is cut.
pub const DETAIL_CHARS_MAX: usize = 256;
/// Leases that a server may report.
pub const LEASES_MAX: usize = 64 * 1024;
/// Longest time to write one control message to a peer.
pub const SEND_WAIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect to a server.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Pause after a server that is there and is not the right one, or does not take the director for the right
/// one: that takes people to change.
pub const STRANGER_PAUSE: Duration = Duration::from_millis(500);

/// Pause after a connection to a server broke.
pub const LOOK_AGAIN_PAUSE: Duration = Duration::from_millis(2);

/// Longest time to connect to a node before there is a configuration.
pub const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// Longest wait for the head of an operator's request.
pub const ADMIN_HEAD_WAIT: Duration = Duration::from_secs(30);
/// More header lines than `headers_max` can allow: hyper's own bound, behind the one of the framing check.
pub const HEADERS_CEILING: usize = 1_001;
/// Longest method of a request, bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Empty lines that may come before a request.
pub const EMPTY_LINES_MAX: usize = 4;
/// Digits of a length or a chunk's size: fewer than overflow anybody's number.
pub const LENGTH_DIGITS_MAX: usize = 15;
/// Longest line with a chunk's size, bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Most bytes of the chunk extensions of one body.
pub const EXTENSION_BYTES_MAX: usize = 16 << 10;
/// Longest trailer section, bytes.
pub const TRAILER_BYTES_MAX: usize = 16 << 10;
/// Most bytes that are held behind a request for another protocol until it is answered.
pub const UPGRADE_HELD_BYTES: usize = 16 << 10;
/// A node that was told `Expect: 100-continue` and says nothing for so long gets the body all the same.
pub const CONTINUE_WAIT: Duration = Duration::from_secs(1);
/// Part of the hold after which tunnels of a node that hands its sessions over are cut; a drain gives up
/// after half of it.
pub const TUNNEL_HOLD_SHARE: u32 = 4;
/// Idle connections to a node are closed after this time: before the node does it, so that no request meets
/// the close.
pub const POOL_IDLE: Duration = Duration::from_secs(20);
/// Pause before a node that refused a connection is tried again in an unchanged view.
pub const REFUSED_PAUSE: Duration = Duration::from_millis(25);
/// Pause before a node that answered by an older view than the director's is asked again.
pub const BEHIND_PAUSE: Duration = Duration::from_millis(5);
/// Times that a request that may be repeated is sent in all.
pub const SENDS_MAX: u32 = 8;
/// Longest time that the rest of a request is waited for, and dropped, after it was answered.
pub const LINGER_MAX: Duration = Duration::from_secs(30);
/// A browser that sends nothing for so long then has stopped.
pub const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// Connections without a request stay open for so long after SIGTERM: what was on its way is answered, with
/// the word that the connection is closed.
pub const IDLE_WAIT: Duration = Duration::from_millis(250);
/// Pause between two looks whether the last request has ended.
pub const IDLE_LOOK: Duration = Duration::from_millis(20);
/// Requests under way get this long to end after that.
pub const STOP_WAIT: Duration = Duration::from_secs(5);
/// Requests that still wait for a node then are answered 503, and get this long for that.
pub const LAST_WAIT: Duration = Duration::from_millis(500);
/// Connections that may wait in the kernel to be accepted, as far as it allows: those that come while the
/// director restarts, if somebody holds its socket.
pub const BACKLOG: i32 = 4096;
/// Client connections at once, as a multiple of the requests.
pub const CONNECTIONS_PER_REQUEST: usize = 2;
/// Pause after the kernel refused an accepted connection (no more descriptors).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Longest time of a browser's TLS handshake.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// A browser's connection that has sent no request yet stays open for so long after the director began to
/// end: its handshake may just be over.
pub const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Requests of one HTTP/2 connection at once.
pub const STREAMS_MAX: u32 = 128;
/// Bytes of one request's body that may be under way before the node has taken any.
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for all requests of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Largest frame.
pub const FRAME_BYTES_MAX: u32 = 16 << 10;
/// Bytes of one answer that may wait for the browser to take them.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Streams that a browser has reset before they were looked at.
pub const RESETS_PENDING_MAX: usize = 32;
/// Streams that were reset for the browser's errors.
pub const RESETS_LOCAL_MAX: usize = 128;
/// Pause between two probes of a silent HTTP/2 connection.
pub const PING_PAUSE: Duration = Duration::from_secs(20);
/// Longest wait for the answer to a probe.
pub const PING_WAIT: Duration = Duration::from_secs(10);
/// Connections without a request stay open for so long after another director took over: nobody waits for
/// this one's end.
pub const HANDOVER_IDLE_WAIT: Duration = Duration::from_secs(5);
/// Requests under way get this long to end after another director took over.
pub const HANDOVER_WAIT: Duration = Duration::from_secs(600);
/// Longest time for a new director to say that it could take over.
pub const PREPARE_WAIT: Duration = Duration::from_secs(15);
/// Longest time from then on until it serves, beside that for finding out what the cluster is.
pub const TAKE_OVER_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks of a director that has handed over at what is still under way there, and of its
/// successor at whether it is behind.
pub const ELDER_LOOK: Duration = Duration::from_millis(100);
/// A director that has handed over and says nothing for so long while it is behind is ended: sessions of
/// dead nodes are not adopted while it may pass those nodes' answers on. Longer than a busy machine keeps a
/// process waiting, and far shorter than requests are held by default.
pub const ELDER_WAIT: Duration = Duration::from_secs(1);
/// Requests of operators that may wait for the daemon.
pub const ASKS_MAX: usize = 16;
/// Time for an answer of the admin API to go out before the control side ends.
pub const ANSWER_WAIT: Duration = Duration::from_millis(100);
/// Lines of the access log that may wait to be written; more are lost, and counted.
pub const LOG_LINES_MAX: usize = 32 << 10;
/// Bytes of the access log that are written at once.
pub const LOG_BUFFER_BYTES: usize = 64 << 10;
/// Longest text of a request in the access log, bytes: a longer one is cut.
pub const LOG_TEXT_BYTES_MAX: usize = 4096;

const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
const _: () = assert!(RESETS_PENDING_MAX < STREAMS_MAX as usize);
const _: () = assert!(VIEW_WORK_FACTOR < VIEW_BEHIND_FACTOR);
const _: () = assert!(EVIDENCE_FACTOR < VIEW_BEHIND_FACTOR);
const _: () = assert!(BEATS_OPEN_MAX > 1 && BEATS_OPEN_MAX < 4);
const _: () = assert!(LINGER_SILENCE.as_millis() < LINGER_MAX.as_millis());
const _: () = assert!(STOP_WAIT.as_secs() < ADOPTION_WAIT.as_secs());
const _: () = assert!(VANISHED_FACTOR > EVIDENCE_FACTOR);
const _: () = assert!(CONNECTIONS_PER_NODE * 2 < selvage_fabric::limits::CONNECTIONS_MAX);
const _: () = assert!(HELLO_BYTES_MAX < NODE_MESSAGE_BYTES_MAX);
const _: () = assert!(REFUSED_PAUSE.as_millis() < CONNECT_WAIT.as_millis());
const _: () = assert!(TUNNEL_HOLD_SHARE > 2);
const _: () = assert!(ELDER_LOOK.as_millis() * 4 < ELDER_WAIT.as_millis());
const _: () = assert!(ELDER_WAIT.as_millis() < SEND_WAIT.as_millis());
const _: () = assert!(CHUNK_LINE_BYTES_MAX < EXTENSION_BYTES_MAX);
