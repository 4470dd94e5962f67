//! Sessions over the admin API and by the command, with nodes that the test plays; and applications.

use crate::site::{Site, WAIT, exchange, play_host, play_server, play_steward, receive, until};
use selvage_fabric::control::message::{
    AttributeFacts, AttributeKind, AttributeValue, Doomed, Errand, ErrandOutcome, FromDirector, Refusal,
    Role, SessionDetail, SessionFacts, ToDirector,
};
use selvage_fabric::control::stream::Stream;
use selvage_fabric::ident::{Incarnation, SessionId, Version};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Output;

/// Sessions of a played node: their owners.
type Sessions = BTreeMap<SessionId, String>;

fn facts(id: SessionId, owner: &str) -> SessionFacts {
    SessionFacts {
        id,
        owner: Some(owner.to_owned()),
        version: Version { epoch: 3, counter: 9 },
        copies: 2,
        created_ms: 1_000,
        expiry_ms: 2_000,
        absolute_ms: 3_000,
        bytes: 512,
        locked: false,
    }
}

/// What a node does that hosts these sessions.
fn hosting(mut sessions: Sessions) -> impl FnMut(Errand) -> Option<ErrandOutcome> + Send {
    move |errand| {
        Some(match errand {
            Errand::List { owner, cursor, limit } => {
                let meant = sessions.iter().filter(|(_, of)| owner.as_ref().is_none_or(|owner| *of == owner));
                let rest: Vec<SessionFacts> =
                    meant.skip(cursor as usize).map(|(id, of)| facts(*id, of)).collect();
                let next = (rest.len() > limit as usize).then(|| cursor + limit);
                ErrandOutcome::Listed { sessions: rest.into_iter().take(limit as usize).collect(), next }
            }
            Errand::Show { id, values } => ErrandOutcome::Shown(sessions.get(&id).map(|owner| {
                let value = values.then(|| AttributeValue::Text("secret".to_owned()));
                let kind = AttributeKind::Text;
                let attribute = AttributeFacts { name: "card".to_owned(), kind, bytes: 6, value };
                Box::new(SessionDetail { facts: facts(id, owner), attributes: vec![attribute] })
            })),
            Errand::Destroy(doomed) => {
                let before = sessions.len();
                sessions.retain(|id, owner| match &doomed {
                    Doomed::Session(doomed) => id != doomed,
                    Doomed::Owner(doomed) => owner != doomed,
                });
                ErrandOutcome::Destroyed { sessions: (before - sessions.len()) as u64, left: None }
            }
        })
    }
}

fn id(number: u8) -> SessionId {
    SessionId([number; 16])
}

