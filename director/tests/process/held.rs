//! A listening socket that a service manager holds for the director.

use crate::site::{Running, Site, finish, get, register, until};
use selvage_fabric::ident::Incarnation;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

/// Starts a director with a socket that is passed to it by systemd's protocol, under a name. A shell becomes
/// the director, because the protocol wants the process's own id in the environment.
fn start_with(site: &Site, socket: &TcpListener, name: &str) -> Child {
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"";
    let plain = site.command();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(plain.get_program()).args(plain.get_args());
    shell.env("SELVAGE_LOG", "warn").env("LISTEN_FDNAMES", name);
    shell.stdin(OwnedFd::from(socket.try_clone().unwrap())).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell.spawn().unwrap()
}

/// A web server that answers everybody, as long as the test runs.
fn serve(site: &Site) {
    let web = TcpListener::bind(site.node).unwrap();
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).is_ok_and(|read| read > 0) {
                let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
                stream.write_all(answer).unwrap();
            }
        }
    });
}

#[test]
fn nobody_is_refused_while_the_director_restarts() {
    let site = Site::new();
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("hold_ms = 500", "hold_ms = 8000")).unwrap();
    let socket = TcpListener::bind(site.browsers).unwrap();
    serve(&site);
    let up = || until("the admin API answers", || get(site.admin, "/healthz").is_some());
    for name in ["listen", "director.socket"] {
        // Before there is a director.
        let browsers = site.browsers;
        let early = std::thread::spawn(move || get(browsers, "/"));
        let mut director = Running(start_with(&site, &socket, name));
        up();
        let mut steward = site.steward("n1", Incarnation::NONE);
        register(&mut steward);
        assert!(early.join().unwrap().expect("an answer").ends_with("hello"));
        assert!(get(site.browsers, "/").expect("an answer").ends_with("hello"));
        director.signal("-TERM");
        director.ends_well();
    }
}

#[test]
fn a_socket_that_is_none_of_the_directors_is_said_in_one_line() {
    let site = Site::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = finish(start_with(&site, &socket, "other.socket"));
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    assert!(text.contains("other.socket") && text.contains(&address), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
