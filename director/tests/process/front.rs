//! The director's front with real clients: TLS, HTTP/2, reload, the access log, health checks, and another
//! director that takes over under load.

use crate::clients::{Crowd, Steward, Web, certificate, shaken};
use crate::site::{Running, Site, WAIT, finish, free, get, post, until};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A site whose director serves browsers with TLS, too.
pub(crate) struct Front {
    pub(crate) site: Site,
    tls: SocketAddr,
    certificate: PathBuf,
}

impl Front {
    pub(crate) fn new(more: &str) -> Self {
        let (site, tls) = (Site::new(), free());
        let folder = site.dir.path().to_owned();
        let (certificate, _) = certificate(&folder, "first", &["localhost", "127.0.0.1"]);
        crate::clients::certificate(&folder, "second", &["shop.test", "*.shop.test"]);
        let front = Self { site, tls, certificate };
        front.configure("", more);
        front
    }

    /// With more keys in `[director]`, and more tables.
    fn configure(&self, keys: &str, more: &str) {
        self.site.configure(more);
        let folder = self.site.dir.path().display().to_string();
        let pair = |name: &str| {
            format!("{{ certificate = \"{folder}/{name}.pem\", key = \"{folder}/{name}.key\" }}")
        };
        let tls = format!(
            "{keys}\n[director.tls]\nlisten = \"{}\"\ncertificates = [{}, {}]\n[[server]]",
            self.tls,
            pair("first"),
            pair("second")
        );
        let text = std::fs::read_to_string(self.site.config()).unwrap();
        let text = text.replace("hold_ms = 500", "hold_ms = 8000").replacen("[[server]]", &tls, 1);
        std::fs::write(self.site.config(), text).unwrap();
    }

    /// The process that is the director now.
    fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.site.run_dir().join("director.lock")).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Another director takes over, and knows the cluster.
    pub(crate) fn hand_over(&self) {
        let old = self.pid();
        self.signal("-USR2");
        until("another one serves", || self.pid() != old && is_ours(self.pid(), &self.site.config()));
        until("it knows the cluster", || {
            get(self.site.admin, "/admin/view").is_some_and(|page| page.contains("\"up\""))
        });
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.site.metric_if_any(name).unwrap_or_default()
    }
}

impl Drop for Front {
    /// Directors that have taken over are nobody's children.
    fn drop(&mut self) {
        let pid = self.pid();
        if is_ours(pid, &self.site.config()) {
            // It may end by itself just now.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            until("the director is gone", || !is_ours(pid, &self.site.config()));
        }
    }
}

/// Whether this process is a director of this configuration, and no zombie.
fn is_ours(pid: u32, config: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(&*config.to_string_lossy())
}

fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "10"]).args(arguments);
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn browsers_come_with_tls_and_both_versions_of_http() {
    let front = Front::new("");
    let log = front.site.dir.path().join("access.log");
    let keys = format!("access_log = \"{}\"\naccess_log_format = \"json\"", log.display());
    front.configure(&keys, "");
    let _web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let (url, certificate) =
        (format!("https://localhost:{}/a?b=c", front.tls.port()), front.certificate.display());
    let certificate = certificate.to_string();
    let written = "\n%{http_version}";
    let second = curl(&["--http2", "--cacert", &certificate, "-w", written, "-b", "a=1", &url]);
    assert!(second.starts_with("get /a?b=c http/1.1\n") && second.ends_with("\n2"), "{second}");
    let host = format!("host: localhost:{}", front.tls.port());
    for expected in ["x-forwarded-proto: https", "x-forwarded-for: 127.0.0.1", "cookie: a=1", &host] {
        assert!(second.contains(expected), "{expected}: {second}");
    }
    let first = curl(&["--http1.1", "--cacert", &certificate, "-w", written, &url]);
    assert!(first.ends_with("\n1.1") && first.contains("x-forwarded-proto: https"), "{first}");
    // Bounds are those of HTTP/1.
    let long =
        curl(&["--http2", "--cacert", &certificate, "-w", written, &format!("{url}{}", "x".repeat(9000))]);
    assert!(long.starts_with("selvage: ") && long.ends_with("\n2"), "{long}");
    // The certificate goes by the name; TLS 1.2 is not spoken.
    let other = format!("https://www.shop.test:{}/", front.tls.port());
    let there = format!("www.shop.test:{}:127.0.0.1", front.tls.port());
    let named = front.site.dir.path().join("second.pem").display().to_string();
    let answer = curl(&["--cacert", &named, "--resolve", &there, &other]);
    assert!(answer.contains("host: www.shop.test"), "{answer}");
    assert!(curl(&["--cacert", &certificate, "--resolve", &there, &other]).contains("curl: (60)"));
    assert!(curl(&["--tls-max", "1.2", "--cacert", &certificate, &url]).contains("curl: (35)"));
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("the lines are written", || lines().lines().count() >= 3);
    let line: serde_json::Value = serde_json::from_str(lines().lines().next().unwrap()).unwrap();
    assert_eq!((&line["protocol"], &line["tls"]), (&"HTTP/2.0".into(), &"TLSv1.3".into()));
    assert_eq!((&line["node"], &line["target"]), (&"n1".into(), &"/a?b=c".into()));
    assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"served".into()));
}

