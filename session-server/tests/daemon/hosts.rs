//! Peers of other hosts, over TCP with TLS: who gets in, and that those who do not harm nobody.

use crate::host::*;
use selvage_fabric::control::ca::{self, Authority, Issued, Validity};
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{ClaimAnswer, FromServer, Hello, PROTOCOL_VERSION, Role, ToServer};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind, Result};
use selvage_fabric::limits::HELLO_WAIT;
use selvage_fabric::numbers::ServerCounter;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

const SMALL: &str = "sessions_max = 1024\nlease_bytes = 4194304\n";

/// A host whose server s1 runs, with a node that is served over TCP as long as the test lasts.
struct Served {
    host: Host,
    address: SocketAddr,
    _daemon: Daemon,
    director: Peer,
    node: Peer,
    claims: u64,
}

impl Served {
    fn new() -> Self {
        let address = free_address();
        let host = Host::with_hosts(SMALL, address);
        let daemon = host.start("s1");
        let mut director = connect(&host, address, Member::Director, Role::Director).unwrap();
        director.set_view(view(1, director.server, &[1, 2], &[]));
        let mut node = connect(&host, address, node_member("n1"), node_role("n1")).unwrap();
        node.register(1);
        connect(&host, address, node_member("n2"), node_role("n2")).unwrap().register(1);
        Self { host, address, _daemon: daemon, director, node, claims: 0 }
    }

    fn connect(&self, member: Member, role: Role) -> Result<Peer> {
        connect(&self.host, self.address, member, role)
    }

    fn raw(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    /// The peers that were counted as bad are as many as they must be; and the honest ones notice nothing:
    /// connections that were open go on, and new ones get in.
    fn assert_unharmed(&mut self, peers_bad: u64) {
        self.director.await_counter(ServerCounter::PeersBad, peers_bad);
        assert_eq!(self.director.counter(ServerCounter::PeersBad), peers_bad);
        self.claims += 1;
        assert_eq!(self.node.claim(1, &[id(self.claims)]), [ClaimAnswer::Granted(None)]);
        self.connect(node_member("n2"), node_role("n2")).unwrap().register(1);
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn node_member(name: &str) -> Member {
    Member::Node(name.into())
}

fn node_role(name: &str) -> Role {
    let number = name[1..].parse().unwrap();
    Role::Node { name: name.into(), incarnation: life(number), pid: 77 }
}

fn connect(host: &Host, address: SocketAddr, member: Member, role: Role) -> Result<Peer> {
    greet(address, &Keyring::new(&host.config, member).unwrap(), role)
}

fn greet(address: SocketAddr, keys: &Keyring, role: Role) -> Result<Peer> {
    let mut stream = Stream::connect_host(address, keys, &Member::Server("s1".into()), WAIT)?;
    let (_, server) = stream.client_hello("test", role, WAIT)?;
    Ok(Peer { stream, server })
}

/// What keeps a peer out.
fn refusal(peer: Result<Peer>) -> Error {
    match peer {
        Ok(_) => panic!("a bad peer was let in"),
        Err(error) => error,
    }
}

fn assert_cut(mut stream: TcpStream) {
    let started = Instant::now();
    // A reset instead of an end is a cut, too.
    let _ = stream.read_to_end(&mut Vec::new());
    assert!(started.elapsed() < WAIT, "the connection is still open");
}

/// An identity by an authority of choice, in a folder of its own.
struct Forged {
    _dir: tempfile::TempDir,
    keys: Keyring,
}

/// The files are those of an identity that is good where it stands, so that only the server can object.
fn forged(served: &Served, ca_for_us: &str, issued: &Issued, member: &Member) -> Result<Forged> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), ca_for_us).unwrap();
    let (certificate, key) = ca::files(dir.path(), member);
    std::fs::write(&certificate, &issued.certificate).unwrap();
    std::fs::write(&key, &issued.key).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut config = served.host.config.clone();
    config.tls.as_mut().unwrap().dir = dir.path().to_owned();
    Ok(Forged { keys: Keyring::new(&config, member.clone())?, _dir: dir })
}

fn pem(served: &Served, name: &str) -> String {
    std::fs::read_to_string(served.host.tls_dir().join(name)).unwrap()
}

