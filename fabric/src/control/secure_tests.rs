use super::*;
use crate::control::ca::{Authority, Validity};
use crate::control::message::{FromServer, ToServer};
use crate::control::message::{Hello, HelloReply, Role};
use crate::control::stream::{Peer, Stream};
use crate::control::testing::{Certificates, node, server};
use crate::ident::Incarnation;
use crate::ident::SessionId;
use crate::limits::MESSAGE_BYTES_MAX;
use rustls::pki_types::pem::PemObject;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

const WAIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(50);
const SIGNATURE_VARIES_BYTES: usize = 10;

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

/// What a client learns from a server with these keys when it wants s1; the server must be told nothing.
fn connect_to(certificates: &Certificates, keys: &Keyring) -> Error {
    let (listener, address) = listener();
    let node_keys = certificates.keys(node("n1"));
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            Stream::accepted_host(socket, keys, WAIT).and_then(|mut stream| stream.recv::<Hello>(WAIT))
        });
        let connected = Stream::connect_host(address, &node_keys, &server("s1"), WAIT);
        let error = connected.map(|_| ()).unwrap_err();
        assert!(accepted.join().unwrap().is_err(), "nothing was said to it");
        error
    })
}

#[test]
fn a_client_talks_to_nobody_but_the_one_it_wants() {
    let certificates = Certificates::of("demo");
    // Other members of the same cluster; a node's certificate may not even be a server's.
    for other in [server("s2"), Member::Director, node("n1"), Member::Operator] {
        let error = connect_to(&certificates, &certificates.keys(other.clone()));
        assert_eq!(error.kind, ErrorKind::Denied, "{other}: {error}");
        assert!(error.context.contains("server s1 at 127.0.0.1:"), "{error}");
    }
    // A cluster of the same name with another authority.
    let alike = Certificates::of("demo");
    assert_eq!(connect_to(&certificates, &alike.keys(server("s1"))).kind, ErrorKind::Denied);
    // A certificate that is over by the time it is shown.
    let until = std::time::SystemTime::now() + Duration::from_secs(1);
    let short = Validity { from: until - Duration::from_secs(60), until };
    certificates.put(&server("s1"), &certificates.authority(), &server("s1"), short);
    let keys = certificates.keys(server("s1"));
    std::thread::sleep(Duration::from_secs(2));
    let error = connect_to(&certificates, &keys);
    assert!(error.kind == ErrorKind::Denied && error.to_string().contains("expired"), "{error}");
}

/// What a server does with a client that holds these keys.
fn accept_from(certificates: &Certificates, keys: &Keyring) -> Error {
    let (listener, address) = listener();
    let server_keys = certificates.keys(server("s1"));
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            Stream::accepted_host(socket, &server_keys, WAIT).map(|_| ()).unwrap_err()
        });
        // The client may think that it is in until it hears otherwise.
        let answer = Stream::connect_host(address, keys, &server("s1"), WAIT)
            .and_then(|mut stream| stream.recv::<HelloReply>(WAIT));
        assert!(answer.is_err(), "nothing was said to it");
        accepted.join().unwrap()
    })
}

#[test]
fn a_server_talks_to_members_only() {
    let certificates = Certificates::of("demo");
    // A server's certificate opens no connection.
    let error = accept_from(&certificates, &certificates.keys(server("s2")));
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    // Another authority, which the client takes for good.
    let alike = Certificates::of("demo");
    let both = [&certificates, &alike].map(|of| std::fs::read_to_string(of.dir().join("ca.pem")).unwrap());
    std::fs::write(alike.dir().join("ca.pem"), both.concat()).unwrap();
    let error = accept_from(&certificates, &alike.keys(node("n1")));
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    let (other, _) = Authority::create("other").unwrap();
    assert!(other.issue(&node("-"), Validity::days(1)).is_err(), "no name for DNS");
}

/// A client that shows no certificate at all gets no byte of content.
#[test]
fn a_client_without_a_certificate_is_refused() {
    let certificates = Certificates::of("demo");
    let (listener, address) = listener();
    let server_keys = certificates.keys(server("s1"));
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(certificates.dir().join("ca.pem")).unwrap();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            Stream::accepted_host(socket, &server_keys, WAIT).map(|_| ()).unwrap_err()
        });
        let name = server("s1").server_name("demo").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        let mut read = Vec::new();
        let _ = rustls::Stream::new(&mut client, &mut socket).read_to_end(&mut read);
        assert!(read.is_empty());
        let error = accepted.join().unwrap();
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    });
}

