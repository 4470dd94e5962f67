//! The rounds: orders at some points, whatever brings processes there, and what must be true afterwards.

use crate::book::{State, WORKERS, Wish};
use crate::field::{Field, LONG, NODES, SOON};
use selvage_fabric::ident::SessionId;
use selvage_fabric::kill::{Order, POINTS, number};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A process that was sent to a point is there after this time, or was not sent well.
const ARRIVAL: Duration = Duration::from_secs(4);
/// Times that a point is tried until it has killed somebody.
const TRIES: u32 = 12;
/// Passes among which one is chosen at points that every change passes.
const CROWD: u64 = 200;
/// Rounds in which processes are stopped instead of killed, one in so many kills.
const STOP_EVERY: u64 = 40;
/// Points at which processes stop in one round.
const STOPS: usize = 4;
/// A run of so many kills also stops a process at every point.
const LONG_RUN: u64 = 2000;
/// Longer than the newest heartbeat can be old.
const BEAT: Duration = Duration::from_millis(60);

/// What brings a process to a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// Work does.
    Load,
    /// The death of one worker.
    Worker,
    /// The death of a worker with a push open.
    OpenPush,
    /// The death of a worker with a part of the cache locked.
    Locked,
    /// The death of a whole node.
    Node,
    /// That of a server.
    Server,
    /// That of the director.
    Director,
    /// A node's end in order.
    Leave,
}

fn cause(point: &str) -> Cause {
    match point {
        "allocate.holds" | "steward.taken" | "steward.repaired" => Cause::Worker,
        // A worker that dies there surely has a session locked.
        "steward.repairing" => Cause::OpenPush,
        "quarantine.passed" | "quarantine.asked" | "quarantine.superseded" => Cause::OpenPush,
        "steward.rebuilding" => Cause::Locked,
        "seal.reported" | "steward.beat" | "steward.mandate" => Cause::Load,
        "destroy.fetched" => Cause::Node,
        "start.server" => Cause::Server,
        "start.director" => Cause::Director,
        _ => match point.split_once('.').map(|(step, _)| step) {
            Some("adopt" | "seal" | "start" | "steward") => Cause::Node,
            Some("recopy") => Cause::Server,
            Some("attach") => Cause::Worker,
            Some("leave") => Cause::Leave,
            _ => Cause::Load,
        },
    }
}

/// Whether a session server may die, which takes copies away: at most one may, and only while there are two
/// of each session.
fn hits_servers(point: &str) -> bool {
    cause(point) == Cause::Server
        || matches!(point, "seal.word" | "seal.indexed" | "seal.reported" | "start.lease")
}

/// Whether a point is passed about once a second: when the time of a session is over or gets longer.
fn is_rare(point: &str) -> bool {
    point.starts_with("expire.") || point.starts_with("touch.")
}

/// At how many points something has happened.
fn reached(counts: &[u64]) -> usize {
    counts.iter().filter(|count| **count > 0).count()
}

/// SplitMix64: a whole sequence of well mixed numbers from any seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn shuffled(&mut self, mut points: Vec<usize>) -> Vec<usize> {
        for at in (1..points.len()).rev() {
            points.swap(at, self.below(at as u64 + 1) as usize);
        }
        points
    }
}

struct Run {
    field: Field,
    dice: Dice,
    /// Kills at each point.
    killed: Vec<u64>,
    /// Stops at each point.
    stopped: Vec<u64>,
    rounds: u64,
    /// Who is killed next, of all nodes' processes.
    next_worker: usize,
}

/// Runs the whole test.
pub fn run(seed: u64, kills: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(fight(seed, kills));
}

async fn fight(seed: u64, kills: u64) {
    let began = Instant::now();
    let (field, none) = (Field::new().await, vec![0; POINTS.len()]);
    let mut run =
        Run { field, dice: Dice(seed), killed: none.clone(), stopped: none, rounds: 0, next_worker: 0 };
    run.field.until_whole().await;
    run.field.until("sessions are made", |field| field.book.acks().load(Ordering::Relaxed) > 300);
    // First each point, then those that work passes by itself, mostly.
    let mut points = run.dice.shuffled((0..POINTS.len()).collect());
    // Sessions whose time is over come last: they need that time.
    points.sort_by_key(|at| is_rare(POINTS[*at]));
    for point in points {
        run.visit(point).await;
        run.say(began);
    }
    if kills >= LONG_RUN {
        for point in run.dice.shuffled((0..POINTS.len()).collect()) {
            run.visit_by_stop(point).await;
            run.say(began);
        }
    }
    let load: Vec<usize> = (0..POINTS.len()).filter(|at| cause(POINTS[*at]) == Cause::Load).collect();
    let is_busy = |at: &usize| !hits_servers(POINTS[*at]) && !is_rare(POINTS[*at]);
    let busy: Vec<usize> = load.iter().copied().filter(is_busy).collect();
    let mut stops = 0;
    while run.kills() < kills {
        if run.kills() / STOP_EVERY > stops {
            stops = run.kills() / STOP_EVERY;
            let points = run.dice.shuffled(load.clone());
            run.stop(&points[..STOPS]).await;
        } else if run.dice.below(20) == 0 {
            let point = run.dice.below(POINTS.len() as u64) as usize;
            run.strike(&[point], CROWD / 4).await;
        } else {
            let points = [0; 3].map(|_| busy[run.dice.below(busy.len() as u64) as usize]);
            let missing = (kills - run.kills()) as usize;
            run.strike(&points[..missing.min(points.len())], CROWD).await;
        }
        run.say(began);
    }
    run.end(began).await;
}