#[test]
fn members_come_in_as_what_their_certificates_say() {
    let mut served = Served::new();
    let mut operator = served.connect(Member::Operator, Role::Operator).unwrap();
    assert_eq!(operator.report().name, "s1");
    let wrong = [
        (node_member("n1"), node_role("n2"), "node n1"),
        (node_member("n1"), Role::Director, "node n1"),
        (node_member("n1"), Role::Operator, "node n1"),
        (Member::Director, node_role("n1"), "the director"),
        (Member::Director, Role::Operator, "the director"),
        (Member::Operator, Role::Director, "an operator"),
        (Member::Operator, node_role("n1"), "an operator"),
    ];
    let count = wrong.len() as u64;
    for (member, role, named) in wrong {
        let error = refusal(served.connect(member, role));
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    served.assert_unharmed(count);
}

#[test]
fn certificates_that_are_not_good_here_are_cut_off() {
    let mut served = Served::new();
    let member = node_member("n1");
    let ours = Issued { certificate: pem(&served, "ca.pem"), key: pem(&served, "ca.key") };
    let (alike, alike_ca) = Authority::create("test").unwrap();
    // Both CAs are good for us, so that it is the server that objects.
    let both = format!("{}{}", alike_ca.certificate, ours.certificate);
    let by_another =
        forged(&served, &both, &alike.issue(&member, Validity::days(9)).unwrap(), &member).unwrap();
    let error = refusal(greet(served.address, &by_another.keys, node_role("n1")));
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("does not accept our certificate"), "{error}");
    // One that ends while it is used: it is good when it is loaded, and not any more when it is shown.
    let authority = Authority::open("test", &ours).unwrap();
    let now = SystemTime::now();
    let until = now + Duration::from_secs(2);
    let short = Validity { from: now - Duration::from_secs(60), until };
    let ends =
        forged(&served, &ours.certificate, &authority.issue(&member, short).unwrap(), &member).unwrap();
    greet(served.address, &ends.keys, node_role("n1")).unwrap();
    while SystemTime::now() < until + Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let error = refusal(greet(served.address, &ends.keys, node_role("n1")));
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
    // A member of the cluster that the configuration does not know.
    let stranger = node_member("n9");
    let issued = authority.issue(&stranger, Validity::days(9)).unwrap();
    let stranger_keys = forged(&served, &ours.certificate, &issued, &stranger).unwrap();
    let error = refusal(greet(served.address, &stranger_keys.keys, node_role("n9")));
    assert!(error.to_string().contains("no node \"n9\" is configured"), "{error}");
    // A server's certificate opens nothing.
    let server = Member::Server("s2".into());
    let error = refusal(served.connect(server, Role::Director));
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    served.assert_unharmed(4);
}

#[test]
fn what_is_no_tls_is_cut_off() {
    let mut served = Served::new();
    let garbage: Vec<u8> = (0..70_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut plain_hello = Vec::new();
    let hello = Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        cluster: "test".into(),
        role: Role::Director,
    };
    selvage_fabric::control::frame::encode(&hello, &mut plain_hello).unwrap();
    // A handshake record that announces more than the largest message, and an alert.
    let huge = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 20_000]].concat();
    let inputs: [&[u8]; 6] =
        [&garbage, b"GET / HTTP/1.1\r\n\r\n", &plain_hello, &[0; 100], &huge, &[21, 3, 3, 0, 2, 2, 80]];
    for bytes in inputs {
        let mut stream = served.raw();
        // The server may have cut us off before we are done.
        let _ = stream.write_all(bytes);
        assert_cut(stream);
    }
    served.assert_unharmed(inputs.len() as u64);
}

#[test]
fn hostile_members_are_cut_off() {
    let mut served = Served::new();
    // Authenticated, and then no hello but more than one may have.
    let keys = Keyring::new(&served.host.config, node_member("n2")).unwrap();
    let server = Member::Server("s1".into());
    let mut stream = Stream::connect_host(served.address, &keys, &server, WAIT).unwrap();
    stream.send(&ToServer::Unclaim { ids: vec![id(1); 1000] }, None, WAIT).unwrap();
    assert!(stream.recv::<FromServer>(WAIT).is_err());
    // A hello, and then a message that makes no sense.
    let mut peer = served.connect(node_member("n2"), node_role("n2")).unwrap();
    peer.stream.send(&vec![0xff_u8; 1000], None, WAIT).unwrap();
    assert!(peer.stream.recv::<FromServer>(WAIT).is_err());
    // A long one that makes none.
    let mut peer = served.connect(node_member("n2"), node_role("n2")).unwrap();
    let long = vec![0xff_u8; 1 << 20];
    let _ = peer.stream.send(&long, None, WAIT);
    assert!(peer.stream.recv::<FromServer>(WAIT).is_err());
    served.assert_unharmed(3);
}

