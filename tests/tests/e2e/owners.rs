//! All sessions of an owner are destroyed wherever they are, whatever dies meanwhile. The web nodes are
//! processes of this test, because they must say who owns a session.

use crate::operator::run_selvage;
use selvage_fabric::archive::Value;
use selvage_fabric::ident::Cookie;
use selvage_fabric::node::{Ack, AttachOptions, Node, OpenMode, Opened, Outcome, Started};
use selvage_tests::cluster::{Cluster, DIRECTOR, Options};
use selvage_tests::stage::{Stage, options};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
const MARK: &str = "host: ";

/// A web node: one process, which does what lines tell it.
struct Host {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Host {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "owners::host_process", "--nocapture"])
            .env("SELVAGE_CONFIG", cluster.folder().unwrap().config())
            .env("SELVAGE_NODE", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut host = Self { child, to, from };
        assert_eq!(host.answer(), "attached");
        host
    }

    /// Does not wait for the answer.
    fn tell(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the host has ended");
            if let Some((_, answer)) = line.trim_end().split_once(MARK) {
                return answer.to_owned();
            }
        }
    }

    /// Makes sessions of an owner; their cookies.
    fn make(&mut self, owner: &str, count: usize) -> Vec<String> {
        let cookies = self.ask(&format!("make {owner} {count}"));
        cookies.split(' ').map(str::to_owned).collect()
    }

    /// `found`, `missing`, `elsewhere` or what went wrong.
    fn find(&mut self, cookie: &str) -> String {
        self.ask(&format!("find {cookie}"))
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its node is drained of processes in order.
    fn end(self) {
        let Self { mut child, to, .. } = self;
        drop(to);
        assert!(child.wait().unwrap().success());
    }
}

/// What a host does.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn host_process() {
    let node = Node::attach(None, None, AttachOptions { wait: SOON }).unwrap();
    let say = |text: &str| println!("{MARK}{text}");
    say("attached");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words.as_slice() {
            ["make", owner, count] => make(&node, owner, count.parse().unwrap()),
            ["find", cookie] => find(&node, cookie),
            ["regenerate", cookie] => regenerate(&node, cookie),
            ["destroy", owner] => match node.destroy_owner(owner) {
                Ok(sessions) => sessions.to_string(),
                Err(error) => format!("error: {error}"),
            },
            ["destroy-later", owner] => destroy_later(&node, owner),
            other => panic!("{other:?}"),
        };
        say(&said);
    }
}

fn make(node: &Node, owner: &str, count: usize) -> String {
    let cookies = (0..count).map(|at| {
        let mut session = node.create(Some(owner)).unwrap();
        session.set("at", Value::I64(at as i64)).unwrap();
        assert_eq!(session.commit(Ack::All).unwrap().copies, 2);
        node.set_cookie(&session).split(['=', ';']).nth(1).unwrap().to_owned()
    });
    cookies.collect::<Vec<_>>().join(" ")
}

fn cookie_of(node: &Node, text: &str) -> Cookie {
    let name = &node.config().session.cookie_name;
    node.decode_cookie_header(&format!("{name}={text}")).expect("a good cookie")
}