impl Run {
    fn kills(&self) -> u64 {
        self.killed.iter().sum()
    }

    fn say(&mut self, began: Instant) {
        self.rounds += 1;
        if self.rounds.is_multiple_of(50) {
            let (kills, stops) = (self.kills(), self.stopped.iter().sum::<u64>());
            println!("{:.0} s: {kills} kills, {stops} stops", began.elapsed().as_secs_f64());
        }
    }

    /// Until somebody has died at a point.
    async fn visit(&mut self, point: usize) {
        for tries in 1..=TRIES {
            self.strike(&[point], CROWD / 4).await;
            if self.killed[point] > 0 {
                if tries > TRIES / 4 {
                    println!("{}: somebody died in try {tries} of {TRIES}", POINTS[point]);
                }
                return;
            }
        }
        let passes = self.field.book.board.passes(point);
        panic!("nobody died at {} in {TRIES} tries; it was passed {passes} times", POINTS[point]);
    }

    /// Until somebody has stopped at a point for long.
    async fn visit_by_stop(&mut self, point: usize) {
        for _ in 0..TRIES {
            self.stop(&[point]).await;
            if self.stopped[point] > 0 {
                return;
            }
        }
        panic!("nobody stopped at {} in {TRIES} tries", POINTS[point]);
    }

    /// One round of kills, and what must be true after it.
    async fn strike(&mut self, points: &[usize], crowd: u64) {
        let servers = points.iter().any(|point| hits_servers(POINTS[*point]));
        if std::env::var_os("SELVAGE_LOG").is_some() {
            let names: Vec<&str> = points.iter().map(|point| POINTS[*point]).collect();
            println!("round {}: {names:?}", self.rounds);
        }
        let began = Instant::now();
        if servers {
            self.prepare_for_loss().await;
        }
        let prepared = began.elapsed().as_millis();
        for point in points {
            let pass = self.pass(*point, crowd);
            self.field.book.board.order(*point, Order::Kill(pass));
        }
        self.bring(cause(POINTS[points[0]]));
        let board = |field: &mut Field| points.iter().all(|point| field.book.board.victim(*point).is_some());
        self.field.until_at_most(ARRIVAL, board);
        for point in points {
            self.field.book.board.withdraw(*point);
        }
        let arrived = began.elapsed().as_millis();
        let mut points = points.to_vec();
        points.sort_unstable();
        points.dedup();
        for point in points {
            if let Some(pid) = self.field.book.board.victim(point) {
                let over = |_: &mut Field| !std::path::Path::new(&format!("/proc/{pid}")).exists();
                self.field.until("the victim is gone", over);
                self.killed[point] += 1;
            }
        }
        self.field.until_all_are_back();
        self.check(servers).await;
        if std::env::var_os("SELVAGE_LOG").is_some() {
            println!("arrived {prepared}-{arrived}, checked {} ms", began.elapsed().as_millis());
        }
    }

    /// Which pass of a point counts, of so many at points that changes pass all the time.
    fn pass(&mut self, point: usize, crowd: u64) -> u32 {
        let name = POINTS[point];
        let crowd = if cause(name) == Cause::Load && !is_rare(name) { crowd } else { 1 };
        1 + self.dice.below(crowd) as u32
    }

    /// Brings processes to a point.
    fn bring(&mut self, cause: Cause) {
        let board = &self.field.book.board;
        let node = self.dice.below(NODES as u64) as usize;
        match cause {
            Cause::Load => {}
            // One after the other: among them is the steward of each node.
            Cause::Worker => {
                self.field.kill_worker(self.next_worker);
                self.next_worker = (self.next_worker + 1) % WORKERS;
            }
            Cause::OpenPush => board.order(number("push.posted"), Order::Kill(5)),
            Cause::Locked => board.order(number("push.counted"), Order::Kill(5)),
            Cause::Node => Field::workers_of(node).for_each(|worker| self.field.kill_worker(worker)),
            Cause::Server => {
                let server = format!("s{}", 1 + self.dice.below(3));
                self.field.kill_member(&server);
            }
            Cause::Director => self.field.kill_member("director"),
            Cause::Leave => self.field.leave(node),
        }
    }