#[test]
fn many_streams_share_a_connection_and_a_reload_disturbs_none() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let url = format!("https://127.0.0.1:{}/", front.tls.port());
    let mut command = Command::new("h2load");
    command.args(["-n", "600", "-c", "3", "-m", "20", &url]).stdin(Stdio::null());
    let loading = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for round in 1..=5 {
        front.signal("-HUP");
        until("it was reloaded", || front.metric("selvage_director_reloads_total{result=\"good\"}") >= round);
    }
    let output = String::from_utf8(finish(loading).stdout).unwrap();
    assert!(output.contains("600 total, 600 started, 600 done, 600 succeeded, 0 failed"), "{output}");
    assert!(output.contains("600 2xx") && output.contains("Application protocol: h2"), "{output}");
}

#[test]
fn a_browser_with_http2_is_bounded_and_told_of_the_end() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    front.configure("keepalive_timeout_ms = 300", "");
    let mut director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // Who says nothing after the handshake is let go.
        let mut silent = shaken(front.tls, &front.certificate, "localhost").await.unwrap();
        let begun = Instant::now();
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(WAIT, silent.read_to_end(&mut bytes)).await;
        assert!(ended.is_ok() && begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
        // Who floods with streams that it resets at once is shown the door.
        let mut flood = shaken(front.tls, &front.certificate, "localhost").await.unwrap();
        let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
        for stream in (1..4001_u32).step_by(2) {
            // :method GET, :scheme https, :path /, :authority a
            let head = [0x82, 0x87, 0x84, 0x01, 0x01, b'a'];
            frames.extend([0, 0, head.len() as u8, 1, 5]);
            frames.extend(stream.to_be_bytes());
            frames.extend(head);
            frames.extend([0, 0, 4, 3, 0]);
            frames.extend(stream.to_be_bytes());
            frames.extend(8_u32.to_be_bytes());
        }
        // It may be shown the door before it has said all.
        let _ = flood.write_all(&frames).await;
        let mut got = Vec::new();
        let _ = tokio::time::timeout(WAIT, flood.read_to_end(&mut got)).await.expect("shown the door");
        // GOAWAY with ENHANCE_YOUR_CALM.
        assert!(got.windows(4).any(|word| word == [0, 0, 0, 11]), "{got:?}");
    });
    assert!(get(front.site.browsers, "/").unwrap().contains("200"), "others are not concerned");
    director.signal("-TERM");
    director.ends_well();
}

#[test]
fn plain_requests_are_sent_to_the_same_page_with_tls() {
    let front = Front::new("");
    let text = std::fs::read_to_string(front.site.config()).unwrap();
    let text = text.replace("[director.tls]\n", "[director.tls]\nredirect = true\n");
    std::fs::write(front.site.config(), text).unwrap();
    let _web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let url = format!("http://127.0.0.1:{}/a%20b?c", front.site.browsers.port());
    let written = "%{http_code} %{redirect_url}";
    let answer = curl(&["-X", "POST", "-d", "x", "-w", written, "-o", "/dev/null", &url]);
    assert_eq!(answer, format!("308 https://127.0.0.1:{}/a%20b?c", front.tls.port()));
    let certificate = front.certificate.display().to_string();
    assert!(curl(&["-L", "--cacert", &certificate, &url]).starts_with("get /a%20b?c"));
    let checked = front.site.selvage_check(&[]);
    assert!(checked.contains("cookie_secure"), "{checked}");
}

