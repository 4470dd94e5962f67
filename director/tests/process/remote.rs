//! With other hosts: stewards and servers over TCP and TLS beside those of this host, and whoever comes with
//! bad intent or bad luck.

use crate::site::{Site, WAIT, play_server, play_steward, receive, register, serve, until};
use selvage_fabric::config::TransportKind;
use selvage_fabric::control::ca::{Authority, Validity, files};
use selvage_fabric::control::member::Member;
use selvage_fabric::control::message::{FromDirector, LinkReport, NodeBeat, Role, ToDirector};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::control::tls::Keyring;
use selvage_fabric::error::{Error, ErrorKind};
use selvage_fabric::ident::Incarnation;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_rustls::rustls;

/// Silence after which a member is declared dead, as configured by default.
const SILENCE: Duration = Duration::from_millis(300);

fn node(name: &str) -> Member {
    Member::Node(name.to_owned())
}

fn role(name: &str) -> Role {
    Role::Node { name: name.to_owned(), incarnation: Incarnation::NONE, pid: 7 }
}

/// A connection over TCP after its hello.
fn greeted(site: &Site, keys: &Keyring, role: Role) -> Result<Stream, Error> {
    let mut stream = Stream::connect_host(site.control.unwrap(), keys, &Member::Director, WAIT)?;
    stream.client_hello("t", role, WAIT)?;
    Ok(stream)
}

fn steward(site: &Site, name: &str) -> Stream {
    greeted(site, &site.keys(node(name)), role(name)).unwrap()
}

fn cut(site: &Site, reason: &str) -> u64 {
    site.metric_if_any(&format!("selvage_director_control_peers_cut_total{{reason=\"{reason}\"}}"))
        .unwrap_or(0)
}

