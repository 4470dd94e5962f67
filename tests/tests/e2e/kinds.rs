//! Two kinds of web server in one cluster, nginx with the module and a C++ one: they answer alike, and
//! sessions move between them.

use bytes::Bytes;
use http::{Method, StatusCode};
use selvage_tests::admin::AdminView;
use selvage_tests::client::{Answer, Browser, Connection};
use selvage_tests::cluster::{DIRECTOR, Options, WebServer};
use selvage_tests::load::{Load, Plan};
use selvage_tests::stage::{SOON, Stage, all_find_all, customers, options};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The first node is an nginx, the second one is not.
async fn both_kinds(options: Options) -> Stage {
    let web_servers = BTreeMap::from([("n2".into(), WebServer::Httplib)]);
    Stage::with(Options { nodes: 2, web_servers, ..options }).await
}

/// What of an answer must be the same, whoever gives it.
#[derive(Debug, PartialEq)]
struct Seen {
    what: String,
    status: StatusCode,
    headers: BTreeMap<String, String>,
    body: Bytes,
}

/// What differs from node to node and from session to session is replaced by what it is.
fn seen(what: &str, node: &str, answer: &Answer) -> Seen {
    let mut headers = BTreeMap::new();
    for (name, value) in &answer.headers {
        let value = value.to_str().unwrap();
        let value = match name.as_str() {
            // The web server's own.
            "server" | "date" | "connection" | "etag" | "last-modified" | "accept-ranges" => continue,
            "selvage-node" => (if value == node { "this node" } else { value }).to_owned(),
            "selvage-elsewhere" => format!("a tag of {} characters", value.len()),
            "set-cookie" => {
                let (cookie, rest) = value.split_once(';').unwrap();
                let what = if cookie == "selvage=" { "no cookie" } else { "a cookie" };
                format!("{what};{rest}")
            }
            _ => value.to_owned(),
        };
        assert_eq!(headers.insert(name.to_string(), value), None, "{what}: {name} twice");
    }
    let mut body = answer.body.clone();
    if let Ok(text) = std::str::from_utf8(&body) {
        body = text.replace(&format!("node {node} "), "this node ").into();
    }
    let is_json = answer.headers.get("content-type").is_some_and(|kind| kind == "application/json");
    if is_json {
        // Numbers of versions have more or fewer digits.
        headers.remove("content-length");
    }
    // The answer to HEAD has none.
    if is_json && !body.is_empty() {
        let mut json = answer.json().unwrap();
        assert_eq!(json["node"], node);
        let length = json["id"].as_str().unwrap().len();
        json["id"] = format!("{length} characters").into();
        for varies in ["node", "version"] {
            json[varies] = json[varies].is_string().into();
        }
        body = json.to_string().into();
    }
    Seen { what: what.to_owned(), status: answer.status, headers, body }
}

