//! Bad input gets a clear answer that names what and the limit, and changes nothing.

use http::{Method, StatusCode};
use selvage_fabric::control::message::Role;
use selvage_fabric::control::stream::Stream;
use selvage_fabric::error::ErrorKind;
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation};
use selvage_tests::client::{Browser, CookieValue};
use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::product::Product;
use selvage_tests::stage::{Stage, all_find_all, customers, options};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// Wrong and foreign cookies: a new session, never an error page, never somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_cookie_gets_a_new_session() {
    let stage = Stage::new(2, 1, 1).await;
    let victim = customers(&stage, 2, 1).await.remove(0);
    let good = &victim.cookie.text;
    let foreign = Cookie { id: victim.cookie.id, host: victim.cookie.host };
    let foreign = foreign.encode(&[CookieKey(vec![7; 32])]);
    let own_keys = &stage.config().cluster.cookie_keys;
    let unknown = Cookie { id: selvage_fabric::ident::SessionId([9; 16]), host: victim.cookie.host };
    let dead = Cookie { id: unknown.id, host: Incarnation(77) };
    let mut flipped = good.clone().into_bytes();
    flipped[3] = if flipped[3] == b'a' { b'b' } else { b'a' };
    let wrong = [
        foreign,
        String::from_utf8(flipped).unwrap(),
        good[1..].to_owned(),
        format!("{good}a"),
        good.to_uppercase(),
        String::new(),
        "x".into(),
        "../../etc/passwd".into(),
        "%00%ff\"';--".into(),
        "a".repeat(3000),
        // Signed by us, but such a session never was: on a living host, and on one that is unknown.
        unknown.encode(own_keys),
        dead.encode(own_keys),
    ];
    for value in &wrong {
        let mut connection = stage.connection();
        let cookie = format!("selvage={value}");
        let answer = connection.send(Method::GET, "/session", Some(&cookie), "").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{value}: {}", answer.text());
        let new = answer.cookie().unwrap_or_else(|| panic!("no new cookie for {value}"));
        assert_ne!(new.id, victim.cookie.id, "{value}");
        assert_ne!(new.id, unknown.id, "an id that a client brings is never taken: {value}");
        assert_eq!(answer.json().unwrap()["attributes"], serde_json::json!({}), "{value}");
    }
    // Junk beside the good cookie does no harm.
    let mut connection = stage.connection();
    let cookie = format!("a=b; selvagex={}; selvage={good}; c=\"d\"", wrong[0]);
    let answer = connection.send(Method::GET, "/session/user", Some(&cookie), "").await.unwrap();
    assert_eq!(answer.body, victim.attributes["user"], "{}", answer.status);
    all_find_all(&stage, &[victim]).await;
    stage.end_untouched();
}

/// Over a limit: 413 with size and limit, and the old version is whole.
#[tokio::test(flavor = "multi_thread")]
async fn over_the_limit_is_413_and_changes_nothing() {
    let limit = 64 * 1024;
    let tables = format!(
        "[session]\narchive_bytes_max = {limit}\n\
         [memory]\nsessions_max = 1024\ncache_bytes = 16777216\nlease_bytes = 16777216\n"
    );
    let stage = Stage::with(Options { nodes: 1, servers: 1, copies: 1, tables, ..options() }).await;
    let customer = customers(&stage, 1, 1).await.remove(0);
    let mut browser = Browser::with_cookie(stage.address(), customer.cookie.clone());
    for bytes in [limit + 1, 2 * limit, 4 << 20] {
        let answer = browser.put("/session/cart", vec![b'x'; bytes]).await.unwrap();
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{bytes}: {}", answer.text());
        assert!(answer.text().contains(&limit.to_string()), "names the limit: {}", answer.text());
    }
    // Each attribute is within the limit, and together they are not.
    let mut refused = 0;
    for number in 0..8 {
        let answer = browser.put(&format!("/session/part{number}"), vec![b'x'; limit / 4]).await.unwrap();
        match answer.status {
            StatusCode::PAYLOAD_TOO_LARGE => refused += 1,
            status => assert!(status.is_success(), "{status}: {}", answer.text()),
        }
        if answer.status.is_success() {
            browser.delete(&format!("/session/part{number}")).await.unwrap();
            browser.put(&format!("/session/part{number}"), vec![b'x'; limit / 4]).await.unwrap();
        }
    }
    assert!(refused >= 4, "only {refused} refused");
    for number in 0..8 {
        browser.delete(&format!("/session/part{number}")).await.unwrap();
    }
    let answer = browser.put(&format!("/session/{}", "n".repeat(200)), "x").await.unwrap();
    assert!(answer.status.is_client_error(), "a name that is too long: {}", answer.status);
    let answer = browser.post("/session/user/incr").await.unwrap();
    assert!(answer.status.is_client_error(), "counting in a text: {}", answer.status);
    all_find_all(&stage, &[customer]).await;
    stage.end_untouched();
}