#[test]
fn a_reload_takes_all_or_nothing() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let folder = front.site.dir.path();
    let url = format!("https://localhost:{}/", front.tls.port());
    let old = folder.join("old.pem").display().to_string();
    std::fs::copy(&front.certificate, &old).unwrap();
    let good = std::fs::read_to_string(front.site.config()).unwrap();
    let reload = |result: &str| {
        let name = format!("selvage_director_reloads_total{{result=\"{result}\"}}");
        let before = front.metric(&name);
        front.signal("-HUP");
        until("it was reloaded", || front.metric(&name) > before);
    };
    // A bad file, and then a key that is not the certificate's: the old ones count.
    std::fs::write(front.site.config(), good.replace("hold_ms", "hodl_ms")).unwrap();
    reload("failed");
    certificate(folder, "first", &["localhost"]);
    std::fs::copy(folder.join("second.key"), folder.join("first.key")).unwrap();
    std::fs::write(front.site.config(), good.replace("hold_ms = 8000", "hold_ms = 7000")).unwrap();
    reload("failed");
    assert!(curl(&["--cacert", &old, &url]).starts_with("get /"));
    let said = post(front.site.admin, "/admin/reload", "");
    assert!(said.starts_with("HTTP/1.1 409") && said.contains("first.key"), "{said}");
    // The renewed certificate, and what needs a restart is said.
    certificate(folder, "first", &["localhost"]);
    let text = good
        .replace("hold_ms = 8000", "hold_ms = 7000\nrequests_max = 1")
        .replace(&format!("\"{}\"", front.site.browsers), "\"127.0.0.1:1\"");
    std::fs::write(front.site.config(), text).unwrap();
    let body = |answer: String| -> serde_json::Value {
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    };
    let expected = serde_json::json!({
        "file": front.site.config(),
        "at_once": ["director.hold_ms", "director.requests_max"],
        "control": [],
        "needs_restart": ["director.listen"],
    });
    assert_eq!(body(get(front.site.admin, "/admin/reload").unwrap()), expected);
    let said = front.site.selvage_check(&["--against-running"]);
    let expected_words = "director.hold_ms, director.requests_max; needs a restart: director.listen\n";
    assert!(said.ends_with(expected_words), "{said}");
    assert_eq!(body(post(front.site.admin, "/admin/reload", "")), expected);
    assert!(curl(&["--cacert", &old, &url]).contains("curl: (60)"));
    let new = front.certificate.display().to_string();
    assert!(curl(&["--cacert", &new, &url]).starts_with("get /"));
    let left = body(get(front.site.admin, "/admin/reload").unwrap());
    assert_eq!(left["needs_restart"], serde_json::json!(["director.listen"]));
    assert_eq!(left["at_once"], serde_json::json!([]));
}

#[test]
fn members_come_with_a_reload_and_no_request_fails() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let crowd = Crowd::start(front.site.browsers, front.tls, &front.certificate);
    let text = std::fs::read_to_string(front.site.config()).unwrap();
    std::fs::write(front.site.config(), text + "[[node]]\nname = \"n3\"\naddress = \"127.0.0.1:3\"\n")
        .unwrap();
    let term = front.site.view()["epoch"]["term"].as_u64().unwrap();
    front.signal("-HUP");
    until("it knows the new node", || {
        get(front.site.admin, "/admin/view").is_some_and(|page| page.contains("\"n3\""))
    });
    until("it goes on", || front.site.view()["epoch"]["term"].as_u64().unwrap() > term);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(front.site.view()["nodes"][0]["state"], "up");
    let answers = crowd.end();
    assert!(answers.iter().all(|answers| *answers > 5), "{answers:?}");
}

