//! `cargo x demo`: browsers count up in their sessions while web nodes and session servers are killed, and
//! the books are compared at the end.

use crate::run::{Stop, runtime};
use crate::setup;
use anyhow::{Context, Result, bail};
use selvage_fabric::ident::Incarnation;
use selvage_tests::admin::{Admin, AdminView};
use selvage_tests::cluster::{Cluster, Options};
use selvage_tests::load::{Ledger, Load, Plan, Verdict};
use selvage_tests::product::Product;
use std::time::{Duration, Instant};

/// Longest wait for any single step: a step that takes longer has failed.
const STEP_WAIT: Duration = Duration::from_secs(15);
/// All steps together; the demo is promised to take less than 90 s.
const DEMO_WAIT: Duration = Duration::from_secs(80);
const COPIES: u32 = 2;

/// Options of `cargo x demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Sessions
    #[arg(long, default_value_t = 2400, value_parser = clap::value_parser!(u32).range(64..=30_000))]
    pub sessions: u32,
    /// Connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Quiet time between two steps, ms
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=5000))]
    pub pause_ms: u64,
}

/// One line of the report: what happened, and how long until what.
struct Step {
    what: String,
    to_first_served: Option<Duration>,
    to_protected: Option<Duration>,
}

/// The demo under way.
struct Show<'a> {
    cluster: &'a mut Cluster,
    admin: Admin,
    load: &'a Load,
    sessions: u64,
    pause: Duration,
    steps: Vec<Step>,
}

/// Runs the command.
///
/// # Errors
/// The cluster failed, or something that was acked is lost.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::BUILD, setup::RUN])?;
    let product = Product::ready()?;
    runtime()?.block_on(async {
        let mut stop = Stop::new()?;
        // When a signal comes, the cluster is dropped with the future, and takes everything with it.
        tokio::select! {
            done = tokio::time::timeout(DEMO_WAIT, show(product, arguments)) => {
                done.unwrap_or_else(|_| bail!("the demo did not end within {DEMO_WAIT:?}"))
            }
            () = stop.asked() => bail!("stopped"),
        }
    })
}

async fn show(product: Product, arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let options = Options { nodes: 3, servers: 3, copies: COPIES, ..Options::default() };
    println!("starting 3 web nodes, 3 session servers and the director");
    let mut cluster = Cluster::start(product, options).await?;
    let plan = Plan {
        sessions: arguments.sessions as usize,
        connections: arguments.connections as usize,
        // The processes share this host's processors with the browsers; a pause keeps the load from measuring
        // only itself.
        think: Duration::from_millis(10),
    };
    println!("{} sessions on {} connections count up", plan.sessions, plan.connections);
    let load = Load::start(cluster.address(), plan).await?;
    let mut show = Show {
        admin: cluster.admin(),
        cluster: &mut cluster,
        load: &load,
        sessions: u64::from(arguments.sessions),
        pause: Duration::from_millis(arguments.pause_ms),
        steps: Vec::new(),
    };
    show.all_steps().await?;
    let steps = show.steps;
    let ledger = load.stop().await?;
    let verdict = ledger.verify(cluster.address(), plan.connections).await?;
    let remains = cluster.stop()?;
    print(&steps, &ledger, &verdict, began.elapsed());
    if !remains.killed.is_empty() {
        bail!("did not stop when asked: {}", remains.killed.join(", "));
    }
    if !verdict.is_clean() {
        bail!("something that was acked is lost");
    }
    println!("nothing that was acked is lost");
    Ok(())
}

