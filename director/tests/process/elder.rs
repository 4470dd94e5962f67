//! A director that has handed over and still serves browsers: what it does not know yet nobody counts on, and
//! nobody waits for what does not concern him.

use crate::clients::Steward;
use crate::front::Front;
use crate::site::{Running, Site, WAIT, play_steward, serve, until};
use selvage_fabric::control::message::FromDirector;
use selvage_fabric::control::stream::Stream;
use selvage_fabric::ident::Incarnation;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

/// On a busy machine nobody dies but by the test.
const PATIENT: &str = "[timing]\nsilence_ms = 3000\n";

/// A web server that agrees to whatever protocol is asked for, and then says back what it hears.
fn play_tunnels(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                head(&mut stream);
                let yes = b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                stream.write_all(yes).unwrap();
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|read| read == 1) && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// A browser's tunnel through the director.
struct Tunnel(TcpStream);

impl Tunnel {
    fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .unwrap();
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Self(stream)
    }

    fn passes(&mut self) -> bool {
        let mut byte = [0];
        self.0.write_all(b"x").is_ok() && self.0.read_exact(&mut byte).is_ok() && byte == *b"x"
    }
}

/// A session server whom any number of directors may ask, one after the other.
fn play_server_for_all(site: &Site) {
    let listener = UnixListener::bind(site.run_dir().join("server-s1.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = Stream::accepted(stream.unwrap()).unwrap();
            std::thread::spawn(move || serve(stream, 5, usize::MAX, 0));
        }
    });
}

fn has_ended(director: &mut Running) -> bool {
    director.0.try_wait().unwrap().is_some()
}

fn dead(front: &Front) -> usize {
    front.site.view()["dead"].as_array().unwrap().len()
}

#[test]
fn a_drain_does_not_wait_for_tunnels_to_other_nodes_at_a_director_that_has_handed_over() {
    let front = Front::new(PATIENT);
    play_tunnels(front.site.node);
    let mut first = front.site.start();
    play_server_for_all(&front.site);
    until("the server is up", || front.site.view()["servers"][0]["state"] == "up");
    let _one = Steward::start(&front.site, "n1");
    let mut tunnel = Tunnel::open(front.site.browsers);
    // The second one speaks for the first.
    front.hand_over();
    front.hand_over();
    let two = play_steward(front.site.steward("n2", Incarnation::NONE));
    let output = front.site.selvage(&["drain", "n2"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(two.join().unwrap(), FromDirector::Over { drained: true });
    assert!(tunnel.passes() && !has_ended(&mut first), "the tunnel goes on");
    drop(tunnel);
    first.ends_well();
}

#[test]
fn nothing_is_adopted_before_a_director_that_has_handed_over_has_cut_the_dead_or_is_gone() {
    let front = Front::new(PATIENT);
    play_tunnels(front.site.node);
    let mut first = front.site.start();
    play_server_for_all(&front.site);
    until("the server is up", || front.site.view()["servers"][0]["state"] == "up");
    let _one = Steward::start(&front.site, "n1");
    let mut tunnel = Tunnel::open(front.site.browsers);
    front.hand_over();
    let mut other = None;
    until("the second one accepts", || {
        other = Some(Tunnel::open(front.site.browsers));
        front.metric("selvage_director_requests_total{result=\"served\"}") > 0
    });
    front.hand_over();
    let next_life = || play_steward(front.site.steward("n2", Incarnation::NONE));
    let one = next_life();
    let two = next_life();
    assert_eq!(one.join().unwrap(), FromDirector::Over { drained: false });
    until("the first life is adopted", || dead(&front) == 0);
    assert!(tunnel.passes() && !has_ended(&mut first), "who answers is left alone");
    // Time to carry the last view out. Then nobody asks it before there is another.
    std::thread::sleep(Duration::from_millis(500));
    first.signal("-STOP");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!has_ended(&mut first));
    let begun = Instant::now();
    let three = next_life();
    until("the second life is adopted", || dead(&front) == 0);
    // Far longer than a mandate.
    assert!(begun.elapsed() > Duration::from_millis(800), "the stopped one may pass its answers on");
    let ended = first.0.wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "{ended}");
    assert!(!tunnel.passes() && other.as_mut().unwrap().passes(), "who only waits for another is left alone");
    assert_eq!(two.join().unwrap(), FromDirector::Over { drained: false });
    // The next one waits for nobody.
    let _four = next_life();
    assert_eq!(three.join().unwrap(), FromDirector::Over { drained: false });
    until("the third life is adopted", || dead(&front) == 0);
}