fn good(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A failure with this code: its one line.
fn bad(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// One request of the admin API, as an operator's program would send it.
fn admin(site: &Site, method: &str, path: &str, more: &str) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nx-test: 1{more}");
    // The test's usual host is a name, so the address goes first.
    let address = site.admin;
    let answer = exchange_with_host(address, &head, &address.to_string());
    (answer[9..12].parse().unwrap(), answer)
}

fn exchange_with_host(address: std::net::SocketAddr, head: &str, host: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(format!("{head}\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn sessions_are_listed_shown_and_killed_wherever_they_are() {
    let site = Site::new();
    let _director = site.start();
    let _server = play_server(&site, 7, 100_000, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let ones: Sessions = (1..=5).map(|at| (id(at), if at == 5 { "bob" } else { "ann" }.to_owned())).collect();
    let twos = Sessions::from([(id(6), "ann".to_owned()), (id(7), "carl \u{fc}/%".to_owned())]);
    let _one = play_host(site.steward("n1", Incarnation::NONE), hosting(ones));
    let _two = play_host(site.steward("n2", Incarnation::NONE), hosting(twos));

    let page = good(&site.selvage(&["sessions", "list", "--json"]));
    let listed = page["sessions"].as_array().unwrap();
    assert_eq!((listed.len(), &page["next"], &page["missing"]), (7, &Value::Null, &json!([])));
    assert_eq!(listed[0]["id"], id(1).to_string());
    assert_eq!((&listed[6]["node"], &listed[6]["version"]), (&json!("n2"), &json!("3.9")));
    let said = text(&site.selvage(&["sessions", "list", "--owner", "ann"]));
    assert!(said.lines().count() == 6 && said.contains("n2") && !said.contains("bob"), "{said}");
    let said = text(&site.selvage(&["sessions", "list", "--limit", "3"]));
    let cursor = said.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert!(said.contains("there are more: --cursor n1.3"), "{said}");
    let page = good(&site.selvage(&["sessions", "list", "--json", "--cursor", &cursor]));
    assert_eq!(page["sessions"].as_array().unwrap().len(), 4);
    let page = good(&site.selvage(&["sessions", "list", "--json", "--all", "--node", "n2"]));
    assert_eq!(page["sessions"].as_array().unwrap().len(), 2);
    assert!(text(&site.selvage(&["sessions", "list", "--owner", "nobody"])).contains("no sessions"));

    let six = id(6).to_string();
    let said = text(&site.selvage(&["sessions", "show", &six]));
    for word in ["n2", "ann", "3.9", "card", "text"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    assert!(!said.contains("secret"), "values must be asked for: {said}");
    assert!(text(&site.selvage(&["sessions", "show", "--values", &six])).contains("secret"));
    let shown = good(&site.selvage(&["sessions", "show", "--values", "--json", &six]));
    assert_eq!(shown["attributes"][0]["value"], "secret");
    let said = bad(&site.selvage(&["sessions", "show", &id(9).to_string()]), 1);
    assert!(said.contains("no node hosts"), "{said}");

    let said = bad(&site.selvage(&["sessions", "kill", &six]), 2);
    assert!(said.contains("--yes"), "nobody can be asked: {said}");
    assert_eq!(text(&site.selvage(&["sessions", "kill", "--yes", &six])), "1 session was destroyed\n");
    assert_eq!(
        good(&site.selvage(&["sessions", "kill", "--yes", &six, "--json"])),
        json!({ "destroyed": 0 })
    );
    let owner = ["sessions", "kill", "--yes", "--json", "--owner"];
    assert_eq!(good(&site.selvage(&[&owner[..], &["ann"]].concat())), json!({ "destroyed": 4 }));
    assert_eq!(good(&site.selvage(&[&owner[..], &["carl \u{fc}/%"]].concat())), json!({ "destroyed": 1 }));
    let page = good(&site.selvage(&["sessions", "list", "--json"]));
    assert_eq!(page["sessions"].as_array().unwrap().len(), 1, "bob's");
}

#[test]
fn what_is_not_certain_is_said() {
    let site = Site::new();
    let _director = site.start();
    let _server = play_server(&site, 7, 100_000, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let left = "requests have the locks of 1 sessions: x".to_owned();
    let locked = move |errand| match errand {
        Errand::Destroy(_) => Some(ErrandOutcome::Destroyed { sessions: 2, left: Some(left.clone()) }),
        _ => Some(ErrandOutcome::Failed("no".to_owned())),
    };
    let _one = play_host(site.steward("n1", Incarnation::NONE), locked);
    let _two = play_host(site.steward("n2", Incarnation::NONE), |_| None);
    let kill = ["sessions", "kill", "--yes", "--within", "1", "--owner", "ann"];
    let said = bad(&site.selvage(&kill), 1);
    assert!(said.contains("2 sessions were destroyed") && said.contains("n2 has not answered"), "{said}");
    assert!(said.contains("n1: requests have the locks"), "{said}");
    let (status, answer) = admin(&site, "DELETE", "/admin/owners/ann/sessions?within_ms=100", "");
    assert!(status == 503 && answer.contains("n2"), "{answer}");
    let (status, answer) = admin(&site, "GET", "/admin/sessions?within_ms=200&node=n1", "");
    assert!(status == 200 && answer.contains("the sessions of n1: no"), "{answer}");
    let (status, answer) = admin(&site, "GET", &format!("/admin/sessions/{}?within_ms=200", id(1)), "");
    assert!(status == 503 && answer.contains("node n1: no") && answer.contains("n2"), "{answer}");
    let said =
        bad(&site.selvage(&["--json", "sessions", "kill", "-y", "--within", "1", "--owner", "ann"]), 1);
    assert!(
        serde_json::from_str::<Value>(&said).unwrap()["error"].as_str().unwrap().contains("n2"),
        "{said}"
    );
}

/// A list that is not complete: what was printed.
fn partial(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_list_that_is_not_complete_says_so_in_every_form() {
    let site = Site::new();
    let _director = site.start();
    let _server = play_server(&site, 7, 100_000, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let _one = play_host(site.steward("n1", Incarnation::NONE), |_| {
        Some(ErrandOutcome::Failed("its cache is broken".to_owned()))
    });
    let twos: Sessions = (1..=3).map(|at| (id(at), "ann".to_owned())).collect();
    let _two = play_host(site.steward("n2", Incarnation::NONE), hosting(twos));
    let list = ["sessions", "list", "--limit", "2"];
    let said = partial(&site.selvage(&list));
    let missing = "the sessions of n1: its cache is broken";
    assert!(
        said.contains(&format!("not in this list: {missing}")) && said.contains("there are more"),
        "{said}"
    );
    for more in [&list[..], &["sessions", "list", "--all"]] {
        let page: Value =
            serde_json::from_str(&partial(&site.selvage(&[more, &["--json"]].concat()))).unwrap();
        assert_eq!(page["missing"], json!([missing]), "{more:?}");
        assert_eq!(page["sessions"].as_array().unwrap().len(), if more == list { 2 } else { 3 });
    }
    good(&site.selvage(&["sessions", "list", "--json", "--node", "n2"]));
    good(&site.selvage(&["sessions", "list", "--json", "--cursor", "n2.1"]));
    let said = partial(&site.selvage(&["sessions", "list", "--cursor", "n11.4"]));
    assert!(said.contains("the rest of the sessions of n11, which is not up any more"), "{said}");
}

#[test]
fn a_nodes_list_that_does_not_go_on_ends_and_is_said() {
    let site = Site::new();
    let _director = site.start();
    let _server = play_server(&site, 7, 100_000, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let _one = play_host(site.steward("n1", Incarnation::NONE), |errand| match errand {
        Errand::List { cursor, .. } => {
            Some(ErrandOutcome::Listed { sessions: vec![facts(id(1), "ann")], next: Some(cursor.min(5)) })
        }
        other => panic!("{other:?}"),
    });
    for all in [&["--json"][..], &["--json", "--all"]] {
        let said = partial(&site.selvage(&[&["sessions", "list"], all].concat()));
        let page: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(page["sessions"].as_array().unwrap().len(), 1);
        let missing = "the rest of the sessions of n1: its list does not go on at 0";
        assert_eq!(page["missing"], json!([missing]));
    }
}

#[test]
fn requests_that_make_no_sense_or_come_from_pages_are_refused() {
    let site = Site::new();
    let _director = site.start();
    let one = id(1);
    for (method, path, more, status, word) in [
        ("GET", "/admin/sessions", "\r\norigin: http://evil.example", 403, "web pages"),
        ("DELETE", &format!("/admin/sessions/{one}") as &str, "\r\norigin: null", 403, "web pages"),
        ("GET", "/admin/sessions/short", "", 400, "no session id"),
        ("GET", "/admin/sessions?limit=0", "", 400, "1 to 1000"),
        ("GET", "/admin/sessions?limit=many", "", 400, "no number"),
        ("GET", "/admin/sessions?within_ms=60001", "", 400, "60000 at most"),
        ("DELETE", "/admin/owners/ann/sessions?within_ms=4294967295", "", 400, "60000 at most"),
        ("GET", "/admin/sessions?cursor=x", "", 400, "no cursor"),
        ("GET", "/admin/sessions?what=x", "", 400, "not known"),
        ("GET", "/admin/sessions?node=n9", "", 404, "n9"),
        ("DELETE", "/admin/owners//sessions", "", 400, "1 to 128"),
        ("DELETE", "/admin/owners/%ff/sessions", "", 400, "UTF-8"),
        ("POST", "/admin/sessions", "\r\ncontent-length: 0", 405, "allow: GET"),
        ("PUT", &format!("/admin/sessions/{one}"), "\r\ncontent-length: 0", 405, "allow: GET, DELETE"),
        ("GET", "/admin/owners/ann/sessions", "", 405, "allow: DELETE"),
        ("PUT", "/admin/reload", "\r\ncontent-length: 0", 405, "allow: GET, POST"),
    ] {
        let (said, answer) = admin(&site, method, path, more);
        assert!(said == status && answer.contains(word), "{method} {path}: {answer}");
    }
    // A page whose own name was made to stand for this host.
    let rebound = exchange(site.admin, "GET /admin/sessions HTTP/1.1").unwrap();
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
    for (arguments, word) in [
        (&["sessions", "kill"][..], "--owner"),
        (&["sessions", "show", "x"], "26 characters"),
        (&["sessions", "list", "--limit", "0"], "1..=1000"),
        (&["sessions", "kill", "--owner", "a", "--within", "0"], "1..=60"),
        (&["drain", "n1", "--within", "0"], "1..=3600"),
        (&["weight", "n1", "heavy"], "?weight=default"),
        (&["status", "--admin", "ftp://x"], "http://"),
        (&["top"], "--batch"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = site.selvage(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn a_director_is_given_the_time_that_was_said_and_a_little_more() {
    let site = Site::new();
    // It takes calls, and answers none.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", silent.local_addr().unwrap());
    std::thread::scope(|scope| {
        for command in [&["drain", "n1"][..], &["sessions", "kill", "--owner=a", "-y"]] {
            let (site, more) = (&site, ["--within", "1", "--admin", &admin]);
            scope.spawn(move || {
                let said = bad(&site.selvage(&[command, &more].concat()), 3);
                assert!(said.contains("does not answer within 6 s"), "{said}");
                assert_eq!(said.contains("the hand-over goes on"), command[0] == "drain", "{said}");
            });
        }
    });
}

/// An application's connection after its hello.
fn application(site: &Site, name: &str) -> Stream {
    let mut stream = Stream::connect(&site.socket(), WAIT).unwrap();
    stream.client_hello("t", Role::Application { name: name.to_owned(), pid: 1 }, WAIT).unwrap();
    stream
}

#[test]
fn an_application_has_an_owners_sessions_destroyed() {
    let site = Site::new();
    let _director = site.start();
    let _server = play_server(&site, 7, 100_000, 0);
    until("the server is up", || site.view()["servers"][0]["state"] == "up");
    let sessions = Sessions::from([(id(1), "ann".to_owned()), (id(2), "bob".to_owned())]);
    let _one = play_host(site.steward("n1", Incarnation::NONE), hosting(sessions));
    let destroy = |owner: &str, within_ms| ToDirector::DestroyOwner { owner: owner.to_owned(), within_ms };
    let mut stream = application(&site, "n2");
    stream.send(&destroy("ann", 8000), None, WAIT).unwrap();
    assert_eq!(receive(&mut stream), FromDirector::OwnerDestroyed { sessions: 1 });
    assert!(stream.recv::<FromDirector>(WAIT).is_err(), "one request, and it is over");
    // While a node does not answer, nothing is certain.
    let _two = play_host(site.steward("n2", Incarnation::NONE), |_| None);
    let mut stream = application(&site, "n1");
    stream.send(&destroy("bob", 300), None, WAIT).unwrap();
    let said = receive(&mut stream);
    let FromDirector::Refused(Refusal::NotYet(why)) = &said else { panic!("{said:?}") };
    assert!(why.contains("n2"), "{why}");
}

#[test]
fn who_is_no_application_is_cut_off() {
    let site = Site::new();
    let _director = site.start();
    for message in [ToDirector::Register, ToDirector::DestroyOwner { owner: "x".repeat(129), within_ms: 10 }]
    {
        let mut stream = application(&site, "n1");
        stream.send(&message, None, WAIT).unwrap();
        assert!(stream.recv::<FromDirector>(WAIT).is_err(), "{message:?}");
    }
    let mut stream = Stream::connect(&site.socket(), WAIT).unwrap();
    let stranger = Role::Application { name: "n9".to_owned(), pid: 1 };
    assert!(stream.client_hello("t", stranger, WAIT).is_err());
    let cut = |reason: &str| {
        site.metric(&format!("selvage_director_control_peers_cut_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!((cut("garbage"), cut("denied")), (2, 1));
    // A steward that asks what applications ask is not heard.
    let steward = play_steward(site.steward("n1", Incarnation::NONE));
    until("it is up", || site.view()["nodes"][0]["state"] == "up");
    drop(steward);
}

#[test]
fn whatever_else_answers_is_no_director() {
    let site = Site::new();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", other.local_addr().unwrap());
    let _shop = std::thread::spawn(move || {
        use std::io::{Read, Write};
        for (at, stream) in other.incoming().take(3).enumerate() {
            let mut stream = stream.unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            let (status, body) = match at {
                0 => ("409 Conflict", r#"{"error":"no\u001b[2J"}"#),
                _ => ("200 OK", "hello"),
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).unwrap();
        }
    });
    let said = bad(&site.selvage(&["drain", "n1", "--admin", &admin]), 1);
    assert_eq!(said, "selvage: no\u{fffd}[2J\n", "it commands no terminal");
    for form in [&["status"][..], &["status", "--json"]] {
        let said = bad(&site.selvage(&[form, &["--admin", &admin]].concat()), 1);
        assert!(said.contains("answers otherwise than a director"), "{said}");
    }
}