/// A steward that beats over TCP; the longest wait for a mandate is what others have cost it.
struct Beating {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Beating {
    fn start(mut steward: Stream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut sent_ns = 0;
            while !stopped.load(Ordering::Relaxed) {
                sent_ns += 1;
                let begun = Instant::now();
                let beat = NodeBeat { sent_ns, ..NodeBeat::default() };
                steward.send(&ToDirector::Beat(beat), None, WAIT).unwrap();
                loop {
                    match receive(&mut steward) {
                        FromDirector::Mandate { sent_ns: granted } if granted == sent_ns => break,
                        FromDirector::Mandate { .. } | FromDirector::View(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                longest = longest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            longest
        });
        Self { stop, thread }
    }

    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Plays s1 at its address for other hosts.
fn play_remote_server(site: &Site, incarnation: u64, turns: usize) -> JoinHandle<()> {
    let listener = TcpListener::bind(site.server.unwrap()).unwrap();
    let keys = site.keys(Member::Server("s1".to_owned()));
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        serve(Stream::accepted_host(socket, &keys, WAIT).unwrap(), incarnation, turns, 0);
    })
}

#[test]
fn stewards_of_this_host_and_of_others_live_side_by_side() {
    let site = Site::with_hosts();
    let _director = site.start();
    let server = play_remote_server(&site, 5, usize::MAX);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let mut far = steward(&site, "n1");
    let life = register(&mut far);
    let mut near = site.steward("n2", Incarnation::NONE);
    near.send(&ToDirector::Register, None, WAIT).unwrap();
    let view = loop {
        if let FromDirector::Registered { view, .. } = receive(&mut near) {
            break view;
        }
    };
    assert!(view.node(life).is_some(), "both are in one view");
    let control = site.server.unwrap().to_string();
    assert_eq!(view.servers[0].control.as_deref(), Some(&*control), "nodes learn the address from the view");
    let beating = Beating::start(far);
    std::thread::sleep(3 * SILENCE);
    assert_eq!(site.view()["nodes"][0]["incarnation"], life.0, "heartbeats over TCP keep it alive");
    beating.end();
    // Nobody beats any more.
    until("it is declared dead", || site.view()["nodes"][0]["state"] == "down");
    assert_eq!(site.peers_cut(), 0);
    drop(_director);
    server.join().unwrap();
}

#[test]
fn a_drain_of_a_node_on_another_host() {
    let site = Site::with_hosts();
    let mut director = site.start();
    let server = play_remote_server(&site, 5, usize::MAX);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let far = play_steward(steward(&site, "n1"));
    let near = play_steward(site.steward("n2", Incarnation::NONE));
    let output = site.selvage(&["drain", "n1"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(far.join().unwrap(), FromDirector::Over { drained: true });
    director.signal("-TERM");
    director.ends_well();
    server.join().unwrap();
    near.join().unwrap();
}

#[test]
fn the_servers_socket_comes_before_its_address() {
    let site = Site::with_hosts();
    let _director = site.start();
    let listener = TcpListener::bind(site.server.unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    // Whoever came before the socket was there has gone on to the address.
    let server = play_server(&site, 5, usize::MAX, 0);
    while listener.accept().is_ok() {}
    until("the server is up", || {
        while listener.accept().is_ok() {}
        site.view()["servers"][0]["incarnation"] == 5
    });
    drop(_director);
    server.join().unwrap();
}

#[test]
fn a_server_at_whose_address_nobody_listens_is_down_at_once() {
    let site = Site::with_hosts();
    let _director = site.start();
    let mut steward = steward(&site, "n1");
    let begun = Instant::now();
    // Nobody listens, so there is nothing to wait for: the first view comes at once, without it.
    register(&mut steward);
    assert!(begun.elapsed() < SILENCE, "{:?}", begun.elapsed());
    let beating = Beating::start(steward);
    for life in [5, 6] {
        let server = play_remote_server(&site, life, 10);
        until("the server is up", || site.view()["servers"][0]["incarnation"] == life);
        // After its turns it closes connection and listener, as a process that ends.
        server.join().unwrap();
        let begun = Instant::now();
        until("it is down", || site.view()["servers"][0]["state"] == "down");
        assert!(begun.elapsed() < SILENCE / 2, "{:?}", begun.elapsed());
    }
    beating.end();
}

#[test]
fn a_host_that_does_not_answer_is_silent_and_no_more() {
    let site = Site::with_hosts();
    let _director = site.start();
    let address = site.server.unwrap();
    let keys = site.keys(Member::Server("s1".to_owned()));
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let listener = listener.unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&listener, true).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let listener = TcpListener::from(listener);
    let (socket, _) = listener.accept().unwrap();
    let server = std::thread::spawn(move || {
        serve(Stream::accepted_host(socket, &keys, WAIT).unwrap(), 5, 10, 0);
    });
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    // From now on nobody who connects gets an answer: the queue is full, as if the host had vanished.
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(50)) {
        waiting.push(stream);
        assert!(waiting.len() < 64, "the queue takes everybody");
    }
    server.join().unwrap();
    let begun = Instant::now();
    until("it is down", || site.view()["servers"][0]["state"] == "down");
    assert!(begun.elapsed() > SILENCE / 2, "it was only silent: {:?}", begun.elapsed());
    assert!(begun.elapsed() < 4 * SILENCE, "{:?}", begun.elapsed());
}

#[test]
fn who_has_the_wrong_certificate_learns_nothing_and_is_counted() {
    let site = Site::with_hosts();
    let director = site.start();
    let mut good = steward(&site, "n1");
    let life = register(&mut good);
    let beating = Beating::start(good);

    // Good certificates of this cluster, of others than they say.
    for (member, role) in [
        (node("n2"), role("n1")),
        (node("n1"), role("n9")),
        (node("n1"), Role::Director),
        (Member::Operator, role("n1")),
        (Member::Operator, Role::Operator),
        (Member::Director, role("n1")),
        (Member::Director, Role::Director),
    ] {
        let error = greeted(&site, &site.keys(member.clone()), role.clone()).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Denied, "{member} as {role:?}: {error}");
    }
    until("all are counted", || cut(&site, "denied") == 7);

    // A certificate that is not good for connecting.
    let server = Member::Server("s1".to_owned());
    assert!(greeted(&site, &site.keys(server), role("n1")).is_err());
    // The right name by another CA: the same cluster's name, made elsewhere.
    let (foreign, _) = Authority::create("t").unwrap();
    put(&site, &node("n2"), &foreign, Validity::days(2));
    let configuration = foreign_client(&site, &node("n2"));
    assert!(told(&site, configuration).is_err());
    // None at all.
    assert!(told(&site, client(&site).with_no_client_auth()).is_err());
    until("all are counted", || cut(&site, "certificate") == 3);
    assert_eq!(site.peers_cut(), 10);

    assert_eq!(site.view()["nodes"][0]["incarnation"], life.0);
    assert!(beating.end() < SILENCE, "others' mandates came in time");
    drop(director);
}

/// A client that trusts the cluster's CA.
fn client(site: &Site) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&site.certificates().join("ca.pem")) {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_root_certificates(roots)
}

fn foreign_client(site: &Site, member: &Member) -> rustls::ClientConfig {
    use rustls::pki_types::pem::PemObject;
    let (certificate, key) = files(&site.certificates(), member);
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
    client(site).with_client_auth_cert(certificates(&certificate), key).unwrap()
}

fn certificates(path: &std::path::Path) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

/// What the director tells such a client: the bytes inside TLS.
fn told(site: &Site, configuration: rustls::ClientConfig) -> std::io::Result<Vec<u8>> {
    let name = Member::Director.server_name("t").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(configuration), name).unwrap();
    let socket = TcpStream::connect(site.control.unwrap()).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let mut stream = rustls::StreamOwned::new(client, socket);
    stream.flush()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts a certificate of `authority` in place of the member's.
fn put(site: &Site, member: &Member, authority: &Authority, validity: Validity) {
    let issued = authority.issue(member, validity).unwrap();
    let (certificate, key) = files(&site.certificates(), member);
    std::fs::write(certificate, issued.certificate).unwrap();
    std::fs::write(&key, issued.key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Sends these bytes and reads until the director closes.
fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    // It may be cut off in the middle.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

#[test]
fn garbage_and_slow_peers_are_cut_off_and_cost_others_nothing() {
    let site = Site::with_hosts();
    let director = site.start();
    let address = site.control.unwrap();
    let mut good = steward(&site, "n1");
    let life = register(&mut good);
    let beating = Beating::start(good);

    // What is no TLS: text, a frame of the protocol without TLS, noise, an absurd length.
    let noise: Vec<u8> = (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let frame = b"\x08\x00\x00\x00\x02\x02\x01t\x00\x02n1";
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], frame, &noise, &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let answer = send(address, bytes);
        assert!(!answer.windows(2).any(|bytes| bytes == b"n1"), "nothing is told");
    }
    until("all are counted", || cut(&site, "garbage") == 4);

    // A replay of what a good steward has sent.
    let answer = send(address, &recorded(&site));
    assert!(!answer.is_empty(), "it got as far as the other side's first answer");
    until("the replay is counted", || cut(&site, "garbage") == 5);
    assert_eq!(site.view()["nodes"][1]["state"], "down", "it registered nobody");

    // Who is in, and sends what is no message.
    let mut known = steward(&site, "n2");
    known.send(&"nonsense".repeat(9), None, WAIT).unwrap();
    until("it is counted", || cut(&site, "garbage") == 6);
    // A hello that is too long to be one.
    let keys = site.keys(node("n2"));
    let mut known = Stream::connect_host(address, &keys, &Member::Director, WAIT).unwrap();
    // It is cut off as soon as it has said how long.
    let _ = known.send(&"nonsense".repeat(9000), None, WAIT);
    assert!(known.recv::<FromDirector>(WAIT).is_err());
    until("it is counted", || cut(&site, "garbage") == 7);

    // Silent ones, at each stage.
    let mut silent = vec![TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
    silent[1].write_all(&[0x16, 3, 1]).unwrap();
    let half_open = TcpStream::connect(address).unwrap();
    half_open.shutdown(Shutdown::Read).unwrap();
    silent.push(half_open);
    let _known = Stream::connect_host(address, &keys, &Member::Director, WAIT).unwrap();
    until("the slow are cut off", || cut(&site, "slow") == 4);
    silent[0].set_read_timeout(Some(WAIT)).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "closed");

    assert_eq!(site.view()["nodes"][0]["incarnation"], life.0);
    assert!(beating.end() < SILENCE, "others' mandates came in time");
    drop(director);
}

/// All that a good steward sends from its first byte to its registration, as a listener on the wire sees it.
fn recorded(site: &Site) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (near, far) = (listener.local_addr().unwrap(), site.control.unwrap());
    let relay = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut director = TcpStream::connect(far).unwrap();
        let (mut back, mut to_client) = (director.try_clone().unwrap(), client.try_clone().unwrap());
        let answers = std::thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut to_client);
        });
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut piece) {
            bytes.extend_from_slice(&piece[..read]);
            director.write_all(&piece[..read]).unwrap();
        }
        director.shutdown(Shutdown::Both).unwrap();
        answers.join().unwrap();
        bytes
    });
    let mut stream = Stream::connect_host(near, &site.keys(node("n2")), &Member::Director, WAIT).unwrap();
    stream.client_hello("t", role("n2"), WAIT).unwrap();
    register(&mut stream);
    drop(stream);
    until("its life ends", || site.view()["nodes"][1]["state"] == "down");
    relay.join().unwrap()
}

