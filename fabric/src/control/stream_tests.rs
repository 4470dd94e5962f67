use super::*;
use crate::control::message::{FromServer, ToServer};
use crate::ident::SessionId;
use rustix::io::FdFlags;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

const WAIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(30);

fn pair() -> (Stream, Stream) {
    let (one, two) = UnixStream::pair().unwrap();
    (Stream::accepted(one).unwrap(), Stream::accepted(two).unwrap())
}

fn raw_pair() -> (Stream, UnixStream) {
    let (one, two) = UnixStream::pair().unwrap();
    (Stream::accepted(one).unwrap(), two)
}

fn node() -> Role {
    Role::Node { name: "n1".to_owned(), incarnation: Incarnation(5), pid: 0 }
}

#[test]
fn messages_and_descriptors_stay_together() {
    let (mut one, mut two) = pair();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"beside").unwrap();
    one.send(&FromServer::Done, None, WAIT).unwrap();
    one.send(&FromServer::Gone(true), Some(file.as_fd()), WAIT).unwrap();
    one.send(&FromServer::Gone(false), None, WAIT).unwrap();
    let (message, fd) = two.recv::<FromServer>(WAIT).unwrap();
    assert!(message == FromServer::Done && fd.is_none());
    let (message, fd) = two.recv::<FromServer>(WAIT).unwrap();
    assert_eq!(message, FromServer::Gone(true));
    let fd = fd.unwrap();
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
    let mut text = [0; 6];
    rustix::io::pread(&fd, &mut text, 0).unwrap();
    assert_eq!(&text, b"beside");
    let (message, fd) = two.recv::<FromServer>(WAIT).unwrap();
    assert!(message == FromServer::Gone(false) && fd.is_none());
}

#[test]
fn a_large_message_passes_both_ways_at_once() {
    let (mut one, mut two) = pair();
    let large = ToServer::Unclaim { ids: vec![SessionId([7; 16]); 300_000] };
    std::thread::scope(|scope| {
        scope.spawn(|| one.send(&large, None, WAIT).unwrap());
        assert!(two.recv::<ToServer>(WAIT).unwrap().0 == large);
    });
    two.send(&FromServer::Done, None, WAIT).unwrap();
    assert_eq!(one.recv::<FromServer>(WAIT).unwrap().0, FromServer::Done);
}

#[test]
fn a_timeout_in_the_middle_of_a_message_loses_nothing() {
    let (mut stream, mut raw) = raw_pair();
    let message = ToServer::Unclaim { ids: vec![SessionId([3; 16]); 100] };
    let mut frame = Vec::new();
    encode(&message, &mut frame).unwrap();
    for part in [&frame[..2], &frame[2..50], &frame[50..frame.len() - 1]] {
        raw.write_all(part).unwrap();
        assert_eq!(stream.recv::<ToServer>(SHORT).unwrap_err().kind, ErrorKind::Timeout);
    }
    raw.write_all(&frame[frame.len() - 1..]).unwrap();
    assert_eq!(stream.recv::<ToServer>(WAIT).unwrap().0, message);
}

#[test]
fn waits_are_bounded() {
    let (mut stream, raw) = raw_pair();
    let begin = Instant::now();
    assert_eq!(stream.recv::<ToServer>(SHORT).unwrap_err().kind, ErrorKind::Timeout);
    assert!(begin.elapsed() >= SHORT);
    let large = ToServer::Unclaim { ids: vec![SessionId([7; 16]); 300_000] };
    assert_eq!(stream.send(&large, None, SHORT).unwrap_err().kind, ErrorKind::Timeout);
    drop(raw);
    assert_eq!(stream.recv::<ToServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(stream.send(&large, None, WAIT).unwrap_err().kind, ErrorKind::Unreachable);
}

#[test]
fn hostile_bytes_are_a_named_error() {
    for bytes in [&[0_u8, 0, 0, 0][..], &[255, 255, 255, 255], &[1, 0, 0, 0, 250], &[3, 0, 0, 0, 0, 9, 9]] {
        let (mut stream, mut raw) = raw_pair();
        raw.write_all(bytes).unwrap();
        assert_eq!(stream.recv::<ToServer>(WAIT).unwrap_err().kind, ErrorKind::Corrupt, "{bytes:?}");
    }
}

/// A peer that announces much and sends little does not get the memory.
#[test]
fn memory_grows_with_what_has_arrived() {
    let (mut stream, mut raw) = raw_pair();
    raw.write_all(&(MESSAGE_BYTES_MAX as u32).to_le_bytes()).unwrap();
    raw.write_all(&[0; 10]).unwrap();
    assert_eq!(stream.recv::<ToServer>(SHORT).unwrap_err().kind, ErrorKind::Timeout);
    assert!(stream.frame.capacity() <= 2 * BODY_STEP_BYTES, "{}", stream.frame.capacity());
}

#[test]
fn hello_agrees_and_tells_who_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = Stream::accepted(listener.accept().unwrap().0).unwrap();
            let own = |_: &Hello, peer: &Peer| {
                let (uid, pid) = (rustix::process::getuid().as_raw(), std::process::id());
                assert_eq!(*peer, Peer::User { uid, pid });
                Ok(())
            };
            let (hello, protocol) = stream.server_hello("c", Incarnation(9), own, WAIT).unwrap();
            assert_eq!((hello.role, protocol), (node(), PROTOCOL_VERSION));
        });
        let mut stream = Stream::connect(&path, WAIT).unwrap();
        assert_eq!(stream.client_hello("c", node(), WAIT).unwrap(), (PROTOCOL_VERSION, Incarnation(9)));
    });
}

