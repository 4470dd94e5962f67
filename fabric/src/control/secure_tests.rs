use super::*;
use crate::control::message::{FromServer, ToServer};
use crate::control::stream::{Peer, Stream};
use crate::control::testing::{Certificates, node, server};
use crate::ident::SessionId;
use std::net::TcpListener;
use std::time::Instant;

const WAIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(50);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Server s1 and node n1, connected.
fn pair(certificates: &Certificates) -> (Stream, Stream) {
    let (listener, address) = listener();
    let (server_keys, node_keys) = (certificates.keys(server("s1")), certificates.keys(node("n1")));
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            Stream::accepted_host(socket, &server_keys, WAIT).unwrap()
        });
        let connected = Stream::connect_host(address, &node_keys, &server("s1"), WAIT).unwrap();
        (accepted.join().unwrap(), connected)
    })
}

#[test]
fn both_sides_know_who_the_other_one_is() {
    let certificates = Certificates::of("demo");
    let (accepted, connected) = pair(&certificates);
    assert_eq!(*accepted.peer(), Peer::Member(node("n1")));
    assert_eq!(*connected.peer(), Peer::Member(server("s1")));
    assert_eq!(accepted.local_ip(), Some([127, 0, 0, 1].into()));
}

#[test]
fn messages_of_any_size_pass_both_ways() {
    let certificates = Certificates::of("demo");
    let (mut one, mut two) = pair(&certificates);
    for sessions in [0, 1, 1000, 100_000] {
        let message = ToServer::Unclaim { ids: vec![SessionId([7; 16]); sessions] };
        std::thread::scope(|scope| {
            scope.spawn(|| two.send(&message, None, WAIT).unwrap());
            assert!(one.recv::<ToServer>(WAIT).unwrap().0 == message, "{sessions}");
        });
        one.send(&FromServer::Gone(true), None, WAIT).unwrap();
        assert_eq!(two.recv::<FromServer>(WAIT).unwrap().0, FromServer::Gone(true));
    }
}

/// A receiver that sleeps holds nothing that the sender needs; and both directions are full at once.
#[test]
fn a_second_handle_sends_while_the_first_receives() {
    let certificates = Certificates::of("demo");
    let (mut one, mut two) = pair(&certificates);
    let (mut sender_one, mut sender_two) = (one.sender(), two.sender());
    let large = ToServer::Unclaim { ids: vec![SessionId([7; 16]); 20_000] };
    std::thread::scope(|scope| {
        for stream in [&mut one, &mut two] {
            scope.spawn(|| (0..10).for_each(|_| assert!(stream.recv::<ToServer>(WAIT).unwrap().0 == large)));
        }
        std::thread::sleep(SHORT);
        for sender in [&mut sender_one, &mut sender_two] {
            scope.spawn(|| (0..10).for_each(|_| sender.send(&large, WAIT).unwrap()));
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            sender_one.shutdown();
        });
        assert_eq!(one.recv::<FromServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    });
    assert_eq!(two.recv::<FromServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
}

#[test]
fn waits_are_bounded_and_lose_nothing() {
    let certificates = Certificates::of("demo");
    let (mut one, mut two) = pair(&certificates);
    let begin = Instant::now();
    assert_eq!(one.recv::<ToServer>(SHORT).unwrap_err().kind, ErrorKind::Timeout);
    assert!(begin.elapsed() >= SHORT);
    two.send(&FromServer::Done, None, WAIT).unwrap();
    assert_eq!(one.recv::<FromServer>(WAIT).unwrap().0, FromServer::Done);
    // Nobody reads: the buffers of both kernels fill up.
    let large = ToServer::Unclaim { ids: vec![SessionId([7; 16]); 700_000] };
    assert_eq!(two.send(&large, None, SHORT).unwrap_err().kind, ErrorKind::Timeout);
    let passed = tempfile::tempfile().unwrap();
    let error = one.send(&FromServer::Done, Some(passed.as_fd()), WAIT).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    drop(two);
    assert_eq!(one.recv::<ToServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable, "half a message");
}