impl Show<'_> {
    async fn all_steps(&mut self) -> Result<()> {
        self.until("every session has its copies", Instant::now(), |_| true).await?;
        self.rest().await;
        self.kill_node("n1").await?;
        self.start("n1").await?;
        self.kill_server("s1").await?;
        self.start("s1").await?;
        self.drain("n2").await
    }

    async fn kill_node(&mut self, name: &str) -> Result<()> {
        let host = self.incarnation(name).await?;
        let kill = self.cluster.kill(name)?;
        // It has left the view, and what it hosted is safe on the others.
        let gone = |view: &AdminView| view.host(host).is_none();
        let safe = self.until("a dead node's sessions are safe again", kill.sent, gone).await?;
        self.rest().await;
        let served = self.load.first_moved(host, kill.sent);
        let served = served.with_context(|| format!("no session of {name} was served elsewhere"))?;
        self.step(format!("web node {name} killed with -9"), Some(served), Some(safe));
        Ok(())
    }

    async fn kill_server(&mut self, name: &str) -> Result<()> {
        let kill = self.cluster.kill(name)?;
        let down = |view: &AdminView| view.server_is(name, "down");
        let safe = self.until("a dead server's sessions have their copies again", kill.sent, down).await?;
        self.rest().await;
        self.step(format!("session server {name} killed with -9"), None, Some(safe));
        Ok(())
    }

    async fn start(&mut self, name: &str) -> Result<()> {
        let began = Instant::now();
        self.cluster.start_member(name)?;
        let up = |view: &AdminView| view.node_is(name, "up") || view.server_is(name, "up");
        let safe = self.until("a member is back", began, up).await?;
        self.rest().await;
        self.step(format!("{name} started again"), None, Some(safe));
        Ok(())
    }

    async fn drain(&mut self, name: &str) -> Result<()> {
        let host = self.incarnation(name).await?;
        let began = Instant::now();
        self.admin.drain(name).await?;
        let drained = |view: &AdminView| view.node_is(name, "drained");
        let safe = self.until("a drained node has handed everything over", began, drained).await?;
        self.rest().await;
        let served = self.load.first_moved(host, began);
        self.step(format!("web node {name} drained"), served, Some(safe));
        let began = Instant::now();
        self.admin.undrain(name).await?;
        let up = |view: &AdminView| view.node_is(name, "up");
        let safe = self.until("a node is taken back", began, up).await?;
        self.rest().await;
        self.step(format!("{name} taken back"), None, Some(safe));
        Ok(())
    }

    /// Waits until `good` holds and every session has all the copies it shall have; the time since `since`.
    async fn until(
        &mut self,
        wish: &str,
        since: Instant,
        good: impl Fn(&AdminView) -> bool,
    ) -> Result<Duration> {
        let sessions = self.sessions;
        self.admin.until(wish, STEP_WAIT, |view| good(view) && view.protects(sessions, COPIES)).await?;
        Ok(since.elapsed())
    }

    async fn incarnation(&mut self, name: &str) -> Result<Incarnation> {
        let view = self.admin.view().await?;
        view.incarnation(name).with_context(|| format!("{name} has no incarnation: {view:?}"))
    }

    async fn rest(&self) {
        tokio::time::sleep(self.pause).await;
    }

    fn step(&mut self, what: String, to_first_served: Option<Duration>, to_protected: Option<Duration>) {
        println!("{what}");
        self.steps.push(Step { what, to_first_served, to_protected });
    }
}

fn print(steps: &[Step], ledger: &Ledger, verdict: &Verdict, took: Duration) {
    let ms = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{} ms", time.as_millis()));
    println!("\n{:<36} {:>20} {:>20}", "", "first served", "all copies");
    println!("{:<36} {:>20} {:>20}", "step", "elsewhere after", "again after");
    for step in steps {
        println!("{:<36} {:>20} {:>20}", step.what, ms(step.to_first_served), ms(step.to_protected));
    }
    println!();
    let lines: [(&str, u64); 8] = [
        ("requests", ledger.requests),
        ("failed requests", ledger.failures.len() as u64),
        ("answered without a safe copy", ledger.unprotected),
        ("sessions", verdict.sessions),
        ("sessions lost", verdict.sessions_lost),
        ("increments lost", verdict.increments_lost),
        ("sessions counted twice", verdict.counted_twice),
        ("seconds", took.as_secs()),
    ];
    for (name, value) in lines {
        println!("{name:<36} {value:>20}");
    }
    for failure in ledger.failures.iter().take(5) {
        println!("  failed: {}", failure.why);
    }
    println!();
}
