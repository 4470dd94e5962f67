//! The nginx module in the packaged nginx, with two workers per node, against a real cluster.

mod support;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::cluster::Cluster;
use support::http::Browser;
use support::{Tool, library_dir};

/// The module, built once for this program.
fn module() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx/build.sh");
            let out = library_dir().join("nginx-module");
            let said = Tool::at(&script).arg(&out).arg(library_dir()).succeed();
            PathBuf::from(said.trim())
        })
        .clone()
}

fn nginx() -> &'static Path {
    let known = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"].map(Path::new);
    known.into_iter().find(|path| path.is_file()).expect("nginx is missing: apt-get install nginx-light")
}

fn configuration(cluster: &Cluster, node: &str, module: &Path) -> PathBuf {
    let dir = cluster.dir().join(format!("nginx-{node}"));
    std::fs::create_dir_all(dir.join("page")).expect("a folder");
    std::fs::write(dir.join("page/index.html"), "<p>hello</p>\n").expect("the page");
    // Workers that stay the user that runs the test: the node's user, by the configuration's default.
    let uid = Tool::find("id", "apt-get install coreutils").arg("-u").succeed();
    let user = if uid.trim() == "0" { "user root root;" } else { "" };
    let text = format!(
        "load_module {module}; {user} worker_processes 2; daemon off;\n\
         pid {dir}/pid; error_log stderr notice;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
         fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         selvage {config} {node}; selvage_session create; types {{ text/html html; }}\n\
         server {{ listen {address}; root {dir}/page;\n\
         location / {{ index index.html; }}\n\
         location /off {{ selvage_session off; return 200 none; }}\n\
         location /on {{ selvage_session on; empty_gif; }}\n\
         location /session {{ selvage_api; client_max_body_size 32m; client_body_buffer_size 8k; }}\n\
         location /known {{ selvage_session on; selvage_api; }} }} }}\n",
        module = module.display(),
        dir = dir.display(),
        config = cluster.config_path().display(),
        address = cluster.address(node),
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, text).expect("nginx.conf");
    path
}

/// Starts nginx as a node and waits until it has joined.
fn serve(cluster: &mut Cluster, node: &str) -> u32 {
    let conf = configuration(cluster, node, &module());
    let log = std::fs::File::create(cluster.dir().join(format!("nginx-{node}.log"))).expect("a log");
    let process: Child = Command::new(nginx())
        .arg("-c")
        .arg(&conf)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("nginx starts");
    let pid = process.id();
    cluster.keep(process);
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        assert!(Instant::now() < end, "nginx did not come up:\n{}", cluster.logs());
        std::thread::sleep(Duration::from_millis(20));
        if std::net::TcpStream::connect(cluster.address(node)).is_ok()
            && Browser::at(cluster.address(node)).get("/session").status == 200
        {
            return pid;
        }
    }
}

fn one_node() -> (Cluster, Browser) {
    let mut cluster = Cluster::start();
    serve(&mut cluster, "n1");
    let browser = Browser::at(cluster.address("n1"));
    (cluster, browser)
}

#[test]
fn a_session_is_made_changed_shown_and_destroyed() {
    let (_cluster, mut browser) = one_node();
    let answer = browser.get("/session");
    assert_eq!((answer.status, answer.header("selvage-node")), (200, Some("n1")), "{answer:?}");
    assert_eq!(answer.header("selvage-copies"), Some("2"));
    let first = answer.json();
    assert_eq!(first["attributes"], serde_json::json!({}));
    assert_eq!((&first["node"], &first["copies"]), (&"n1".into(), &2.into()));
    assert!(browser.cookie.as_ref().expect("a cookie").contains(first["id"].as_str().expect("an id")));

    let answer = browser.send("PUT", "/session/user", Some("grüße".as_bytes()));
    assert_eq!((answer.status, answer.header("selvage-copies")), (204, Some("2")), "{answer:?}");
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(browser.send("PUT", "/session/raw", Some(&[0, 255, 7])).status, 204);
    assert_eq!(browser.send("PUT", "/session/empty", Some(b"")).status, 204);
    for expected in ["1\n", "2\n", "3\n"] {
        let answer = browser.send("POST", "/session/visits/incr", None);
        assert_eq!((answer.status, answer.text()), (200, expected));
        assert_eq!(answer.header("selvage-copies"), Some("2"));
    }

    let answer = browser.get("/session/user");
    assert_eq!((answer.status, answer.text()), (200, "grüße"));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let answer = browser.get("/session/raw");
    assert_eq!((answer.status, &answer.body[..]), (200, &[0, 255, 7][..]));
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let answer = browser.send("HEAD", "/session/user", None);
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("7")));
    assert_eq!(browser.get("/session/visits").text(), "3");
    assert_eq!(browser.get("/session/empty").text(), "");

    let whole = browser.get("/session/").json();
    assert_eq!(whole["id"], first["id"]);
    let expected =
        serde_json::json!({ "empty": "", "raw": { "base64": "AP8H" }, "user": "grüße", "visits": 3 });
    assert_eq!(whole["attributes"], expected);

    assert_eq!(browser.send("DELETE", "/session/raw", None).status, 204);
    assert_eq!(browser.send("DELETE", "/session/raw", None).status, 404);
    assert_eq!(browser.get("/session/raw").status, 404);

    let old = browser.cookie.clone();
    let answer = browser.send("DELETE", "/session", None);
    assert_eq!(answer.status, 204, "{answer:?}");
    assert!(answer.header("set-cookie").expect("cleared").contains("Max-Age=0"), "{answer:?}");
    assert_eq!(browser.cookie, None);
    browser.cookie = old.clone();
    let answer = browser.get("/known/user");
    assert_eq!((answer.status, &browser.cookie), (404, &None), "gone, and its cookie cleared: {answer:?}");
    browser.cookie = old.clone();
    let again = browser.get("/session").json();
    assert_eq!(again["attributes"], serde_json::json!({}));
    assert_ne!(again["id"], first["id"], "gone is gone");
    assert_ne!(browser.cookie, old);
}

