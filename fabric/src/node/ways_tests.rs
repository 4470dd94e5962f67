use super::*;
use crate::control::testing::{Certificates, node, server};
use crate::control::tls;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

const WAIT: Duration = Duration::from_secs(10);
const LIFE: Incarnation = Incarnation(7);
const NODE_LIFE: Incarnation = Incarnation(3);

/// A folder with certificates, and a place for server s1's socket.
struct World {
    certificates: Certificates,
    socket: PathBuf,
}

impl World {
    fn new() -> Self {
        let certificates = Certificates::of("demo");
        let socket = certificates.dir().join("server-s1.sock");
        Self { certificates, socket }
    }

    fn ways(&self) -> Ways {
        Ways::new(Arc::new(self.certificates.config.clone()), "n1")
    }

    fn entry(&self, control: Option<SocketAddr>) -> ServerEntry {
        ServerEntry {
            name: "s1".to_owned(),
            incarnation: LIFE,
            weight: 1,
            socket: self.socket.display().to_string(),
            control: control.map(|address| address.to_string()),
        }
    }

    /// Connects while what listens answers one hello as the life that it says.
    fn connect(&self, unix: Option<Incarnation>, tcp: Option<(Incarnation, Member)>) -> Result<Way> {
        let unix = unix.map(|life| (UnixListener::bind(&self.socket).unwrap(), life));
        let tcp = tcp.map(|(life, member)| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            (listener, life, self.certificates.keys(member))
        });
        let control = tcp.as_ref().map(|(listener, ..)| listener.local_addr().unwrap());
        let greeted = std::thread::scope(|scope| {
            let served = unix.as_ref().map(|(listener, life)| {
                scope.spawn(|| answer(Stream::accepted(listener.accept().unwrap().0).unwrap(), *life))
            });
            if let Some((listener, life, keys)) = &tcp {
                listener.set_nonblocking(true).unwrap();
                // The near one may be enough: wait only as long as somebody may still come.
                scope.spawn(move || {
                    for _ in 0..200 {
                        if let Ok((socket, _)) = listener.accept() {
                            if let Ok(stream) = Stream::accepted_host(socket, keys, WAIT) {
                                answer(stream, *life);
                            }
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            let way = self.ways().to_server(&self.entry(control), NODE_LIFE, WAIT);
            drop(served);
            way
        });
        let _ = std::fs::remove_file(&self.socket);
        greeted
    }
}

fn answer(mut stream: Stream, life: Incarnation) {
    let hello = stream.server_hello("demo", life, |_, _| Ok(()), WAIT).unwrap().0;
    let pid = std::process::id();
    assert_eq!(hello.role, Role::Node { name: "n1".to_owned(), incarnation: NODE_LIFE, pid });
}

#[test]
fn the_socket_of_this_host_is_nearest() {
    let world = World::new();
    for tcp in [None, Some((LIFE, server("s1")))] {
        let way = world.connect(Some(LIFE), tcp).unwrap();
        assert!(way.same_host && way.local.is_none());
    }
}

#[test]
fn another_host_is_reached_by_its_address() {
    let world = World::new();
    // No socket; a socket at which nobody listens; a socket of another life of that name.
    let way = world.connect(None, Some((LIFE, server("s1")))).unwrap();
    assert!(!way.same_host);
    assert_eq!(way.local, Some([127, 0, 0, 1].into()));
    drop(UnixListener::bind(&world.socket).unwrap());
    let way = world.connect(None, Some((LIFE, server("s1")))).unwrap();
    assert!(!way.same_host);
    let way = world.connect(Some(Incarnation(8)), Some((LIFE, server("s1")))).unwrap();
    assert!(!way.same_host);
}

#[test]
fn who_is_not_the_one_that_is_meant_is_not_reached() {
    let world = World::new();
    let kind = |way: Result<Way>| way.map(|_| ()).unwrap_err().kind;
    assert_eq!(kind(world.connect(None, None)), ErrorKind::Unreachable);
    assert_eq!(kind(world.connect(Some(Incarnation(8)), None)), ErrorKind::Unreachable);
    assert_eq!(kind(world.connect(None, Some((Incarnation(8), server("s1"))))), ErrorKind::Unreachable);
    // Good certificates of others.
    assert_eq!(kind(world.connect(None, Some((LIFE, server("s2"))))), ErrorKind::Denied);
    assert_eq!(kind(world.connect(None, Some((LIFE, node("n2"))))), ErrorKind::Denied);
}

#[test]
fn a_missing_certificate_is_said_and_found_when_it_comes() {
    let world = World::new();
    let (certificate, _) = world.certificates.files(&node("n1"));
    let kept = std::fs::read(&certificate).unwrap();
    std::fs::remove_file(&certificate).unwrap();
    let ways = world.ways();
    let entry = world.entry(Some(SocketAddr::from(([127, 0, 0, 1], 1))));
    let error = ways.to_server(&entry, NODE_LIFE, WAIT).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("node-n1.pem is missing"), "{error}");
    std::fs::write(&certificate, kept).unwrap();
    let error = ways.to_server(&entry, NODE_LIFE, WAIT).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "nobody listens there: {error}");
}

#[test]
fn the_director_is_found_on_either_host() {
    let world = World::new();
    let mut config = world.certificates.config.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    config.director.control = Some(listener.local_addr().unwrap());
    let keys = world.certificates.keys(Member::Director);
    assert_eq!(tls::member_of(None, "demo").unwrap_err().kind, ErrorKind::Denied);
    let ways = Ways::new(Arc::new(config.clone()), "n1");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            answer(Stream::accepted_host(socket, &keys, WAIT).unwrap(), Incarnation::NONE);
        });
        assert!(ways.to_director(NODE_LIFE, WAIT).unwrap().local_ip().is_some());
        let socket = UnixListener::bind(config.director_socket()).unwrap();
        scope.spawn(move || {
            answer(Stream::accepted(socket.accept().unwrap().0).unwrap(), Incarnation::NONE);
        });
        assert!(ways.to_director(NODE_LIFE, WAIT).unwrap().local_ip().is_none());
    });
}