#[test]
fn a_crowd_of_silent_peers_keeps_nobody_out() {
    let site = Site::with_hosts();
    let director = site.start();
    let mut good = steward(&site, "n1");
    register(&mut good);
    let beating = Beating::start(good);
    let crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(site.control.unwrap()).unwrap()).collect();
    // The next one comes in at once: the oldest of the crowd makes room.
    let begun = Instant::now();
    let mut next = steward(&site, "n2");
    register(&mut next);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let crowded = 100 - selvage_director::limits::LOBBY_PLACES as u64;
    until("those without room are counted", || cut(&site, "crowded") >= crowded);
    until("the others are slow", || cut(&site, "crowded") + cut(&site, "slow") == 100);
    drop(crowd);
    assert!(beating.end() < SILENCE, "others' mandates came in time");
    drop(director);
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_told_nothing() {
    let site = Site::with_hosts();
    let listener = TcpListener::bind(site.server.unwrap()).unwrap();
    let _director = site.start();
    // No TLS at all: what comes is the director's first words of TLS, and nothing more.
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.write_all(b"220 hello\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    assert_eq!(bytes.first(), Some(&0x16), "a TLS record");
    assert!(!bytes.windows(2).any(|bytes| bytes == b"s1"), "not even the name");
    until("it is counted", || cut(&site, "garbage") >= 1);
    // Certificates of the cluster, but not this server's.
    for member in [node("n1"), Member::Director, Member::Operator] {
        let (socket, _) = listener.accept().unwrap();
        assert!(Stream::accepted_host(socket, &site.keys(member), WAIT).is_err());
    }
    until("they are counted", || cut(&site, "certificate") >= 1);
    // This server's name, by another CA. The director has read its own CA at its start.
    let (foreign, issued) = Authority::create("t").unwrap();
    let server = Member::Server("s1".to_owned());
    std::fs::write(site.certificates().join("ca.pem"), issued.certificate).unwrap();
    put(&site, &server, &foreign, Validity::days(2));
    let (socket, _) = listener.accept().unwrap();
    assert!(Stream::accepted_host(socket, &site.keys(server), WAIT).is_err());
    assert_eq!(site.view()["servers"][0]["state"], "down");
}

#[test]
fn without_certificates_it_does_not_start() {
    let site = Site::with_hosts();
    let (certificate, key) = files(&site.certificates(), &Member::Director);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = site.refused();
    assert!(text.contains("director.key") && text.contains("0600"), "{text}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let _taken = TcpListener::bind(site.control.unwrap()).unwrap();
    let text = site.refused();
    assert!(text.contains(&site.control.unwrap().to_string()) && text.contains("`control`"), "{text}");
    std::fs::remove_file(certificate).unwrap();
    let text = site.refused();
    assert!(text.contains("director.pem") && text.contains("selvage ca"), "{text}");
    assert!(!site.socket().exists());
}

#[test]
fn a_node_of_another_host_has_no_folder_here() {
    let site = Site::with_hosts();
    // An address that is nobody's, reserved for documentation; and a user that is not ours.
    site.configure("[[node]]\nname = \"n3\"\naddress = \"192.0.2.1:80\"\nuids = [4242]\n");
    let _director = site.start();
    assert!(site.run_dir().join("node-n1").exists());
    assert!(!site.run_dir().join("node-n3").exists());
}

#[test]
fn the_status_shows_devices_and_links() {
    let site = Site::with_hosts();
    let director = site.start();
    let server = play_remote_server(&site, 5, usize::MAX);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let mut far = steward(&site, "n1");
    register(&mut far);
    let mut shown = |transport: Option<TransportKind>, detail: &str, beat_age_ms: Option<u32>| {
        let detail = detail.to_owned();
        let link = LinkReport { server: Incarnation(5), transport, detail, beat_age_ms };
        let beat = NodeBeat { links: vec![link], ..NodeBeat::default() };
        far.send(&ToDirector::Beat(beat), None, WAIT).unwrap();
        while !matches!(receive(&mut far), FromDirector::Mandate { .. }) {}
        String::from_utf8(site.selvage(&["status"]).stdout).unwrap()
    };
    let text = shown(Some(TransportKind::Verbs), "rxe0 port 1", Some(12));
    assert!(text.contains("rxe0 port 1, MTU 1024"), "the server's device: {text}");
    let line =
        |text: &str| text.lines().skip_while(|line| !line.starts_with("LINK OF")).nth(1).map(str::to_owned);
    let words = |text: &str| -> Vec<String> {
        line(text).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words(&text), ["n1", "s1", "verbs", "12", "ms", "rxe0", "port", "1"]);
    assert_eq!(site.metric("selvage_node_link_up{node=\"n1\",server=\"s1\",transport=\"verbs\"}"), 1);
    assert_eq!(site.value("selvage_node_link_beat_age_seconds{node=\"n1\",server=\"s1\"}"), Some(0.012));
    let view = site.view();
    assert_eq!(view["nodes"][0]["links"][0]["transport"], "verbs");
    assert_eq!(view["servers"][0]["rdma"], "rxe0 port 1, MTU 1024");

    let why = "libibverbs.so.1 is not installed\u{1b}[2J";
    let text = shown(None, why, None);
    assert!(line(&text).unwrap().ends_with("libibverbs.so.1 is not installed?[2J"), "{text}");
    assert_eq!(site.metric("selvage_node_link_up{node=\"n1\",server=\"s1\",transport=\"none\"}"), 0);
    assert_eq!(
        site.metric_if_any("selvage_node_link_up{node=\"n1\",server=\"s1\",transport=\"verbs\"}"),
        None
    );
    drop(director);
    server.join().unwrap();
}

#[test]
fn a_flood_of_handshakes_kills_nobody() {
    let site = Site::with_hosts();
    let director = site.start();
    let mut good = steward(&site, "n1");
    let life = register(&mut good);
    let beating = Beating::start(good);
    let until_then = Instant::now() + 5 * SILENCE;
    let flood: Vec<JoinHandle<u32>> = (0..4)
        .map(|_| {
            let (address, keys) = (site.control.unwrap(), site.keys(node("n2")));
            std::thread::spawn(move || {
                let mut handshakes = 0;
                while Instant::now() < until_then {
                    // It may be crowded out by the others.
                    handshakes +=
                        u32::from(Stream::connect_host(address, &keys, &Member::Director, WAIT).is_ok());
                }
                handshakes
            })
        })
        .collect();
    let handshakes: u32 = flood.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(handshakes > 20, "{handshakes}");
    assert_eq!(site.view()["nodes"][0]["incarnation"], life.0);
    let longest = beating.end();
    println!("{handshakes} handshakes; longest wait for a mandate {longest:?}");
    assert!(longest < SILENCE, "{longest:?}");
    drop(director);
}
