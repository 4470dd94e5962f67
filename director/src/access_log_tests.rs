use super::*;

fn log(format: &str, path: &Path) -> Arc<AccessLog> {
    let text = format!(
        "[cluster]\nname = \"t\"\nrun_dir = \"/run/t\"\ncookie_keys = [\"{}\"]\n[director]\n\
         access_log = \"{}\"\naccess_log_format = \"{format}\"\n\
         [[server]]\nname = \"s1\"\n[[node]]\nname = \"n1\"\naddress = \"127.0.0.1:1\"\n",
        "11".repeat(32),
        path.display()
    );
    let config = selvage_fabric::config::Config::parse(Path::new("t.toml"), &text).unwrap();
    AccessLog::new(&config.director, Counter::default()).unwrap()
}

fn client() -> Client {
    Client::new("192.0.2.7".parse().unwrap(), Some("TLSv1.3"))
}

/// What is in the file once it has so many lines.
fn lines(path: &Path, count: usize) -> Vec<String> {
    for _ in 0..500 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= count && text.ends_with('\n') {
            return text.lines().map(str::to_owned).collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} has not {count} lines", path.display());
}

#[test]
fn the_combined_form_is_the_one_that_tools_read_and_nothing_breaks_out_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = log("combined", &path);
    let mut request = Request::builder().uri("/%22?q=%0a").header("user-agent", "a\"b\\c\u{e9}");
    request = request.header("referer", "http://x/").header("cookie", "selvage=secret");
    let mut entry = log.begin(&mut request.body(()).unwrap(), &client()).unwrap();
    (entry.status, entry.bytes, entry.whole) = (200, 12, true);
    drop(entry);
    let mut no_request = log.begin(&mut request_plain(), &client()).unwrap();
    no_request.status = 400;
    no_request.notes.is_no_request();
    drop(no_request);
    let lines = lines(&path, 2);
    let (head, tail) = lines[0].split_once('[').unwrap();
    let (time, tail) = tail.split_once(']').unwrap();
    assert_eq!(head, "192.0.2.7 - - ");
    assert!(jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).is_ok(), "{time}");
    assert_eq!(tail, " \"GET /%22?q=%0a HTTP/1.1\" 200 12 \"http://x/\" \"a\\x22b\\x5Cc\\xC3\\xA9\"");
    assert!(lines[1].ends_with(" \"-\" 400 0 \"-\" \"-\""), "{}", lines[1]);
    assert!(!lines.iter().any(|line| line.contains("secret")));
}

fn request_plain() -> Request<()> {
    Request::builder().uri("/x").header("user-agent", "y").body(()).unwrap()
}

#[test]
fn json_has_all_that_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = log("json", &path);
    let mut entry = log.begin(&mut request_plain(), &client()).unwrap();
    entry.notes.sent("n1");
    entry.notes.elsewhere();
    entry.notes.sent("n2");
    entry.notes.queued(Duration::from_micros(1500));
    entry.notes.ended(Outcome::Served);
    (entry.status, entry.bytes, entry.whole) = (200, 3, true);
    drop(entry);
    // The browser went away.
    drop(log.begin(&mut request_plain(), &client()).unwrap());
    let lines: Vec<serde_json::Value> =
        lines(&path, 2).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = &lines[0];
    for (key, value) in [
        ("client", json!("192.0.2.7")),
        ("method", json!("GET")),
        ("target", json!("/x")),
        ("protocol", json!("HTTP/1.1")),
        ("tls", json!("TLSv1.3")),
        ("status", json!(200)),
        ("bytes", json!(3)),
        ("node", json!("n2")),
        ("sends", json!(2)),
        ("elsewhere", json!(1)),
        ("queued_ms", json!(1.5)),
        ("outcome", json!("served")),
        ("agent", json!("y")),
        ("referer", json!(null)),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!((&lines[1]["status"], &lines[1]["outcome"]), (&json!(499), &json!(null)));
}

#[test]
fn the_file_can_be_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let log = log("combined", &path);
    drop(log.begin(&mut request_plain(), &client()));
    lines(&path, 1);
    std::fs::rename(&path, &old).unwrap();
    drop(log.begin(&mut request_plain(), &client()));
    lines(&old, 2);
    log.reopen().unwrap();
    drop(log.begin(&mut request_plain(), &client()));
    assert_eq!(lines(&path, 1).len(), 1);
    assert_eq!(lines(&old, 2).len(), 2);
    assert_eq!(log.lost.get(), 0);
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_nobody_waits() {
    let log = log("combined", Path::new("/dev/full"));
    for _ in 0..10 {
        drop(log.begin(&mut request_plain(), &client()));
    }
    for _ in 0..500 {
        if log.lost.get() == 10 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} lines were counted as lost", log.lost.get());
}
