//! The rounds: orders at some points, whatever brings processes there, and what must be true afterwards.

use crate::book::{State, Wish};
use crate::field::{Field, LONG, NODES};
use selvage_fabric::kill::{Order, POINTS, number};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A process that was sent to a point is there after this time, or was not sent well.
const ARRIVAL: Duration = Duration::from_secs(4);
/// Times that a point is tried until it has killed somebody.
const TRIES: u32 = 12;
/// Passes among which one is chosen at points that every change passes.
const CROWD: u64 = 200;
/// Rounds in which processes are stopped instead of killed, one in so many kills.
const STOP_EVERY: u64 = 40;

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
    stopped: u64,
    rounds: u64,
}

/// Runs the whole test.
pub fn run(seed: u64, kills: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(fight(seed, kills));
}

async fn fight(seed: u64, kills: u64) {
    let began = Instant::now();
    let field = Field::new().await;
    let mut run = Run { field, dice: Dice(seed), killed: vec![0; POINTS.len()], stopped: 0, rounds: 0 };
    run.field.until_whole().await;
    run.field.until("sessions are made", |field| field.book.acks().load(Ordering::Relaxed) > 300);
    // First each point, then those that work passes by itself, mostly.
    for point in run.dice.shuffled((0..POINTS.len()).collect()) {
        run.visit(point).await;
        run.say(began);
    }
    let busy: Vec<usize> = (0..POINTS.len()).filter(|at| cause(POINTS[*at]) == Cause::Load).collect();
    let busy: Vec<usize> = busy.into_iter().filter(|at| !hits_servers(POINTS[*at])).collect();
    let mut stops = 0;
    while run.kills() < kills {
        if run.kills() / STOP_EVERY > stops {
            stops = run.kills() / STOP_EVERY;
            run.stop(&busy).await;
        } else if run.dice.below(20) == 0 {
            let point = run.dice.below(POINTS.len() as u64) as usize;
            run.strike(&[point], 1).await;
        } else {
            let points = [0; 3].map(|_| busy[run.dice.below(busy.len() as u64) as usize]);
            run.strike(&points, CROWD).await;
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
            let (kills, stops) = (self.kills(), self.stopped);
            println!("{:.0} s: {kills} kills, {stops} stops", began.elapsed().as_secs_f64());
        }
    }

    /// Until somebody has died at a point.
    async fn visit(&mut self, point: usize) {
        for _ in 0..TRIES {
            let crowd = if cause(POINTS[point]) == Cause::Load { CROWD / 4 } else { 1 };
            self.strike(&[point], crowd).await;
            if self.killed[point] > 0 {
                return;
            }
        }
        let passes = self.field.book.board.passes(point);
        panic!("nobody died at {} in {TRIES} tries; it was passed {passes} times", POINTS[point]);
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
            let pass = 1 + self.dice.below(crowd) as u32;
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
        self.check(servers).await;
        if std::env::var_os("SELVAGE_LOG").is_some() {
            println!("arrived {prepared}-{arrived}, checked {} ms", began.elapsed().as_millis());
        }
    }

    /// Brings processes to a point.
    fn bring(&mut self, cause: Cause) {
        let board = &self.field.book.board;
        let (node, worker) = (self.dice.below(NODES as u64) as usize, self.dice.below(6) as usize);
        match cause {
            Cause::Load => {}
            Cause::Worker => self.field.kill_worker(worker),
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
        // Longer than the newest heartbeat can be old.
        tokio::time::sleep(Duration::from_millis(60)).await;
        self.field.until_whole().await;
        self.field.wish(Wish::Work);
    }

    /// What must be true after every round.
    async fn check(&mut self, servers: bool) {
        self.field.wish(Wish::Rest);
        self.field.until_confirmed();
        self.field.check_caches();
        if servers {
            self.field.until_whole().await;
            self.field.book.copies_that_count().store(1, Ordering::SeqCst);
        }
        self.field.wish(Wish::Work);
    }

    /// Processes stop at several points, for longer than every timeout, and go on or are killed.
    async fn stop(&mut self, points: &[usize]) {
        let points = self.dice.shuffled(points.to_vec());
        let points = &points[..3];
        for point in points {
            let pass = 1 + self.dice.below(CROWD) as u32;
            self.field.book.board.order(*point, Order::Stop(pass));
        }
        let all = |field: &mut Field| points.iter().all(|point| field.book.board.victim(*point).is_some());
        self.field.until_at_most(ARRIVAL, all);
        for point in points {
            self.field.book.board.withdraw(*point);
        }
        self.field.until_at_most(LONG, |_| false);
        for point in points {
            let Some(pid) = self.field.book.board.victim(*point) else { continue };
            self.stopped += 1;
            self.field.book.board.resume(*point);
            self.field.wake(pid);
        }
        self.field.until_whole().await;
        self.check(false).await;
    }

    async fn end(mut self, began: Instant) {
        // Whatever is in doubt is cleared up, then every session is looked for on every node.
        self.field.until("nothing is in doubt", |field| {
            field.book.records().all(|record| record.mark().state != State::Doubt)
        });
        self.field.wish(Wish::Rest);
        self.field.until_confirmed();
        self.field.until_whole().await;
        let live = self.field.book.records().filter(|record| record.mark().state == State::Live).count();
        self.field.wish(Wish::Audit);
        self.field.until_confirmed();
        for record in self.field.book.records().filter(|record| record.mark().state == State::Live) {
            let found = record.found().load(Ordering::SeqCst);
            // Each worker of its host.
            assert_eq!(found, 3, "session {} is hosted by {found} of 3 workers", record.cookie().id);
        }
        let view = self.field.until_whole().await;
        assert_eq!(
            view.sessions(),
            live as u64,
            "no session is hosted twice, and none is forgotten: {view:?}"
        );
        self.field.check_caches();
        let book = &self.field.book;
        let words = [book.operations(), book.acks(), book.destroyed(), book.adopted(), book.failures()];
        let [operations, acks, destroyed, adopted, failures] = words.map(|word| word.load(Ordering::Relaxed));
        for (at, name) in POINTS.iter().enumerate() {
            println!("{name:24} {:9} passes {:5} kills", book.board.passes(at), self.killed[at]);
        }
        let (kills, stops, deaths) = (self.kills(), self.stopped, self.field.deaths);
        println!(
            "{kills} kills at {} points, {stops} stops, {deaths} deaths in all, in {:.1} s; {operations} \
             operations, {acks} acked changes, {destroyed} destroyed, {adopted} seen to move, \
             {failures} errors; {live} sessions at the end, none lost",
            POINTS.len(),
            began.elapsed().as_secs_f64(),
        );
        assert!(self.killed.iter().all(|kills| *kills > 0), "a point has killed nobody");
        self.field.end();
    }
}