/// Every request of the table at one node, with one browser, and what it answers.
async fn ask_everything(node: &str, address: SocketAddr, strange_cookie: &str) -> Vec<Seen> {
    let large = "x".repeat(1 << 20) + "y";
    let long_name = format!("/session/{}", "n".repeat(129));
    let table: Vec<(Method, &str, &str)> = vec![
        (Method::GET, "/session", ""),
        (Method::PUT, "/session/user", "grüße"),
        (Method::PUT, "/session/empty", ""),
        (Method::PUT, "/session/cart", &large[..100_000]),
        (Method::GET, "/session/cart", ""),
        (Method::GET, "/session/user", ""),
        (Method::HEAD, "/session/user", ""),
        (Method::HEAD, "/session", ""),
        (Method::GET, "/session/empty", ""),
        (Method::POST, "/session/visits/incr", ""),
        (Method::POST, "/session/visits/incr", "a body that nobody wants"),
        (Method::GET, "/session/visits", ""),
        (Method::POST, "/session/user/incr", ""),
        (Method::GET, "/session/", ""),
        (Method::GET, "/session/with%20space%2F", ""),
        (Method::PUT, "/session/with%20space", "encoded"),
        (Method::GET, "/session/with%20space?query=1", ""),
        (Method::DELETE, "/session/cart", ""),
        (Method::DELETE, "/session/cart", ""),
        (Method::GET, "/session/cart", ""),
        (Method::POST, "/session", "body"),
        (Method::PUT, "/session", "body"),
        (Method::POST, "/session/user", "body"),
        (Method::GET, "/session/user/incr", ""),
        (Method::OPTIONS, "/session/user", ""),
        (Method::PATCH, "/session/user", "body"),
        (Method::POST, "/session/a/b", ""),
        (Method::POST, "/session/a/incr/c", ""),
        (Method::POST, "/session/user/increase", ""),
        (Method::GET, "/sessions", ""),
        (Method::PUT, "/session/user", &large),
        (Method::PUT, "/session/user", &large[..(1 << 20) - 10]),
        (Method::PUT, &long_name, "x"),
        (Method::PUT, "/session/%ff%fe", "x"),
        (Method::GET, "/session", ""),
        (Method::POST, "/session/regenerate", "ignored"),
        (Method::PUT, "/session/regenerate", "an attribute of that name"),
        (Method::GET, "/session/regenerate", ""),
        (Method::GET, "/", ""),
        (Method::DELETE, "/session", ""),
        (Method::DELETE, "/session", ""),
        (Method::DELETE, "/session/user", ""),
        (Method::GET, "/", ""),
        (Method::DELETE, "/session", ""),
        (Method::GET, "/session/user", ""),
        (Method::DELETE, "/session", ""),
        (Method::PUT, "/session/first", "makes a session"),
        (Method::DELETE, "/session", ""),
        (Method::POST, "/session/first/incr", ""),
    ];
    let mut all = Vec::new();
    let mut browser = Browser::new(address);
    for (method, path, body) in table {
        let what = format!("{method} {}", &path[..path.len().min(40)]);
        let answer = browser.send(method, path, body.to_owned()).await;
        all.push(seen(&what, node, &answer.unwrap_or_else(|error| panic!("{node}: {what}: {error:#}"))));
    }
    // Cookies that open nothing here.
    let mut connection = Connection::to(address);
    let good = browser.cookie.unwrap().text;
    for (which, cookie) in [
        ("empty", "selvage="),
        ("wrong", "selvage=x"),
        ("forged", &format!("selvage={good}x")),
        ("other", "other=1"),
        ("the other node's", strange_cookie),
    ] {
        for (method, path) in [
            (Method::GET, "/session"),
            (Method::POST, "/session/n/incr"),
            (Method::DELETE, "/session"),
            (Method::PUT, "/session/user"),
            (Method::GET, "/"),
        ] {
            let what = format!("{method} {path} with a cookie: {which}");
            let answer = connection.send(method, path, Some(cookie), "").await.unwrap();
            all.push(seen(&what, node, &answer));
        }
    }
    all.extend(ask_by_an_old_id(node, address).await);
    all
}

/// What is asked by an id that the session had before: it shows what was, and changes nothing.
async fn ask_by_an_old_id(node: &str, address: SocketAddr) -> Vec<Seen> {
    let mut browser = Browser::new(address);
    assert_eq!(browser.put("/session/user", "guest").await.unwrap().status, StatusCode::NO_CONTENT);
    let mut parallel = Browser::with_cookie(address, browser.cookie.clone().unwrap());
    assert_eq!(browser.post("/session/regenerate").await.unwrap().status, StatusCode::OK);
    let mut all = Vec::new();
    for (method, path, expected) in [
        (Method::GET, "/session", 200),
        (Method::GET, "/session/user", 200),
        (Method::GET, "/", 200),
        (Method::PUT, "/session/user", 503),
        (Method::DELETE, "/session/user", 503),
        (Method::POST, "/session/visits/incr", 503),
        (Method::POST, "/session/regenerate", 503),
        (Method::DELETE, "/session", 503),
    ] {
        let what = format!("{method} {path} by an old id");
        let seen = seen(&what, node, &parallel.send(method, path, "eve").await.unwrap());
        assert_eq!(seen.status, expected, "{node}: {seen:?}");
        let retry = seen.headers.get("retry-after").map(String::as_str);
        assert_eq!(retry, (expected == 503).then_some("1"), "{node}: {seen:?}");
        assert!(!seen.headers.contains_key("set-cookie"), "{node}: {seen:?}");
        all.push(seen);
    }
    assert_eq!(browser.get("/session/user").await.unwrap().text(), "guest");
    all
}

fn compare(one: &[Seen], two: &[Seen]) {
    assert_eq!(one.len(), two.len());
    for (one, two) in one.iter().zip(two) {
        assert_eq!(one, two, "the answers to {}", one.what);
    }
}

