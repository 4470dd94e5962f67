//! What the end-to-end tests share: a cluster that must leave nothing, and customers whose data can be
//! compared.
//!
//! Only for tests: what is not as it must be is a panic.

use crate::admin::AdminView;
use crate::client::{Answer, Browser, CookieValue};
use crate::cluster::{Cluster, Options, Traces};
use crate::product::Product;
use bytes::Bytes;
use http::{Method, StatusCode};
use selvage_fabric::config::Server;
use selvage_fabric::ident::Incarnation;
use selvage_fabric::placement;
use selvage_fabric::view::ServerEntry;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Longest wait for any state that a cluster must reach by itself.
pub const SOON: Duration = Duration::from_secs(10);
/// Browsers at work at the same time.
const BROWSERS: usize = 16;

/// Under `cargo test` all tests are threads of one process: this keeps most of them from starting a cluster
/// at once. (nextest runs each test in a process of its own, and has a test group for this.)
static CLUSTERS: Semaphore = Semaphore::const_new(2);

/// A cluster under test.
pub struct Stage {
    cluster: Option<Cluster>,
    traces: Traces,
    _permit: SemaphorePermit<'static>,
}

impl Stage {
    /// A cluster with these numbers and small memories.
    pub async fn new(nodes: u32, servers: u32, copies: u32) -> Self {
        Self::with(Options { nodes, servers, copies, ..options() }).await
    }

    /// A cluster with these options.
    pub async fn with(options: Options) -> Self {
        let permit = CLUSTERS.acquire().await.unwrap();
        let cluster = Cluster::start(Product::ready().unwrap(), options).await.unwrap();
        let traces = cluster.traces();
        let stage = Self { cluster: Some(cluster), traces, _permit: permit };
        if stage.options().hosts.is_some() {
            stage.until_connected().await;
        }
        stage
    }

    /// Starts what is dead, and destroys the sessions of these customers, which are all that there are: the
    /// cluster stands as at its beginning, but with a past.
    pub async fn clear(&mut self, customers: Vec<Customer>) {
        let members = [self.servers(), self.nodes()].concat();
        let dead: Vec<&str> =
            members.iter().map(String::as_str).filter(|member| self.process(member).is_err()).collect();
        self.restart(&dead).await;
        let (address, patience) = (self.address(), self.options().patience);
        in_parallel(customers, move |customer: Customer| async move {
            let mut browser = Browser::with_cookie(address, customer.cookie);
            let answer = ask(&mut browser, Method::DELETE, "/session", patience).await;
            assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        })
        .await;
        let wish = "no session and no copy is left";
        let empty = |view: &AdminView| view.sessions() == 0 && view.copies() == 0 && view.dead.is_empty();
        self.until(wish, empty).await;
    }

    /// Waits until each node that is up has its way to each server that is up: through shared memory on one
    /// host, by RDMA to another. There is no third way.
    pub async fn until_connected(&self) -> AdminView {
        let hosts = self.options().hosts.clone().unwrap_or_default();
        let good = |view: &AdminView| {
            let nodes = view.nodes.iter().filter(|node| node.state == "up");
            nodes.into_iter().all(|node| {
                view.servers.iter().filter(|server| server.state == "up").all(|server| {
                    let same = hosts.of(&node.name) == hosts.of(&server.name);
                    let wanted = if same { "shm" } else { "verbs" };
                    view.link(&node.name, &server.name).is_some_and(|link| link.transport == wanted)
                })
            })
        };
        self.until("each node has the right way to each server", good).await
    }

    /// Stops the cluster: every member ends when asked, and nothing is left.
    pub fn end(mut self) {
        let remains = self.cluster.take().unwrap().stop().unwrap();
        assert!(remains.killed.is_empty(), "did not end when asked: {:?}", remains.killed);
        assert!(remains.running.is_empty(), "runs on other hosts: {:?}", remains.running);
        assert_eq!(self.traces.left(), Vec::<String>::new());
    }

    /// Ends the cluster, in which nothing was killed: the members themselves must have removed their shared
    /// memory.
    pub fn end_untouched(mut self) {
        let remains = self.cluster.take().unwrap().stop().unwrap();
        assert!(remains.killed.is_empty(), "did not end when asked: {:?}", remains.killed);
        assert!(remains.running.is_empty(), "runs on other hosts: {:?}", remains.running);
        assert!(remains.segments.is_empty(), "members left shared memory: {:?}", remains.segments);
        assert_eq!(self.traces.left(), Vec::<String>::new());
    }

    /// Waits for a state of the view.
    pub async fn until(&self, wish: &str, good: impl Fn(&AdminView) -> bool) -> AdminView {
        self.admin().until(wish, SOON * self.options().patience, good).await.unwrap()
    }

    /// Waits until that many sessions are hosted and each has that many copies.
    pub async fn until_protected(&self, sessions: usize, copies: u32) -> AdminView {
        let wish = format!("{sessions} sessions with {copies} copies each");
        self.until(&wish, |view| view.protects(sessions as u64, copies)).await
    }