#[test]
fn what_is_no_tls_is_an_error_and_no_wait_is_for_ever() {
    let certificates = Certificates::of("demo");
    let keys = certificates.keys(node("n1"));
    let connect = |bytes: &[u8], then_close: bool, timeout: Duration| {
        let (listener, address) = listener();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                socket.write_all(bytes).unwrap();
                if then_close {
                    socket.shutdown(Shutdown::Write).unwrap();
                }
                let _ = socket.read_to_end(&mut Vec::new());
            });
            Stream::connect_host(address, &keys, &server("s1"), timeout).map(|_| ()).unwrap_err().kind
        })
    };
    let garbage: Vec<u8> = (0..70_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&garbage[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0; 64], &[22, 3, 3, 0xff, 0xff, 0]] {
        assert_eq!(connect(bytes, false, WAIT), ErrorKind::Corrupt);
    }
    assert_eq!(connect(&[], true, WAIT), ErrorKind::Unreachable);
    let begin = Instant::now();
    assert_eq!(connect(&[], false, SHORT), ErrorKind::Timeout);
    assert_eq!(connect(&[22, 3, 3, 0, 100], false, SHORT), ErrorKind::Timeout);
    assert!(begin.elapsed() < WAIT);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = Stream::connect_host(nobody, &keys, &server("s1"), WAIT).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
}

/// Passes `limit` bytes of the server's side on, then cuts both; the client's side is passed as it comes.
fn cut_after(limit: usize, client: TcpStream, server: TcpStream) -> usize {
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let upwards = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let passed = std::io::copy(&mut (&server).take(limit as u64), &mut &client).unwrap_or(0);
    for socket in [&client, &server] {
        let _ = socket.shutdown(Shutdown::Both);
    }
    upwards.join().unwrap();
    passed as usize
}

/// The server's side of a connection ends after any number of bytes: the client ends with an error, soon.
#[test]
fn a_cut_at_any_byte_ends_the_client() {
    let certificates = Certificates::of("demo");
    let (server_keys, node_keys) = (certificates.keys(server("s1")), certificates.keys(node("n1")));
    let ((listener, address), (between, between_address)) = (listener(), listener());
    let role = Role::Node { name: "n1".to_owned(), incarnation: Incarnation(5), pid: 0 };
    // Detached, so that a failure of this test is not a wait for the next peer.
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            if let Ok(mut stream) = Stream::accepted_host(socket, &server_keys, WAIT) {
                let _ = stream.server_hello("demo", Incarnation(9), |_, _| Ok(()), WAIT);
            }
        }
    });
    let talk = |limit: usize| {
        std::thread::scope(|scope| {
            let cut = scope.spawn(|| {
                let (client, _) = between.accept().unwrap();
                cut_after(limit, client, TcpStream::connect(address).unwrap())
            });
            let greeted = Stream::connect_host(between_address, &node_keys, &server("s1"), WAIT)
                .and_then(|mut stream| stream.client_hello("demo", role.clone(), WAIT).map(|_| stream));
            // The whole of it ends here, too.
            let greeted = greeted.map(|stream| stream.shutdown());
            (greeted, cut.join().unwrap())
        })
    };
    let (greeted, all) = talk(usize::MAX);
    greeted.unwrap();
    for limit in 0..all {
        match talk(limit).0 {
            // Signatures are a few bytes longer or shorter each time, so this may be the whole.
            Ok(()) => assert!(limit + SIGNATURE_VARIES_BYTES > all, "{limit} of {all} bytes were enough"),
            Err(error) => assert_eq!(error.kind, ErrorKind::Unreachable, "{limit} of {all} bytes: {error}"),
        }
    }
    println!("cut after each of {all} bytes");
}

#[test]
fn nothing_is_resumed_and_half_open_connections_end() {
    let certificates = Certificates::of("demo");
    let (listener, address) = listener();
    let (server_keys, node_keys) = (certificates.keys(server("s1")), certificates.keys(node("n1")));
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let (socket, _) = listener.accept().unwrap();
                Secure::accept(socket.into(), &server_keys, &Deadline::after(WAIT)).unwrap().0
            });
            let connected =
                Secure::connect(address, &node_keys, &server("s1"), &Deadline::after(WAIT)).unwrap();
            let accepted = accepted.join().unwrap();
            for end in [&connected, &accepted] {
                assert_eq!(end.lock().handshake_kind(), Some(rustls::HandshakeKind::Full));
                assert_eq!(end.lock().protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
                // 10 x 300 ms of silence.
                assert_eq!(sockopt::tcp_user_timeout(end).unwrap(), 3000);
                assert!(sockopt::tcp_nodelay(end).unwrap() && sockopt::socket_keepalive(end).unwrap());
            }
        });
    }
}

#[test]
fn frames_over_the_limit_are_refused_and_get_no_memory() {
    let certificates = Certificates::of("demo");
    let (server_keys, node_keys) = (certificates.keys(server("s1")), certificates.keys(node("n1")));
    for announced in [0, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
        let (listener, address) = listener();
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| {
                let (socket, _) = listener.accept().unwrap();
                let mut stream = Stream::accepted_host(socket, &server_keys, WAIT).unwrap();
                stream.recv::<ToServer>(WAIT).unwrap_err()
            });
            let deadline = Deadline::after(WAIT);
            let connected = Secure::connect(address, &node_keys, &server("s1"), &deadline).unwrap();
            connected.send(&announced.to_le_bytes(), &deadline).unwrap();
            let error = accepted.join().unwrap();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
            assert!(error.context.contains(&announced.to_string()), "{error}");
        });
    }
}