#[test]
fn another_director_takes_over_under_load_and_no_request_fails() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    let mut first = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let crowd = Crowd::start(front.site.browsers, front.tls, &front.certificate);
    let browsers = front.site.browsers;
    let mut slow = Some(std::thread::spawn(move || get(browsers, "/slow").unwrap_or_default()));
    for round in 1..=5 {
        for reload in 1..=4 {
            front.signal("-HUP");
            until("it was reloaded", || {
                front.metric("selvage_director_reloads_total{result=\"good\"}") >= reload
            });
        }
        front.hand_over();
        if round == 1 {
            let slow = slow.take().unwrap().join().unwrap();
            assert!(slow.ends_with("slept"), "what was under way ends where it began");
            first.ends_well();
        }
        assert!(front.site.socket().exists(), "the old one leaves what is not its any more");
    }
    let answers = crowd.end();
    assert!(answers.iter().all(|answers| *answers > 50), "{answers:?}");
    let last = front.pid();
    front.signal("-TERM");
    until("it has ended", || !is_ours(last, &front.site.config()));
    assert!(!front.site.socket().exists() && get(front.site.browsers, "/").is_none());
}

#[test]
fn the_service_manager_is_told_what_becomes_of_the_director() {
    let front = Front::new("");
    let path = front.site.dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let told = |wanted: &str| {
        let mut bytes = [0; 4096];
        let mut heard = Vec::new();
        while !heard.iter().any(|line: &String| line == wanted) {
            let read = socket.recv(&mut bytes).unwrap_or_else(|why| panic!("{wanted}: {why}, but {heard:?}"));
            heard.extend(String::from_utf8_lossy(&bytes[..read]).lines().map(str::to_owned));
        }
    };
    let mut first = Running(front.site.command().env("NOTIFY_SOCKET", &path).spawn().unwrap());
    told("READY=1");
    front.signal("-HUP");
    told("RELOADING=1");
    told("READY=1");
    front.signal("-USR2");
    until("another one has everything", || front.pid() != first.0.id() && front.pid() > 0);
    let second = front.pid();
    told(&format!("MAINPID={second}"));
    first.ends_well();
    front.signal("-TERM");
    told("STOPPING=1");
    until("it has ended", || !is_ours(second, &front.site.config()));
}

#[test]
fn a_successor_that_does_not_want_to_leaves_everything_as_it_was() {
    let front = Front::new("");
    let _web = Web::start(front.site.node);
    let _director: Running = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let pid = front.pid();
    let good = std::fs::read_to_string(front.site.config()).unwrap();
    let failed = "selvage_director_upgrades_total{result=\"failed\"}";
    let crowd = Crowd::start(front.site.browsers, front.tls, &front.certificate);
    // It refuses the configuration before anything is given.
    std::fs::write(front.site.config(), good.replace("hold_ms", "hodl_ms")).unwrap();
    front.signal("-USR2");
    until("it has failed", || front.metric(failed) == 1);
    // It finds out too late that it cannot: another program has its new address. All is taken back.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = format!("\"{}\"", taken.local_addr().unwrap());
    std::fs::write(front.site.config(), good.replace(&format!("\"{}\"", front.site.browsers), &other))
        .unwrap();
    front.signal("-USR2");
    until("it has failed again", || {
        get(front.site.admin, "/metrics").is_some_and(|page| page.contains(&format!("{failed} 2")))
    });
    assert_eq!(front.pid(), pid);
    until("it goes on", || front.site.view()["nodes"][0]["state"] == "up");
    crowd.end();
    std::fs::write(front.site.config(), good).unwrap();
}

#[test]
fn a_failing_web_server_gets_no_new_sessions_until_it_is_well() {
    let front = Front::new("");
    let health = "[director.health]\npath = \"/health\"\ninterval_ms = 20\nfall = 3\nrise = 2\n[[server]]";
    let text = std::fs::read_to_string(front.site.config()).unwrap();
    std::fs::write(front.site.config(), text.replacen("[[server]]", health, 1)).unwrap();
    let web = Web::start(front.site.node);
    let _director = front.site.start();
    let _steward = Steward::start(&front.site, "n1");
    let failing = || front.site.view()["nodes"][0]["failing"] == true;
    until("it is asked", || front.metric("selvage_director_health_checks_total{result=\"good\"}") > 3);
    assert!(!failing());
    web.health.store(500, std::sync::atomic::Ordering::Relaxed);
    until("it is found failing", failing);
    assert_eq!(front.metric("selvage_node_failing{node=\"n1\"}"), 1);
    assert_eq!(front.site.view()["nodes"][0]["state"], "up", "nobody could take its sessions");
    assert!(get(front.site.browsers, "/").unwrap().contains("200"), "and nobody else new ones");
    web.health.store(204, std::sync::atomic::Ordering::Relaxed);
    until("it is well", || !failing());
}