    /// Waits until this node life is over and all it hosted is safe elsewhere.
    pub async fn until_taken_over(&self, from: Incarnation, sessions: usize, copies: u32) -> AdminView {
        let wish = format!("all of {sessions} sessions on other nodes, with {copies} copies each");
        self.until(&wish, |view| view.host(from).is_none() && view.protects(sessions as u64, copies)).await
    }

    /// The incarnation of a node that is up.
    pub async fn incarnation(&self, node: &str) -> Incarnation {
        self.admin().view().await.unwrap().incarnation(node).unwrap_or_else(|| panic!("{node} is not up"))
    }

    /// Starts members again and waits until the view has them: their new lives, for who is back before its
    /// death was seen is up in the view by its old one, and no request should go there.
    pub async fn restart(&mut self, names: &[&str]) {
        // None if it is the director that is started.
        let before = self.admin().view().await.ok();
        for name in names {
            self.start_member(name).unwrap();
        }
        let lives = before.iter().flat_map(|before| names.iter().filter_map(|name| before.life(name)));
        let old: Vec<Incarnation> = lives.collect();
        let is_over = |view: &AdminView| {
            !names.iter().any(|name| view.life(name).is_some_and(|life| old.contains(&life)))
        };
        self.until("the old lives are over", is_over).await;
        self.wait_up().await.unwrap();
    }

    /// Names of all web nodes that were started.
    pub fn nodes(&self) -> Vec<String> {
        self.options().node_names().filter(|name| !self.options().later.contains(name)).collect()
    }

    /// Names of all session servers that were started.
    pub fn servers(&self) -> Vec<String> {
        self.options().server_names().filter(|name| !self.options().later.contains(name)).collect()
    }

    /// Copies of each session.
    pub fn copies(&self) -> u32 {
        self.options().copies
    }

    /// The names of the servers that placement chooses for a session while all that were started are up.
    pub fn placement_of(&self, cookie: &CookieValue) -> Vec<String> {
        let config = self.config();
        let started = |server: &&Server| !self.options().later.contains(&server.name);
        let entry = |server: &Server| ServerEntry {
            name: server.name.clone(),
            incarnation: Incarnation(1),
            weight: server.weight,
            socket: String::new(),
            control: None,
        };
        let servers: Vec<ServerEntry> = config.servers.iter().filter(started).map(entry).collect();
        let chosen = placement::servers_for(cookie.id, &servers, config.cluster.copies);
        chosen.iter().map(|at| servers[usize::from(*at)].name.clone()).collect()
    }

    /// How many of the customers' sessions placement puts on each server.
    pub fn placed(&self, customers: &[Customer]) -> BTreeMap<String, u64> {
        let mut placed: BTreeMap<String, u64> =
            self.servers().into_iter().map(|server| (server, 0)).collect();
        for name in customers.iter().flat_map(|customer| self.placement_of(&customer.cookie)) {
            *placed.entry(name).or_default() += 1;
        }
        placed
    }
}

impl Deref for Stage {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.cluster.as_ref().unwrap()
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().unwrap()
    }
}

/// Options of a small cluster.
pub fn options() -> Options {
    let tables = "[memory]\nsessions_max = 4096\ncache_bytes = 16777216\nlease_bytes = 16777216\n";
    Options { tables: tables.into(), ..Options::default() }
}

/// How many copies each server holds, by the view.
pub fn copies_by_server(view: &AdminView) -> BTreeMap<String, u64> {
    view.servers.iter().map(|server| (server.name.clone(), server.sessions)).collect()
}

/// Somebody with a session, and what must be in it.
#[derive(Debug, Clone)]
pub struct Customer {
    /// The newest cookie.
    pub cookie: CookieValue,
    /// The attributes and their values.
    pub attributes: BTreeMap<String, Bytes>,
}

/// What a customer found.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The customer, with the cookie that came back.
    pub customer: Customer,
    /// Whether it was the same session with all its data.
    pub whole: bool,
    /// Name of the node that answered.
    pub node: String,
    /// Copies that the node reported.
    pub copies: u64,
}

/// Creates sessions with different attributes; each change must have reached `copies` copies.
pub async fn customers(stage: &Stage, count: usize, copies: u32) -> Vec<Customer> {
    let (address, patience) = (stage.address(), stage.options().patience);
    let work = move |number: usize| async move {
        let mut browser = Browser::new(address);
        let mut attributes = BTreeMap::new();
        for (name, value) in [
            ("user", format!("user {number}")),
            ("cart", format!("{number};").repeat(40 + number % 60)),
            ("empty", String::new()),
        ] {
            let answer = browser.put(&format!("/session/{name}"), value.clone()).await.unwrap();
            reached(&mut browser, answer, copies, patience).await;
            attributes.insert(name.to_owned(), Bytes::from(value));
        }
        for _ in 0..=number % 3 {
            let answer = browser.post("/session/n/incr").await.unwrap();
            attributes.insert("n".into(), Bytes::from(answer.text().trim().to_owned()));
            reached(&mut browser, answer, copies, patience).await;
        }
        assert_eq!(attributes["n"], (number % 3 + 1).to_string());
        Customer { cookie: browser.cookie.expect("a session cookie"), attributes }
    };
    in_parallel((0..count).collect(), work).await
}

