//! On one host: start errors, stewards over the real socket, the admin API, `selvage`, an orderly end.

use crate::site::{Site, WAIT, get, play_server, play_steward, post, receive, register, until};
use selvage_fabric::control::message::{FromDirector, NodeBeat, Role, ToDirector};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::{Epoch, Incarnation};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

#[test]
fn a_taken_port_is_said_in_one_line() {
    let site = Site::new();
    let _browsers = TcpListener::bind(site.browsers).unwrap();
    let text = site.refused_with(3);
    assert!(text.contains(&site.browsers.to_string()) && text.contains("`listen`"), "{text}");
    assert!(!site.socket().exists());
    drop(_browsers);
    let _admin = TcpListener::bind(site.admin).unwrap();
    let text = site.refused();
    assert!(text.contains(&site.admin.to_string()) && text.contains("`admin_listen`"), "{text}");
}

#[test]
fn a_second_director_is_refused_and_harms_nothing() {
    let site = Site::new();
    let mut first = site.start();
    let text = site.refused_with(3);
    assert!(text.contains("another director") && text.contains(&first.0.id().to_string()), "{text}");
    assert!(site.socket().exists() && get(site.admin, "/healthz").is_some());
    // After kill -9 nothing stands in the way of the next.
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(site.socket().exists());
    let _next = site.start();
    site.steward("n1", Incarnation::NONE);
}

#[test]
fn bad_places_and_files_are_said_in_one_line() {
    let site = Site::new();
    let text = std::fs::read_to_string(site.config()).unwrap();
    let nowhere = site.dir.path().join("no/where");
    std::fs::write(
        site.config(),
        text.replace(&*site.run_dir().to_string_lossy(), &nowhere.to_string_lossy()),
    )
    .unwrap();
    let said = site.refused();
    assert!(said.contains("run_dir") && said.contains("parent"), "{said}");
    std::fs::write(site.config(), text.replace("hold_ms", "hodl_ms")).unwrap();
    let said = site.refused_with(2);
    assert!(said.contains("selvage.toml:8") && said.contains("hodl_ms"), "{said}");
    std::fs::remove_file(site.config()).unwrap();
    let said = site.refused();
    assert!(said.contains("selvage.toml"), "{said}");
}

#[test]
fn it_makes_its_folders_and_stops_in_order() {
    for signal in ["-TERM", "-INT"] {
        let site = Site::new();
        let mut director = site.start();
        let node_dir = site.run_dir().join("node-n1").metadata().unwrap();
        assert_eq!(node_dir.permissions().mode() & 0o7777, 0o700);
        assert_eq!(node_dir.uid(), site.dir.path().metadata().unwrap().uid());
        assert_eq!(site.socket().metadata().unwrap().permissions().mode() & 0o777, 0o666);
        director.signal(signal);
        director.ends_well();
        assert!(!site.socket().exists());
        assert!(get(site.browsers, "/").is_none());
    }
}