    /// Before a server dies: every session has two copies, and only changes that reach both count.
    async fn prepare_for_loss(&mut self) {
        self.field.book.copies_that_count().store(2, Ordering::SeqCst);
        self.field.wish(Wish::Rest);
        self.field.until_confirmed();
        tokio::time::sleep(BEAT).await;
        self.field.until_whole().await;
        self.field.wish(Wish::Work);
    }

    /// What must be true after every round.
    async fn check(&mut self, servers: bool) {
        self.field.wish(Wish::Rest);
        self.field.until_confirmed();
        self.field.check_caches();
        self.field.check_hosted();
        if servers {
            self.field.until_whole().await;
            self.field.book.copies_that_count().store(1, Ordering::SeqCst);
        }
        self.field.wish(Wish::Work);
    }

    /// Processes stop at several points, for longer than every timeout, and go on or are killed.
    async fn stop(&mut self, points: &[usize]) {
        let servers = points.iter().any(|point| hits_servers(POINTS[*point]));
        if servers {
            self.prepare_for_loss().await;
        }
        for point in points {
            let pass = self.pass(*point, CROWD);
            self.field.book.board.order(*point, Order::Stop(pass));
        }
        self.bring(cause(POINTS[points[0]]));
        let all = |field: &mut Field| points.iter().all(|point| field.book.board.victim(*point).is_some());
        self.field.until_at_most(ARRIVAL, all);
        for point in points {
            self.field.book.board.withdraw(*point);
        }
        self.field.until_at_most(LONG, |_| false);
        for point in points {
            let Some(pid) = self.field.book.board.victim(*point) else { continue };
            self.stopped[*point] += 1;
            self.field.book.board.resume(*point);
            self.field.wake(pid);
        }
        self.field.until_all_are_back();
        self.field.until_whole().await;
        self.check(servers).await;
    }

    async fn end(mut self, began: Instant) {
        let live = loop {
            match self.audit().await {
                Some(live) => break live,
                None => println!("a session's time was over in the middle of the audit: once more"),
            }
        };
        // What the nodes count and report is the truth.
        let deadline = Instant::now() + SOON;
        loop {
            let view = self.field.until_whole().await;
            if view.sessions() == live {
                break;
            }
            assert!(Instant::now() < deadline, "{live} sessions are hosted, and the view says {view:?}");
        }
        assert!(self.killed.iter().all(|kills| *kills > 0), "a point has killed nobody");
        let (figures, kills, points) = (self.figures(live, began), self.kills(), reached(&self.killed));
        self.field.end();
        println!("{figures}; lost: 0, come back: 0, left over: 0");
        println!("figure: kills.kills {kills}\nfigure: kills.points {points}");
    }

    /// Clears up what is in doubt, then looks for every session on every node: exactly those of the book must
    /// be there, each once. `None`: the audit took longer than a session lives.
    async fn audit(&mut self) -> Option<u64> {
        self.field.wish(Wish::Settle);
        self.field.until_confirmed();
        self.field.wish(Wish::Rest);
        self.field.until_confirmed();
        self.field.until_whole().await;
        self.field.book.records().for_each(|record| record.found().store(0, Ordering::SeqCst));
        let all = |field: &Field| {
            let live = field.book.records().filter(|record| record.mark().state == State::Live);
            let mut ids: Vec<SessionId> = live.map(|record| record.cookie().id).collect();
            ids.sort_unstable();
            ids
        };
        let before = all(&self.field);
        self.field.wish(Wish::Audit);
        self.field.until_confirmed();
        if all(&self.field) != before {
            return None;
        }
        for record in self.field.book.records().filter(|record| record.mark().state == State::Live) {
            let found = record.found().load(Ordering::SeqCst);
            // Each worker of its host.
            assert_eq!(found, 3, "session {} is hosted by {found} of 3 workers", record.cookie().id);
        }
        self.field.check_caches();
        self.field.check_hosted();
        assert_eq!(self.field.hosted(), before, "what the nodes host is not what the book says");
        Some(before.len() as u64)
    }

    fn figures(&self, live: u64, began: Instant) -> String {
        let book = &self.field.book;
        let number = |word: &AtomicU64| word.load(Ordering::Relaxed);
        for (at, name) in POINTS.iter().enumerate() {
            let (passes, kills, stops) = (book.board.passes(at), self.killed[at], self.stopped[at]);
            println!("{name:24} {passes:9} passes {kills:5} kills {stops:4} stops");
        }
        format!(
            "{} kills at {} of {} points, {} stops at {}; {} deaths in all, in {:.1} s; {} operations, \
             {} acked changes, {} new ids, {} destroyed, {} expired, {} seen to move, {} errors; \
             {live} sessions at the end",
            self.kills(),
            reached(&self.killed),
            POINTS.len(),
            self.stopped.iter().sum::<u64>(),
            reached(&self.stopped),
            self.field.deaths,
            began.elapsed().as_secs_f64(),
            number(book.operations()),
            number(book.acks()),
            number(book.renewed()),
            number(book.destroyed()),
            number(book.expired()),
            number(book.adopted()),
            number(book.failures()),
        )
    }
}