/// A new session with one attribute after the other, until one is refused.
async fn fill(node: &str, address: SocketAddr) -> Seen {
    let mut answer = None;
    for _ in 0..200 {
        let put = Browser::new(address).put("/session/much", "x".repeat(900_000)).await.unwrap();
        if put.status != StatusCode::NO_CONTENT {
            answer = Some(seen("PUT into a full cache", node, &put));
            break;
        }
    }
    answer.expect("a cache that is full one day")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_answer_alike() {
    let mut options = options();
    options.tables.push_str("[session]\nwait_ms = 300\nregenerate_grace_ms = 60000\n");
    let mut stage = both_kinds(options).await;
    let [one, two] = ["n1", "n2"].map(|node| stage.node_address(node).unwrap());
    let mut cookies = Vec::new();
    for address in [one, two] {
        let answer = Connection::to(address).send(Method::GET, "/session", None, "").await.unwrap();
        cookies.push(format!("selvage={}", answer.cookie().unwrap().text));
    }
    let (first, second) =
        (ask_everything("n1", one, &cookies[1]).await, ask_everything("n2", two, &cookies[0]).await);
    compare(&first, &second);
    let statuses: Vec<u16> = first.iter().map(|seen| seen.status.as_u16()).collect();
    for status in [200, 204, 400, 404, 405, 409, 413, 421] {
        assert!(statuses.contains(&status), "no answer of the table has status {status}");
    }

    let (first, second) = (fill("n1", one).await, fill("n2", two).await);
    assert_eq!((first.status.as_u16(), &*first.headers["retry-after"]), (507, "1"));
    compare(&[first], &[second]);

    // Without a director neither joins; both say so after the time that a request may wait.
    for name in [DIRECTOR, "n1", "n2"] {
        stage.kill(name).unwrap();
    }
    let mut refusals = Vec::new();
    for (name, address) in [("n1", one), ("n2", two)] {
        stage.start_member(name).unwrap();
        let deadline = Instant::now() + SOON;
        let mut connection = Connection::to(address);
        refusals.push(loop {
            match connection.send(Method::POST, "/session/n/incr", None, "").await {
                Ok(answer) => break seen("POST before the node has joined", name, &answer),
                Err(error) => assert!(Instant::now() < deadline, "{name}: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
    }
    assert_eq!((refusals[0].status.as_u16(), &*refusals[0].headers["retry-after"]), (503, "1"));
    compare(&refusals[..1], &refusals[1..]);
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_move_between_both_kinds_of_web_server() {
    const SESSIONS: usize = 200;
    let mut stage = both_kinds(options()).await;
    let mut customers = customers(&stage, 60, 2).await;
    let has_some = |view: &AdminView, node| view.node(node).is_some_and(|node| node.sessions > 0);
    stage.until("both nodes have some", |view| has_some(view, "n1") && has_some(view, "n2")).await;
    let plan = Plan { sessions: SESSIONS, connections: 12, think: Duration::from_millis(10) };
    let load = Load::start(stage.address(), plan).await.unwrap();

    let dead = stage.incarnation("n1").await;
    let kill = stage.kill("n1").unwrap();
    let all = SESSIONS + customers.len();
    stage.until_taken_over(dead, all, 2).await;
    customers = all_find_all(&stage, &customers).await;
    stage.restart(&["n1"]).await;

    // No request fails when the C++ server is drained and nginx takes everything back.
    stage.admin().drain("n2").await.unwrap();
    let taken = |view: &AdminView| view.node("n1").is_some_and(|node| node.sessions == all as u64);
    stage.until("n2 is drained", |view| view.node_is("n2", "drained") && taken(view)).await;
    customers = all_find_all(&stage, &customers).await;
    stage.admin().undrain("n2").await.unwrap();
    stage.until("n2 is back", |view| view.node_is("n2", "up")).await;

    // And back again by the other kind's death.
    let ledger = load.stop().await.unwrap();
    let strange = ledger.failures_outside(kill.sent, kill.gone);
    assert!(strange.is_empty(), "{} requests failed that were not under way: {strange:?}", strange.len());
    let verdict = ledger.verify(stage.address(), 12).await.unwrap();
    assert!(verdict.is_clean(), "{verdict:?}");
    let dead = stage.incarnation("n1").await;
    stage.kill("n1").unwrap();
    stage.until_taken_over(dead, all, 2).await;
    all_find_all(&stage, &customers).await;
    stage.end();
}

/// SIGTERM in the middle of many requests: each that was begun is answered, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_cpp_server_ends_gracefully() {
    let mut stage = both_kinds(options()).await;
    let address = stage.node_address("n2").unwrap();
    let mut browsers = Vec::new();
    for _ in 0..8 {
        browsers.push(tokio::spawn(async move {
            let (mut browser, mut counted) = (Browser::new(address), 0);
            // Until the server accepts nobody any more, or has closed the idle connection.
            while let Ok(answer) = browser.post("/session/n/incr").await {
                counted += 1;
                assert_eq!(answer.number(), Some(counted), "{}: {}", answer.status, answer.text());
            }
            (counted, browser.cookie.unwrap())
        }));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.stop_member("n2").unwrap(), "it ends by itself, with idle connections open");
    let site = stage.address();
    for browser in browsers {
        let (counted, cookie) = browser.await.unwrap();
        assert!(counted > 0);
        let deadline = Instant::now() + SOON;
        loop {
            let answer = Browser::with_cookie(site, cookie.clone()).get("/session/n").await.unwrap();
            if answer.status.is_success() {
                assert_eq!(answer.number(), Some(counted), "every answered increment, and no other");
                break;
            }
            assert!(Instant::now() < deadline, "{}: {}", answer.status, answer.text());
        }
    }
    stage.end();
}