#[test]
fn a_steward_registers_beats_dies_and_comes_back() {
    let site = Site::new();
    let _director = site.start();
    let mut steward = site.steward("n1", Incarnation::NONE);
    let life = register(&mut steward);
    let beat = NodeBeat {
        sent_ns: 42,
        sessions: 7,
        safe: [1, 6, 0],
        pids: vec![11, 12],
        counters: vec![9],
        ..NodeBeat::default()
    };
    steward.send(&ToDirector::Beat(beat), None, WAIT).unwrap();
    while receive(&mut steward) != (FromDirector::Mandate { sent_ns: 42 }) {}

    let view = site.view();
    let node = &view["nodes"][0];
    assert_eq!((node["name"].as_str(), node["state"].as_str()), (Some("n1"), Some("up")));
    assert_eq!((node["tag"].as_str(), node["incarnation"].as_u64()), (Some(&*life.tag()), Some(life.0)));
    assert_eq!((&node["sessions"], &node["pids"]), (&7.into(), &serde_json::json!([11, 12])));
    assert_eq!(view["protection"], serde_json::json!({ "0": 1, "1": 6, "2": 0 }));
    assert_eq!((&view["servers"][0]["name"], &view["servers"][0]["state"]), (&"s1".into(), &"down".into()));
    assert_eq!(site.metric("selvage_cluster_nodes_up"), 1);
    assert_eq!(site.metric("selvage_node_commits_total{node=\"n1\"}"), 9);

    let status = site.selvage(&["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains(&life.tag()) && text.contains("wanted: 2"), "{text}");
    let json = site.selvage(&["status", "--json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&json.stdout).is_ok());

    // It falls silent: the incarnation is over for good.
    until("the silent node is down", || site.view()["nodes"][0]["state"] == "down");
    loop {
        if receive(&mut steward) == (FromDirector::Over { drained: false }) {
            break;
        }
    }
    let mut late = site.steward("n1", life);
    late.send(&ToDirector::Beat(NodeBeat::default()), None, WAIT).unwrap();
    assert_eq!(receive(&mut late), FromDirector::Over { drained: false });
    assert!(register(&mut site.steward("n1", Incarnation::NONE)) > life);
}

#[test]
fn requests_reach_a_registered_node() {
    let site = Site::new();
    let _director = site.start();
    let web = TcpListener::bind(site.node).unwrap();
    let mut steward = site.steward("n1", Incarnation::NONE);
    register(&mut steward);
    let served = std::thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    });
    let answer = get(site.browsers, "/path?query").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    let request = served.join().unwrap().to_lowercase();
    assert!(request.starts_with("get /path?query http/1.1\r\n"), "{request}");
    assert!(request.contains("x-forwarded-for: 127.0.0.1"), "{request}");
    assert_eq!(site.metric("selvage_director_requests_total{result=\"served\"}"), 1);
}

#[test]
fn who_may_not_or_makes_no_sense_is_cut_off_and_counted() {
    let site = Site::new();
    let is_root = site.dir.path().metadata().unwrap().uid() == 0;
    if is_root {
        // A node of another user. Only root can give it its folder.
        site.configure("[[node]]\nname = \"n3\"\naddress = \"127.0.0.1:2\"\nuids = [4242]\n");
    }
    let _director = site.start();
    let hello = |role| {
        let mut stream = Stream::connect(&site.socket(), WAIT).unwrap();
        stream.client_hello("t", role, WAIT).unwrap_err()
    };
    let node = |name: &str| Role::Node { name: name.to_owned(), incarnation: Incarnation::NONE, pid: 0 };
    let mut bad = 3;
    assert_eq!(hello(node("n9")).kind, ErrorKind::Denied);
    assert_eq!(hello(Role::Director).kind, ErrorKind::Denied);
    assert_eq!(hello(Role::Operator).kind, ErrorKind::Denied);
    if is_root {
        bad += 1;
        assert_eq!(hello(node("n3")).kind, ErrorKind::Denied);
        assert_eq!(site.run_dir().join("node-n3").metadata().unwrap().uid(), 4242);
    }
    for bytes in
        [&b"\xff\xff\xff\xff garbage"[..], b"\x00\x00\x00\x00", b"\x04\x00\x00\x00abcd", b"\x00\x00\x90\x00"]
    {
        let mut stream = UnixStream::connect(site.socket()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // Cut off: an end or a reset, but no wait.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
        bad += 1;
    }
    // A registered one that sends nonsense later.
    let mut steward = site.steward("n1", Incarnation::NONE);
    register(&mut steward);
    let counters = vec![1; 10_000];
    steward.send(&ToDirector::Beat(NodeBeat { counters, ..NodeBeat::default() }), None, WAIT).unwrap();
    until("it is cut off", || {
        steward.recv::<FromDirector>(WAIT).is_err_and(|error| error.kind == ErrorKind::Unreachable)
    });
    bad += 1;
    until("all are counted", || site.peers_cut() == bad);
    register(&mut site.steward("n1", Incarnation::NONE));
}

#[test]
fn the_admin_api_answers_in_json() {
    let site = Site::new();
    let _director = site.start();
    let is = |answer: String, status: &str, words: &str| {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words), "{answer}");
        assert!(answer.contains("application/json"), "{answer}");
    };
    is(post(site.admin, "/admin/nodes/n9/drain", ""), "404", "no node \\\"n9\\\"");
    is(post(site.admin, "/admin/nodes/n1/drain", ""), "409", "not up");
    is(post(site.admin, "/admin/nodes/n1/undrain", ""), "200", "undrained");
    is(post(site.admin, "/admin/nodes/n1/undrain", "\r\norigin: http://evil"), "403", "web pages");
    is(get(site.admin, "/admin/nodes/n1/drain").unwrap(), "405", "use POST");
    is(get(site.admin, "/nothing").unwrap(), "404", "/admin/view");

    let output = site.selvage(&["drain", "n1"]);
    assert!(!output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "selvage: node n1 is not up\n");
    assert!(site.selvage(&["undrain", "n1"]).status.success());
}

#[test]
fn selvage_says_what_is_wrong() {
    let site = Site::new();
    let output = site.selvage(&["status"]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no director answers at") && text.lines().count() == 1, "{text}");
    let check = |file: &Path| {
        Command::new(env!("CARGO_BIN_EXE_selvage")).arg("check-config").arg(file).output().unwrap()
    };
    let output = check(&site.config());
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("2 nodes, 1 servers"));
    std::fs::write(site.config(), "[cluster]\nnam = 1\n").unwrap();
    let output = check(&site.config());
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("selvage.toml:2"));
}