/// A change must be answered with all its copies. Where hosts stand still for as long as a mandate lives, as
/// guests on a busy machine do, an answer with none is honest: there the next change may make up for it.
async fn reached(browser: &mut Browser, mut answer: Answer, copies: u32, patience: u32) {
    for _ in 1..patience {
        if answer.copies() == Some(copies) {
            break;
        }
        println!("a change has {:?} of {copies} copies: once more", answer.copies());
        tokio::time::sleep(SOON / 20).await;
        answer = browser.put("/session/empty", String::new()).await.unwrap();
    }
    assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    assert_eq!(answer.copies(), Some(copies), "copies of a change: {}", answer.text());
}

/// Asks for what may be asked twice. Where hosts stand still for as long as members may be silent, as guests
/// on a busy machine do, a node may be taken for dead, or a handshake for given up: there it is asked again.
async fn ask(browser: &mut Browser, method: Method, path: &str, patience: u32) -> Answer {
    let began = Instant::now();
    loop {
        let answer = browser.send(method.clone(), path, Bytes::new()).await;
        let again = match &answer {
            Ok(answer) => answer.status == StatusCode::SERVICE_UNAVAILABLE,
            Err(_) => true,
        };
        if !again || patience == 1 || began.elapsed() > SOON * patience {
            return answer.unwrap();
        }
        println!("{method} {path}: {:?}: once more", answer.map(|answer| answer.status));
        tokio::time::sleep(SOON / 100).await;
    }
}

/// Every customer looks at its whole session, and at one attribute by itself.
pub async fn visit_all(stage: &Stage, customers: &[Customer]) -> Vec<Visit> {
    let (address, patience) = (stage.address(), stage.options().patience);
    in_parallel(customers.to_vec(), move |customer: Customer| async move {
        let mut browser = Browser::with_cookie(address, customer.cookie.clone());
        let whole = ask(&mut browser, Method::GET, "/session", patience).await;
        assert!(whole.status.is_success(), "{}: {}", whole.status, whole.text());
        let json = whole.json().unwrap();
        let told = json["attributes"].as_object().unwrap();
        let is_told = |name: &String, value: &Bytes| {
            let text = match told.get(name) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(number) => number.to_string(),
                None => return false,
            };
            text.trim_end().as_bytes() == value.trim_ascii_end()
        };
        let mut same = json["id"] == customer.cookie.id.to_string()
            && browser.cookie.as_ref().is_some_and(|cookie| cookie.id == customer.cookie.id)
            && told.keys().eq(customer.attributes.keys())
            && customer.attributes.iter().all(|(name, value)| is_told(name, value));
        if same {
            let answer = ask(&mut browser, Method::GET, "/session/cart", patience).await;
            let cart = &customer.attributes["cart"];
            same = answer.status.is_success() && answer.body.trim_ascii_end() == cart.trim_ascii_end();
        }
        Visit {
            whole: same,
            node: json["node"].as_str().unwrap().to_owned(),
            copies: json["copies"].as_u64().unwrap(),
            customer: Customer { cookie: browser.cookie.expect("a cookie"), attributes: customer.attributes },
        }
    })
    .await
}

/// Every customer finds its whole session; their newest cookies come back.
pub async fn all_find_all(stage: &Stage, customers: &[Customer]) -> Vec<Customer> {
    let visits = visit_all(stage, customers).await;
    let lost = visits.iter().filter(|visit| !visit.whole).count();
    assert_eq!(lost, 0, "sessions of {} that are not whole", visits.len());
    visits.into_iter().map(|visit| visit.customer).collect()
}

/// Does `work` for every item, some at a time, and keeps the order.
async fn in_parallel<A, B, F>(items: Vec<A>, work: impl Fn(A) -> F + Clone + Send + 'static) -> Vec<B>
where
    A: Send + 'static,
    B: Send + 'static,
    F: Future<Output = B> + Send,
{
    let mut lanes: Vec<Vec<(usize, A)>> = (0..BROWSERS).map(|_| Vec::new()).collect();
    for (at, item) in items.into_iter().enumerate() {
        lanes[at % BROWSERS].push((at, item));
    }
    let tasks: Vec<_> = lanes
        .into_iter()
        .map(|lane| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut done = Vec::with_capacity(lane.len());
                for (at, item) in lane {
                    done.push((at, work(item).await));
                }
                done
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, done)| done).collect()
}

/// The number in an answer to `incr` or a read of the counter, which must have succeeded.
pub fn number(answer: &Answer) -> i64 {
    answer.number().unwrap_or_else(|| panic!("{}: {}", answer.status, answer.text()))
}