#[test]
fn regenerate_gives_a_new_id_and_keeps_the_data() {
    let (_cluster, mut browser) = one_node();
    assert_eq!(browser.send("PUT", "/session/user", Some(b"ada")).status, 204);
    let before = browser.get("/session").json();
    let old = browser.cookie.clone();
    let answer = browser.send("POST", "/session/regenerate", Some(b"ignored"));
    assert_eq!((answer.status, answer.header("selvage-copies")), (200, Some("2")), "{answer:?}");
    let after = answer.json();
    assert_ne!(after["id"], before["id"]);
    assert_eq!(after["attributes"], before["attributes"]);
    assert_ne!(browser.cookie, old);
    assert_eq!(browser.get("/session/user").text(), "ada");
    browser.cookie = old;
    assert_eq!(browser.get("/known/user").status, 404, "the old id is gone");
    // An attribute may have that name: only POST means the act.
    assert_eq!(browser.send("PUT", "/session/regenerate", Some(b"x")).status, 204);
    assert_eq!(browser.get("/session/regenerate").text(), "x");
}

#[test]
fn a_wrong_or_foreign_cookie_is_no_cookie() {
    let (_cluster, mut browser) = one_node();
    browser.get("/session");
    let good = browser.cookie.clone().expect("a cookie");
    let other = if good.ends_with('a') { 'b' } else { 'a' };
    let forged = format!("{}{other}", &good[..good.len() - 1]);
    let others = ["selvage=", "selvage=x", &forged, "selvage=\u{1}\u{ff}", "PHPSESSID=abc"];
    for cookie in others {
        browser.cookie = Some(cookie.to_owned());
        let answer = browser.get("/session");
        assert_eq!(answer.status, 200, "{cookie}: {answer:?}");
        assert_ne!(answer.json()["id"].as_str().map(|id| good.contains(id)), Some(true), "{cookie}");
        assert_ne!(browser.cookie.as_deref(), Some(cookie), "{cookie}: a new one");
        browser.cookie = Some(cookie.to_owned());
        assert_eq!(browser.get("/known").status, 404, "{cookie}");
    }
}

#[test]
fn an_ordinary_location_gives_the_cookie_and_then_leaves_it_alone() {
    let (_cluster, mut browser) = one_node();
    // The index is reached by an internal redirect, which must not make a second session.
    let answer = browser.get("/");
    assert_eq!((answer.status, answer.text()), (200, "<p>hello</p>\n"));
    let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    assert_eq!(cookies.count(), 1, "{answer:?}");
    assert_eq!(answer.header("selvage-node"), Some("n1"));
    let id = browser.get("/session").json()["id"].clone();
    assert!(browser.cookie.as_ref().expect("a cookie").contains(id.as_str().expect("an id")));
    let answer = browser.get("/");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    let answer = browser.get("/nothing-here");
    assert_eq!((answer.status, answer.header("set-cookie")), (404, None));

    let mut stranger = browser.go_to(browser.address());
    stranger.cookie = None;
    let answer = stranger.get("/off");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    let answer = stranger.get("/on");
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    assert_eq!(browser.send("DELETE", "/session", None).status, 204);
}