#[test]
fn a_drain_over_the_real_sockets() {
    let site = Site::new();
    let mut director = site.start();
    let server = play_server(&site, 5, usize::MAX, 3);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let steward = |name| play_steward(site.steward(name, Incarnation::NONE));
    let (one, two) = (steward("n1"), steward("n2"));
    let output = site.selvage(&["drain", "n1"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "node n1: drained\n");
    assert_eq!(one.join().unwrap(), FromDirector::Over { drained: true });
    let view = site.view();
    assert_eq!((&view["nodes"][0]["state"], &view["nodes"][1]["state"]), (&"drained".into(), &"up".into()));
    assert_eq!((&view["servers"][0]["pid"], &view["servers"][0]["bytes"]), (&99.into(), &4096.into()));
    let mut steward = site.steward("n1", Incarnation::NONE);
    steward.send(&ToDirector::Register, None, WAIT).unwrap();
    assert_eq!(receive(&mut steward), FromDirector::Over { drained: true });
    assert_eq!(std::fs::read_to_string(site.run_dir().join("director.drained")).unwrap(), "n1 drained\n");
    assert!(site.selvage(&["undrain", "n1"]).status.success());
    register(&mut steward);
    // The last node that is up cannot go.
    drop(steward);
    until("n1 is down again", || site.view()["nodes"][0]["state"] == "down");
    let answer = post(site.admin, "/admin/nodes/n2/drain", "");
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("no other node"), "{answer}");
    director.signal("-TERM");
    director.ends_well();
    server.join().unwrap();
    two.join().unwrap();
}

#[test]
fn a_server_that_talks_nonsense_is_cut_off_and_the_next_one_taken() {
    let site = Site::new();
    let _director = site.start();
    let first = play_server(&site, 5, 5, 0);
    until("the first server is up", || site.view()["servers"][0]["incarnation"] == 5);
    first.join().unwrap();
    until("it is down", || site.view()["servers"][0]["state"] == "down");
    let next = play_server(&site, 6, 20, 0);
    until("the next server is up", || site.view()["servers"][0]["incarnation"] == 6);
    next.join().unwrap();
}

#[test]
fn a_restarted_director_goes_on_above_what_the_server_knows() {
    let site = Site::new();
    let mut first = site.start();
    let server = play_server(&site, 5, usize::MAX, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let mut steward = site.steward("n1", Incarnation::NONE);
    let life = register(&mut steward);
    until("the server is told", || site.view()["epoch"]["number"].as_u64() > Some(2));
    let before = site.view()["epoch"].clone();
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    server.join().unwrap();
    let _next = site.start();
    // The node has seen that epoch; nobody else is left to tell.
    let epoch = Epoch {
        term: before["term"].as_u64().unwrap() as u32,
        number: before["number"].as_u64().unwrap() as u32,
    };
    let mut steward = site.steward("n1", life);
    steward.send(&ToDirector::Resume { epoch }, None, WAIT).unwrap();
    match receive(&mut steward) {
        FromDirector::View(view) => {
            assert!(view.epoch > epoch && view.epoch.number > epoch.number, "{} and {epoch}", view.epoch);
            assert!(view.node(life).is_some());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn weights_and_maintenance_outlast_the_director() {
    let site = Site::new();
    let mut director = site.start();
    let is = |answer: String, status: &str, text: &str| {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{answer}");
    };
    let n1 = |what: &str| post(site.admin, &format!("/admin/nodes/n1/{what}"), "");
    is(n1("weight?weight=7"), "200", "\"weight\":7");
    for wrong in ["weight", "weight?weight=1001", "weight?weight=-1", "weight?of=7"] {
        is(n1(wrong), "400", "?weight=1000");
    }
    until("the director knows the cluster", || n1("maintenance").contains("in maintenance"));
    let node = |at: usize| {
        let view = site.view();
        (
            view["nodes"][at]["weight"].as_u64().unwrap(),
            view["nodes"][at]["state"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!((node(0), node(1)), ((7, "maintenance".to_owned()), (100, "down".to_owned())));
    director.signal("-TERM");
    director.ends_well();
    let _director = site.start();
    assert_eq!(node(0), (7, "maintenance".to_owned()));
    let mut steward = site.steward("n1", Incarnation::NONE);
    steward.send(&ToDirector::Register, None, WAIT).unwrap();
    assert_eq!(receive(&mut steward), FromDirector::Over { drained: true });
    is(n1("ready"), "200", "ready");
    is(n1("weight?weight=default"), "200", "\"weight\":100");
    register(&mut site.steward("n1", Incarnation::NONE));
    assert_eq!(node(0), (100, "up".to_owned()));
}