fn refused_hello(
    cluster: &str,
    authorise: impl FnOnce(&Hello, &Peer) -> std::result::Result<(), Refusal> + Send,
) -> Error {
    let (mut one, mut two) = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| two.server_hello("c", Incarnation(9), authorise, WAIT).unwrap_err());
        one.client_hello(cluster, node(), WAIT).unwrap_err()
    })
}

#[test]
fn hello_refuses_with_a_reason() {
    let error = refused_hello("other", |_, _| Ok(()));
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.context.contains("other") && error.context.contains("\"c\""), "{error}");
    let denied = |_: &Hello, _: &Peer| Err(Refusal::Denied("user 7 is none of the node's".to_owned()));
    let error = refused_hello("c", denied);
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.context.contains("user 7"), "{error}");
    assert_eq!(refused_hello("c", |_, _| Err(Refusal::Over)).kind, ErrorKind::OwnershipLost);
}

#[test]
fn hello_names_both_ranges_of_versions() {
    let hello = Hello { protocol_min: 40, protocol_max: 41, cluster: "c".to_owned(), role: node() };
    let reply = answer_hello(&hello, "c", Incarnation(9), |_| Ok(()));
    let HelloReply::Refused(refusal) = reply else { panic!("{reply:?}") };
    let error = refusal_error(&refusal);
    assert_eq!(error.kind, ErrorKind::VersionMismatch);
    assert!(error.context.contains("40 to 41"), "{error}");
    // A neighbour that speaks this version and the next is welcome, with this one.
    let next = Hello { protocol_min: PROTOCOL_VERSION, protocol_max: PROTOCOL_VERSION + 1, ..hello };
    assert_eq!(
        answer_hello(&next, "c", Incarnation(9), |_| Ok(())),
        HelloReply::Welcome { protocol: PROTOCOL_VERSION, incarnation: Incarnation(9) }
    );
}

#[test]
fn a_hello_is_small() {
    let (mut stream, mut raw) = raw_pair();
    raw.write_all(&(HELLO_BYTES_MAX as u32 + 1).to_le_bytes()).unwrap();
    let error = stream.server_hello("c", Incarnation(9), |_, _| Ok(()), WAIT).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
}

#[test]
fn nobody_listening_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.sock");
    assert_eq!(Stream::connect(&path, WAIT).map(|_| ()).unwrap_err().kind, ErrorKind::Unreachable);
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(Stream::connect(&path, WAIT).map(|_| ()).unwrap_err().kind, ErrorKind::Unreachable);
    let long = folder.path().join("x".repeat(200));
    assert_eq!(Stream::connect(&long, WAIT).map(|_| ()).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn a_second_handle_sends_and_shutdown_wakes_the_receiver() {
    let (one, mut two) = pair();
    let mut sender = one.sender();
    sender.send(&FromServer::Done, WAIT).unwrap();
    assert_eq!(two.recv::<FromServer>(WAIT).unwrap().0, FromServer::Done);
    let mut one = one;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            sender.shutdown();
        });
        assert_eq!(one.recv::<FromServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    });
    // What is sent to a peer that has gone is an error, not a signal.
    assert_eq!(two.send(&FromServer::Done, None, WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    let (_, mut raw) = raw_pair();
    assert_eq!(raw.read(&mut [0; 1]).unwrap(), 0);
}