fn find(node: &Node, text: &str) -> String {
    match node.open(&cookie_of(node, text), OpenMode::ReadOnly) {
        Ok(Opened::Session(_)) => "found".to_owned(),
        Ok(Opened::Missing) => "missing".to_owned(),
        Ok(Opened::Elsewhere(_)) => "elsewhere".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Gives the session new ids until it is gone; how many.
fn regenerate(node: &Node, text: &str) -> String {
    let mut cookie = cookie_of(node, text);
    let (began, mut ids) = (Instant::now(), 0);
    while began.elapsed() < SOON {
        let Ok(Opened::Session(mut session)) = node.open(&cookie, OpenMode::Exclusive) else {
            return format!("gone after {ids}");
        };
        if session.regenerate().is_ok() {
            cookie = session.cookie();
            ids += 1;
        }
    }
    format!("it lives on after {ids}")
}

fn destroy_later(node: &Node, owner: &str) -> String {
    let Started::Pending(_) = node.destroy_owner_start(owner, 1).unwrap() else { panic!("it is elsewhere") };
    let began = Instant::now();
    while began.elapsed() < SOON {
        if let Some(completion) = node.next_completion() {
            let Outcome::OwnerDestroyed(destroyed) = completion.outcome else { panic!("another's end") };
            return destroyed.unwrap().to_string();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    "no completion".to_owned()
}

/// A cluster whose nodes are hosts of this test.
async fn stage(nodes: u32) -> Stage {
    let later = (1..=nodes).map(|at| format!("n{at}")).collect();
    Stage::with(Options { nodes, servers: 2, copies: 2, nodes_are_launchers: true, later, ..options() }).await
}

/// All sessions of an owner that nodes tell of. Asks again while a node that has just died owes its part.
fn listed(cluster: &Cluster, owner: &str) -> usize {
    let deadline = Instant::now() + SOON;
    loop {
        let (good, said) = run_selvage(cluster, &["sessions", "list", "--all", "--json", "--owner", owner]);
        let page: serde_json::Value = serde_json::from_str(&said).expect(&said);
        if page["missing"] == serde_json::json!([]) {
            assert!(good, "{said}");
            return page["sessions"].as_array().unwrap().len();
        }
        assert!(Instant::now() < deadline, "{said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_sessions_are_gone_though_a_node_is_killed_meanwhile() {
    let stage = stage(3).await;
    let mut hosts: Vec<Host> = ["n1", "n2", "n3"].map(|name| Host::start(&stage, name)).into();
    for (round, pause_ms) in [0, 3, 15].into_iter().enumerate() {
        let anns: Vec<String> = hosts.iter_mut().flat_map(|host| host.make("ann", 25)).collect();
        let bobs: Vec<String> = hosts.iter_mut().flat_map(|host| host.make("bob", 10)).collect();
        let view = stage.admin().view().await.unwrap();
        let (killed, life) = (hosts.remove(1), view.incarnation("n2").unwrap());
        let kill = std::thread::scope(|scope| {
            let kill = scope
                .spawn(|| run_selvage(&stage, &["sessions", "kill", "--yes", "--json", "--owner", "ann"]));
            std::thread::sleep(Duration::from_millis(pause_ms));
            killed.kill();
            kill.join().unwrap()
        });
        assert!(kill.0, "round {round}: {}", kill.1);
        // Nothing of it is left, and nothing comes back: not at the nodes, not when their sessions are
        // adopted.
        assert_eq!(listed(&stage, "ann"), 0, "round {round}");
        for cookie in &anns {
            let found: Vec<String> = hosts.iter_mut().map(|host| host.find(cookie)).collect();
            assert!(found.iter().all(|found| found == "missing" || found == "elsewhere"), "{found:?}");
            assert!(found.iter().any(|found| found == "missing"), "{found:?}");
        }
        stage
            .until("n2 is adopted", |view| view.incarnation("n2") != Some(life) && view.dead.is_empty())
            .await;
        assert_eq!((listed(&stage, "ann"), listed(&stage, "bob")), (0, bobs.len()), "round {round}");
        let (good, said) = run_selvage(&stage, &["sessions", "kill", "-y", "--json", "--owner", "bob"]);
        assert!(good && said.contains(&bobs.len().to_string()), "round {round}: {said}");
        hosts.insert(1, Host::start(&stage, "n2"));
        stage.until("n2 is back", |view| view.node_is("n2", "up") && view.dead.is_empty()).await;
    }
    hosts.into_iter().for_each(Host::end);
    stage.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_logs_its_user_out_everywhere() {
    let mut stage = stage(2).await;
    let [mut one, mut two] = ["n1", "n2"].map(|name| Host::start(&stage, name));
    let anns = [one.make("ann", 5), two.make("ann", 7)].concat();
    let bob = two.make("bob", 1);
    assert_eq!(one.ask("destroy ann"), "12");
    assert_eq!(one.ask("destroy ann"), "0");
    for cookie in &anns {
        let found = [one.find(cookie), two.find(cookie)];
        assert!(found.iter().any(|found| found == "missing"), "{found:?}");
    }
    assert_eq!(two.find(&bob[0]), "found");
    two.make("ann", 3);
    assert_eq!(one.ask("destroy-later ann"), "3");
    // One that keeps changing its id does not escape.
    let runner = two.make("ann", 1);
    two.tell(&format!("regenerate {}", runner[0]));
    assert_eq!(one.ask("destroy ann"), "1");
    let said = two.answer();
    assert!(said.starts_with("gone after"), "{said}");
    // The director dies while it is asked, and another takes its place.
    two.make("ann", 4);
    stage.kill(DIRECTOR).unwrap();
    one.tell("destroy ann");
    std::thread::sleep(Duration::from_millis(100));
    stage.start_member(DIRECTOR).unwrap();
    assert_eq!(one.answer(), "4");
    assert_eq!((listed(&stage, "ann"), listed(&stage, "bob")), (0, 1));
    [one, two].into_iter().for_each(Host::end);
    stage.end();
}