#[test]
fn bad_requests_get_clear_answers_and_change_nothing() {
    let (_cluster, mut browser) = one_node();
    assert_eq!(browser.send("PUT", "/session/word", Some(b"hello")).status, 204);
    let before = browser.get("/session").json();

    for (method, path, allow) in [
        ("POST", "/session", "GET, HEAD, DELETE"),
        ("PUT", "/session", "GET, HEAD, DELETE"),
        ("POST", "/session/word", "GET, HEAD, PUT, DELETE"),
        ("GET", "/session/word/incr", "POST"),
        ("OPTIONS", "/session/word", "GET, HEAD, PUT, DELETE"),
    ] {
        let answer = browser.send(method, path, Some(b"body"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    for path in ["/session/a/b", "/session/a/incr/c", "/session/word/increase", "/sessions", "/session//incr"]
    {
        let answer = browser.send("POST", path, None);
        assert!([404, 405].contains(&answer.status), "{path}: {answer:?}");
    }
    let answer = browser.send("POST", "/session/word/incr", None);
    assert_eq!((answer.status, answer.text()), (409, "this attribute is not a whole number\n"));

    // Over the test cluster's limit of 256 KiB, by the declared length and by what came chunked.
    let large = vec![b'x'; 262_145];
    let answer = browser.send("PUT", "/session/word", Some(&large));
    assert_eq!(
        (answer.status, answer.text()),
        (413, "the body has 262145 bytes, a session at most 262144\n")
    );
    let head = browser.head("PUT", "/session/word", "Transfer-Encoding: chunked\r\n");
    let mut chunked = head.into_bytes();
    chunked.extend_from_slice(format!("{:x}\r\n", large.len()).as_bytes());
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    browser.write(&chunked);
    let answer = browser.answer(false);
    assert_eq!(
        (answer.status, answer.text()),
        (413, "the body has 262145 bytes, a session at most 262144\n")
    );
    // The body fits, the session with it does not: the library says so, with both numbers.
    let answer = browser.send("PUT", "/session/other", Some(&large[..262_140]));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("262144"), "{answer:?}");
    let name = "n".repeat(129);
    let answer = browser.send("PUT", &format!("/session/{name}"), Some(b"x"));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("129") && answer.text().contains("128"), "{answer:?}");
    let answer = browser.send("PUT", "/session/%ff%fe", Some(b"x"));
    assert_eq!(answer.status, 400, "{answer:?}");

    let after = browser.get("/session").json();
    assert_eq!(after["attributes"], before["attributes"], "the old version is intact");
    assert_eq!(after["id"], before["id"]);
}

#[test]
fn bodies_in_files_slow_bodies_and_pipelines() {
    let (_cluster, mut browser) = one_node();
    browser.get("/session");
    // Larger than client_body_buffer_size, so that nginx keeps it in a file.
    let large: Vec<u8> = (0..200_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    assert_eq!(browser.send("PUT", "/session/large", Some(&large)).status, 204);
    assert_eq!(browser.get("/session/large").body, large);

    // While one browser's body dawdles, its session is not locked.
    let mut slow = browser.go_to(browser.address());
    let head = slow.head("PUT", "/session/slow", "Content-Length: 8\r\n");
    slow.write(format!("{head}half").as_bytes());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    slow.write(b"half");
    assert_eq!(slow.answer(false).status, 204);
    assert_eq!(browser.get("/session/slow").text(), "halfhalf");

    // Many requests at once on one connection are answered in order.
    let one = browser.head("POST", "/session/n/incr", "Content-Length: 0\r\n");
    browser.write(one.repeat(50).as_bytes());
    for expected in 2..=51 {
        assert_eq!(browser.answer(false).text(), format!("{expected}\n"));
    }
}

#[test]
fn many_connections_share_one_session_fairly() {
    let (_cluster, mut browser) = one_node();
    browser.get("/session");
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut one = browser.go_to(browser.address());
                for _ in 0..25 {
                    assert_eq!(one.send("POST", "/session/n/incr", None).status, 200);
                }
            });
        }
    });
    assert_eq!(browser.get("/session/n").text(), "300");
}

#[test]
fn clients_that_leave_in_the_middle_cost_nothing() {
    let (_cluster, mut browser) = one_node();
    browser.get("/session");
    for _ in 0..40 {
        let mut gone = browser.go_to(browser.address());
        let request = gone.head("POST", "/session/n/incr", "Content-Length: 0\r\n");
        gone.write(request.as_bytes());
    }
    // What they began ends by itself, each at most once, and the lock is free again.
    let first: u32 = browser.send("POST", "/session/n/incr", None).text().trim().parse().expect("a number");
    assert!((1..=41).contains(&first), "{first}");
    let second: u32 = browser.send("POST", "/session/m/incr", None).text().trim().parse().expect("a number");
    assert_eq!(second, 1);
}

