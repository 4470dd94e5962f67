//! A small real cluster for measuring: a director and session servers as processes of the product, and this
//! process attached as the one node.

use anyhow::{Context, Result, ensure};
use selvage_fabric::ident::Cookie;
use selvage_fabric::node::{Ack, AttachOptions, Node, OpenMode, Opened, Session};
use selvage_tests::admin::AdminView;
use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::product::{PRODUCT_DIR_VARIABLE, Product, cargo, workspace_root};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// The name of the node that this process is.
pub const NODE: &str = "n1";
/// A node joins, and a session gets its copies, within this time, or something is wrong.
const JOIN_WAIT: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Session servers.
    pub servers: u32,
    /// Their weights, by position; 1 where none is given.
    pub weights: Vec<u32>,
    /// Copies of each session.
    pub copies: u32,
    /// Most sessions of the node.
    pub sessions_max: u32,
    /// Heap of the cache and of each lease, bytes.
    pub heap_bytes: u64,
    /// Servers that are configured and not started.
    pub absent: Vec<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            servers: 2,
            weights: Vec::new(),
            copies: 2,
            sessions_max: 4096,
            heap_bytes: 32 << 20,
            absent: Vec::new(),
        }
    }
}

/// The running cluster, with this process as its node. Ends with its processes killed and its files removed.
pub struct BenchCluster {
    // Dropped in this order: the node detaches before its directors and servers go.
    node: Option<Node>,
    cluster: Option<Cluster>,
    runtime: Runtime,
}

/// The product for a test: where the environment says, or built now, in release and by a cargo call of its
/// own, so that the tests' features do not reach it.
///
/// # Errors
/// If it cannot be built.
pub fn product_for_tests() -> Result<Product> {
    if std::env::var_os(PRODUCT_DIR_VARIABLE).is_some() {
        return product();
    }
    let root = workspace_root();
    let build = ["build", "--release", "-p", "selvage-session-server", "-p", "selvage-director"];
    let built = cargo().args(build).status().context("cannot start cargo")?;
    ensure!(built.success(), "the session server and the director cannot be built");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(Product { dir: target.join("release"), daemons: None })
}

/// The folder of the product's programs: where the environment says, or beside this program.
///
/// # Errors
/// If a program is missing there: says how to build it.
pub fn product() -> Result<Product> {
    let dir = match std::env::var_os(PRODUCT_DIR_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let own = std::env::current_exe().context("this program does not know where it is")?;
            let own = own.parent().context("this program is in no folder")?;
            // Tests and benches are one folder below the programs.
            if own.ends_with("deps") { own.parent().unwrap_or(own) } else { own }.to_owned()
        }
    };
    let product = Product { dir, daemons: None };
    for program in [product.server(), product.director()] {
        ensure!(
            program.is_file(),
            "{} is missing: run `cargo build --release -p selvage-session-server -p selvage-director`, \
             or name the folder of the programs with {PRODUCT_DIR_VARIABLE}",
            program.display()
        );
    }
    Ok(product)
}

impl BenchCluster {
    /// Starts the cluster and attaches.
    ///
    /// # Errors
    /// If a program is missing or dies, or this process cannot join as node.
    pub fn start(product: Product, shape: &Shape) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let memory = format!(
            "[memory]\nsessions_max = {}\ncache_bytes = {heap}\nlease_bytes = {heap}\n",
            shape.sessions_max,
            heap = shape.heap_bytes,
        );
        let mut later = shape.absent.clone();
        later.push(NODE.to_owned());
        let options = Options {
            name: "bench".into(),
            nodes: 1,
            servers: shape.servers,
            copies: shape.copies,
            weights: shape.weights.clone(),
            tables: memory,
            later,
            nodes_are_launchers: true,
            ..Options::default()
        };
        let cluster = runtime.block_on(Cluster::start(product, options))?;
        let config = cluster.folder()?.config();
        let mut started = Self { node: None, cluster: Some(cluster), runtime };
        let node = Node::attach(Some(&config), Some(NODE), AttachOptions { wait: JOIN_WAIT })
            .context("this process cannot join the cluster as a node")?;
        started.node = Some(node);
        Ok(started)
    }

    /// This process's attachment.
    ///
    /// # Errors
    /// Never before the cluster is stopped.
    pub fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("the cluster is stopped")
    }

    /// The processes.
    ///
    /// # Errors
    /// Never before the cluster is stopped.
    pub fn cluster(&mut self) -> Result<&mut Cluster> {
        self.cluster.as_mut().context("the cluster is stopped")
    }

    /// What the director's admin API says.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn view(&mut self) -> Result<AdminView> {
        let cluster = self.cluster.as_ref().context("the cluster is stopped")?;
        let mut admin = cluster.admin();
        self.runtime.block_on(admin.view())
    }

    /// Waits until the admin view is as wished.
    ///
    /// # Errors
    /// If it is not within `wait`.
    pub fn until(
        &mut self,
        wish: &str,
        wait: Duration,
        good: impl Fn(&AdminView) -> bool,
    ) -> Result<AdminView> {
        let cluster = self.cluster.as_ref().context("the cluster is stopped")?;
        let mut admin = cluster.admin();
        self.runtime.block_on(admin.until(wish, wait, good))
    }

    /// A committed session with these attributes and as many copies as `copies`; its cookie.
    ///
    /// # Errors
    /// If the copies are not reached in time.
    pub fn session(
        &self,
        attributes: &[(&'static str, selvage_fabric::archive::Value)],
        copies: u32,
    ) -> Result<Cookie> {
        let mut session = self.node()?.create(None)?;
        for (name, value) in attributes {
            session.set(name, value.clone())?;
        }
        let deadline = Instant::now() + JOIN_WAIT;
        session.commit(Ack::All)?;
        while session.copies() < copies {
            // The servers may have joined the view a moment ago and the leases not be open yet.
            ensure!(Instant::now() < deadline, "the session has {} copies, not {copies}", session.copies());
            std::thread::sleep(Duration::from_millis(5));
            session.set(attributes[0].0, attributes[0].1.clone())?;
            session.commit(Ack::All)?;
        }
        Ok(session.cookie())
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// If something cannot be ended or removed.
    pub fn stop(mut self) -> Result<()> {
        if let Some(node) = self.node.take() {
            node.detach()?;
        }
        if let Some(cluster) = self.cluster.take() {
            cluster.stop()?;
        }
        Ok(())
    }
}

/// Opens a session that is hosted here.
///
/// # Errors
/// If it is not here.
#[inline]
pub fn open(node: &Node, cookie: &Cookie, mode: OpenMode) -> Result<Session> {
    match node.open(cookie, mode)? {
        Opened::Session(session) => Ok(session),
        other => anyhow::bail!("the session is not hosted here: {other:?}"),
    }
}