/// A full cache says so, and nothing that lives is evicted.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_says_so() {
    let tables = "[memory]\nsessions_max = 64\ncache_bytes = 4194304\nlease_bytes = 4194304\n";
    let stage =
        Stage::with(Options { nodes: 1, servers: 1, copies: 1, tables: tables.into(), ..options() }).await;
    let customers = customers(&stage, 60, 1).await;
    let mut full = None;
    let mut more = Vec::new();
    for _ in 0..80 {
        let mut browser = stage.browser();
        let answer = browser.post("/session/n/incr").await.unwrap();
        if !answer.status.is_success() {
            full = Some(answer);
            break;
        }
        more.push(browser);
    }
    let full = full.expect("64 sessions at most");
    assert!(
        full.status == StatusCode::INSUFFICIENT_STORAGE || full.status == StatusCode::SERVICE_UNAVAILABLE,
        "{}: {}",
        full.status,
        full.text()
    );
    let text = full.text().to_lowercase();
    assert!(text.contains("64 sessions") && text.contains("limit"), "says so: {text}");
    all_find_all(&stage, &customers).await;
    // What was given back can be used again.
    for mut browser in more {
        assert!(browser.delete("/session").await.unwrap().status.is_success());
    }
    assert!(stage.browser().post("/session/n/incr").await.unwrap().status.is_success());
    stage.end_untouched();
}

/// A user that is not the node's gets nothing from the sockets. Only root can take another user's part.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_user_is_turned_away() {
    let stage = Stage::new(1, 1, 1).await;
    let cluster = stage.config().cluster.name.clone();
    let sockets = [stage.config().server_socket("s1"), stage.config().director_socket()];
    let web_group = stage.web_user().map(|user| user.gid);
    for socket in sockets {
        let (cluster, path) = (cluster.clone(), socket.clone());
        let outcome = std::thread::spawn(move || {
            let wait = Duration::from_secs(2);
            if let Some(gid) = web_group {
                // For this thread alone: the kernel keeps credentials per thread. With the web servers' group
                // it may enter the folder, and its user is one that no node has.
                let gid = rustix::process::Gid::from_raw(gid);
                let nobody = rustix::process::Uid::from_raw(65_533);
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let mut stream = match Stream::connect(&path, wait) {
                Ok(stream) => stream,
                // The folder's or the socket's mode has turned it away before any word was said.
                Err(error) => return Err(error.kind),
            };
            // Without root, the right user asks for a node that does not exist.
            let name = if web_group.is_some() { "n1" } else { "n9" };
            let role = Role::Node { name: name.into(), incarnation: Incarnation::NONE, pid: 0 };
            stream.client_hello(&cluster, role, wait).map(drop).map_err(|error| error.kind)
        });
        let outcome = outcome.join().unwrap();
        let denied = matches!(outcome, Err(ErrorKind::Denied));
        // The mode of a server's socket may turn the stranger away before a word is said.
        let no_entry = socket != stage.config().director_socket() && outcome == Err(ErrorKind::Unreachable);
        assert!(denied || no_entry, "{}: {outcome:?}", socket.display());
    }
    let customers = customers(&stage, 5, 1).await;
    all_find_all(&stage, &customers).await;
    stage.end_untouched();
}