#[test]
fn a_slow_handshake_is_cut_off() {
    let mut served = Served::new();
    let recorded = record(&served);
    let started = Instant::now();
    let silent = served.raw();
    // Bytes of a good handshake, too slowly; the server's answers are not read.
    let mut slow = served.raw();
    let mut sent = 0;
    while slow.write_all(&recorded[sent..sent + 1]).is_ok() && started.elapsed() < WAIT {
        sent += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    // Authenticated, and then silent.
    let keys = Keyring::new(&served.host.config, node_member("n2")).unwrap();
    let mut mute = Stream::connect_host(served.address, &keys, &Member::Server("s1".into()), WAIT).unwrap();
    assert_eq!(mute.recv::<FromServer>(WAIT).unwrap_err().kind, ErrorKind::Unreachable);
    let took = started.elapsed();
    assert!(took < 2 * HELLO_WAIT + WAIT / 2, "{took:?}");
    assert_cut(silent);
    assert_cut(slow);
    served.assert_unharmed(3);
}

#[test]
fn a_flood_of_half_open_connections_starves_nobody() {
    let mut served = Served::new();
    let stop = Mutex::new(false);
    let flood = |address: SocketAddr| {
        let mut open = Vec::new();
        while !*stop.lock().unwrap() {
            // Bounded, so that the test itself does not run out of descriptors.
            if open.len() >= 300 {
                open.remove(0);
            }
            open.extend(TcpStream::connect_timeout(&address, Duration::from_millis(100)));
            std::thread::sleep(Duration::from_micros(500));
        }
    };
    let address = served.address;
    std::thread::scope(|scope| {
        scope.spawn(|| flood(address));
        scope.spawn(|| flood(address));
        std::thread::sleep(Duration::from_millis(500));
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begun = Instant::now();
            let mut peer = served.connect(node_member("n2"), node_role("n2"));
            // An honest peer tries again, as nodes and directors do.
            while peer.is_err() && begun.elapsed() < WAIT {
                peer = served.connect(node_member("n2"), node_role("n2"));
            }
            peer.unwrap().register(1);
            slowest = slowest.max(begun.elapsed());
        }
        println!("the slowest of 20 honest peers got in after {slowest:?}");
        // Peers of this host are not behind the flood at all, nor are connections that are open.
        let begun = Instant::now();
        served.host.director().report();
        served.director.report();
        let took = begun.elapsed();
        *stop.lock().unwrap() = true;
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
    assert!(served.director.counter(ServerCounter::PeersBad) > 0, "the flood is counted");
}

/// The bytes that an honest node sends, from the first to the answer of its request.
fn record(served: &Served) -> Vec<u8> {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = between.local_addr().unwrap();
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let copy = |mut from: TcpStream, mut to: TcpStream, kept: Option<Arc<Mutex<Vec<u8>>>>| {
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if let Some(kept) = &kept {
                    kept.lock().unwrap().extend_from_slice(&bytes[..count]);
                }
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    let server = served.raw();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let keys = Keyring::new(&served.host.config, Member::Director).unwrap();
            greet(address, &keys, Role::Director).unwrap().report();
        });
        let (socket, _) = between.accept().unwrap();
        server.set_read_timeout(None).unwrap();
        let (socket_too, server_too) = (socket.try_clone().unwrap(), server.try_clone().unwrap());
        let threads = [copy(socket, server, Some(Arc::clone(&recorded))), copy(server_too, socket_too, None)];
        client.join().unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let recorded = recorded.lock().unwrap();
    recorded.clone()
}

#[test]
fn recorded_bytes_open_nothing_and_a_cut_at_any_byte_harms_nobody() {
    let mut served = Served::new();
    let recorded = record(&served);
    let views = served.director.counter(ServerCounter::Views);
    let mut replay = served.raw();
    let _ = replay.write_all(&recorded);
    let mut answered = Vec::new();
    let _ = replay.read_to_end(&mut answered);
    assert!(!answered.is_empty(), "the server's half of the handshake");
    served.assert_unharmed(1);
    for end in 0..recorded.len() {
        let mut cut = served.raw();
        let _ = cut.write_all(&recorded[..end]);
        drop(cut);
    }
    // A peer that has gone is not a bad one, but what it said may have been.
    let bad = served.director.counter(ServerCounter::PeersBad);
    served.connect(node_member("n2"), node_role("n2")).unwrap().register(1);
    assert_eq!(served.director.counter(ServerCounter::Views), views);
    println!("replayed {} bytes, cut at each of them; {bad} were counted as bad", recorded.len());
}

#[test]
fn a_renewed_certificate_counts_without_a_restart() {
    let mut served = Served::new();
    let made = ca::make(&served.host.tls_dir(), &served.host.config, 30, true).unwrap();
    assert!(!made.ca && made.kept.is_empty());
    served.assert_unharmed(0);
    let log = served.host.log("s1");
    assert!(log.contains("read the certificate of server s1 again"), "{log}");
}

#[test]
fn bad_starts_name_certificate_and_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let host = Host::with_hosts(SMALL, address);
    let (status, said) = host.fails("s1");
    assert_eq!((status, said.lines().filter(|line| line.starts_with("selvage-server:")).count()), (3, 1));
    assert!(said.contains(&address.to_string()) && said.contains("another program uses this port"), "{said}");
    assert_eq!(host.run_dir_entries(), Vec::<std::path::PathBuf>::new());
    drop(taken);
    let (certificate, key) = ca::files(&host.tls_dir(), &Member::Server("s1".into()));
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (status, said) = host.fails("s1");
    assert!(status == 1 && said.contains("server-s1.key has mode 0644"), "{said}");
    std::fs::remove_file(certificate).unwrap();
    let (status, said) = host.fails("s1");
    assert!(
        status == 1 && said.contains("server-s1.pem is missing") && said.contains("selvage ca"),
        "{said}"
    );
    // The server that has no address needs none of it.
    let _daemon = host.start("s2");
}