#[test]
fn a_killed_worker_loses_nothing_that_was_acked() {
    let (cluster, mut browser) = one_node();
    browser.get("/session");
    let master = cluster.last_pid();
    let mut acked = 0_u32;
    for round in 0..6 {
        // Both workers work on the session, so that the one that is killed may hold its lock.
        let (mut one, mut two) = (browser.go_to(browser.address()), browser.go_to(browser.address()));
        for _ in 0..10 {
            one.write(one.head("POST", "/session/n/incr", "").as_bytes());
            two.write(two.head("POST", "/session/n/incr", "").as_bytes());
            acked +=
                [one.answer(false), two.answer(false)].iter().filter(|answer| answer.status == 200).count()
                    as u32;
        }
        let workers =
            Tool::find("pgrep", "apt-get install procps").args(["-P", &master.to_string()]).succeed();
        let worker = workers.split_whitespace().nth(round % 2).expect("two workers");
        one.write(one.head("POST", "/session/n/incr", "").as_bytes());
        Tool::find("kill", "apt-get install procps").args(["-9", worker]).succeed();
        let count: u32 =
            browser.go_to(browser.address()).until_answered("/session/n").text().parse().expect("a number");
        assert!(count == acked || count == acked + 1, "{count} counted, {acked} acked");
        acked = count;
    }
}

#[test]
fn a_session_of_another_node_is_elsewhere() {
    let (mut cluster, mut browser) = one_node();
    serve(&mut cluster, "n2");
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    let tag = browser.cookie.as_ref().expect("a cookie").split('-').nth(1).expect("a tag").to_owned();
    let mut strayed = browser.go_to(cluster.address("n2"));
    for (method, path) in
        [("GET", "/session"), ("POST", "/session/n/incr"), ("DELETE", "/session"), ("GET", "/")]
    {
        let answer = strayed.send(method, path, None);
        assert_eq!(
            (answer.status, answer.header("selvage-elsewhere")),
            (421, Some(&*tag)),
            "{method} {path}"
        );
        assert_eq!(answer.header("set-cookie"), None, "{method} {path}");
    }
    let answer = strayed.send("PUT", "/session/n", Some(b"changed"));
    assert_eq!((answer.status, answer.header("selvage-elsewhere")), (421, Some(&*tag)));
    // A large body: the answer comes before the body was sent.
    let head = strayed.head("PUT", "/session/n", "Content-Length: 200000\r\n");
    strayed.write(head.as_bytes());
    assert_eq!(strayed.answer(false).status, 421);
    assert_eq!(browser.get("/session/n").text(), "1", "nothing was changed");
}

#[test]
fn a_reload_and_a_graceful_stop_lose_no_session() {
    let (mut cluster, mut browser) = one_node();
    assert_eq!(browser.send("POST", "/session/n/incr", None).text(), "1\n");
    let address = browser.address();
    cluster.signal_last("HUP");
    let end = Instant::now() + Duration::from_secs(10);
    for expected in 2.. {
        let mut one = browser.go_to(address);
        assert_eq!(one.send("POST", "/session/n/incr", None).text(), format!("{expected}\n"));
        if Instant::now() > end || expected == 60 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = cluster.signal_last("QUIT").wait().expect("nginx ends");
    assert!(status.success(), "{status}");
    assert_eq!(cluster.segments(), [""; 0], "the last worker out leaves nothing in /dev/shm");
    let log = cluster.logs();
    assert!(!log.contains("[alert]") && !log.contains("[emerg]") && !log.contains("[crit]"), "{log}");
}

#[test]
fn nginx_says_what_is_wrong_with_a_configuration() {
    let cluster = Cluster::start();
    let good = configuration(&cluster, "n1", &module());
    let text = std::fs::read_to_string(&good).expect("the configuration");
    let bad_toml = cluster.dir().join("bad.toml");
    let toml = std::fs::read_to_string(cluster.config_path()).expect("the configuration");
    std::fs::write(&bad_toml, toml.replace("archive_bytes_max", "archive_byte_max")).expect("written");
    let config = cluster.config_path().display().to_string();
    for (from, to, said) in [
        (config.as_str(), bad_toml.to_str().expect("UTF-8"), "bad.toml:9: unknown field `archive_byte_max`"),
        (config.as_str(), "/nonexistent.toml", "cannot read the configuration /nonexistent.toml"),
        (" n1;", " n9;", "no node is named \"n9\""),
        ("selvage_session on;", "selvage_session maybe;", "invalid value \"maybe\""),
        ("location /known", "location ~ /known", "needs a location with a plain prefix"),
        ("selvage_api; client", "selvage_api; selvage_api; client", "is duplicate"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&good, text.replace(from, to)).expect("written");
        let failed = Tool::at(nginx()).arg("-t").arg("-c").arg(&good).fail();
        assert!(failed.contains(said), "{from} -> {to}: {failed}");
    }
    let without = text.replace(&format!("selvage {config} n1;"), "");
    std::fs::write(&good, without).expect("written");
    let failed = Tool::at(nginx()).arg("-t").arg("-c").arg(&good).fail();
    assert!(failed.contains("the http block has no \"selvage <configuration file>\""), "{failed}");
}