/// Hostile bytes on the control sockets: the peer is cut off, and everybody else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_on_the_sockets_do_no_harm() {
    use std::io::{Read, Write};
    let stage = Stage::new(1, 1, 1).await;
    let customers = customers(&stage, 10, 1).await;
    let junk: [&[u8]; 5] =
        [b"GET / HTTP/1.0\r\n\r\n", &[0xff; 64], &[0; 64], &[4, 0, 0, 0, 9, 9, 9, 9], &[1]];
    for socket in [stage.config().server_socket("s1"), stage.config().director_socket()] {
        for bytes in junk {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            let cut = stream.read_to_end(&mut answer);
            let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(cut.as_ref().map_or_else(reset, |_| true), "not cut off: {cut:?}");
        }
    }
    all_find_all(&stage, &customers).await;
    stage.end_untouched();
}

/// A second director, a second server of the same name: one line that says what and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_of_the_same_is_refused() {
    let stage = Stage::new(1, 1, 1).await;
    let customers = customers(&stage, 5, 1).await;
    for (name, word) in [("director", "director"), ("s1", "s1")] {
        let output = ended(stage.command(name).unwrap());
        assert!(!output.status.success());
        let line = one_line(&output);
        assert!(line.contains(word) && line.contains("already") || line.contains("another"), "{line}");
    }
    all_find_all(&stage, &customers).await;
    stage.end_untouched();
}

/// A port that is taken: one line, from the daemon itself and from the launcher.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let options = Options { port: Some(port), folder: Some(folder.clone()), ..options() };
    let error = Cluster::prepare(Product::ready().unwrap(), options).unwrap_err().to_string();
    assert!(!folder.exists(), "a refused start leaves its folder");
    assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");

    let mut stage = Stage::new(1, 1, 1).await;
    stage.stop_member("director").unwrap();
    let config = stage.folder().unwrap().config();
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace(&stage.address().to_string(), &taken.local_addr().unwrap().to_string());
    let path = config.with_file_name("other.toml");
    std::fs::write(&path, other).unwrap();
    let mut command = std::process::Command::new(stage.product().director());
    command.arg("--config").arg(&path);
    let output = ended(command);
    assert!(!output.status.success());
    assert!(one_line(&output).contains(&port.to_string()), "{}", one_line(&output));
    stage.restart(&["director"]).await;
    stage.end();
}

/// A mistake in the configuration: file, line and key, from every daemon and from nginx.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_configuration_is_named() {
    let stage = Stage::new(1, 1, 1).await;
    let config = stage.folder().unwrap().config();
    let text = std::fs::read_to_string(&config).unwrap();
    let line = text.lines().position(|line| line.starts_with("copies")).unwrap() + 1;
    let path = config.with_file_name("bad.toml");
    std::fs::write(&path, text.replace("copies = 1", "copies = 7")).unwrap();
    for (program, more) in
        [(stage.product().director(), &[][..]), (stage.product().server(), &["--name", "s1"][..])]
    {
        let mut command = std::process::Command::new(program);
        command.arg("--config").arg(&path).args(more);
        let output = ended(command);
        assert!(!output.status.success());
        let said = one_line(&output);
        assert!(said.contains(&format!("bad.toml:{line}")) && said.contains("copies"), "{said}");
    }
    let nginx = stage.folder().unwrap().path().join("nginx-n1/nginx.conf");
    let conf = std::fs::read_to_string(&nginx).unwrap().replace("selvage.toml", "bad.toml");
    let bad = nginx.with_file_name("bad.conf");
    std::fs::write(&bad, conf).unwrap();
    let mut command = std::process::Command::new(stage.command("n1").unwrap().get_program());
    command.args(["-t", "-e", "stderr", "-c"]).arg(&bad);
    let output = ended(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&format!("bad.toml:{line}")), "{said}");
    stage.end_untouched();
}

/// Two clusters run at the same time, and neither knows a cookie of the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_do_not_meet() {
    let one = Stage::new(1, 1, 1).await;
    let two = Stage::new(1, 1, 1).await;
    let of_one = customers(&one, 10, 1).await;
    let of_two = customers(&two, 10, 1).await;
    let stranger: CookieValue = of_one[0].cookie.clone();
    let answer = Browser::with_cookie(two.address(), stranger.clone()).get("/session").await.unwrap();
    assert_ne!(answer.cookie().expect("a new session").id, stranger.id);
    all_find_all(&one, &of_one).await;
    one.end_untouched();
    all_find_all(&two, &of_two).await;
    two.end_untouched();
}

/// Runs a command that must end by itself.
fn ended(mut command: std::process::Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} goes on: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// The one line that a refused program says.
fn one_line(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}
