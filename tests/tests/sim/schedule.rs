//! Time, and who runs: events in the order of their times, and fibers.
//!
//! A *fiber* is a thread of a simulated process: production code with a stack of its own, which runs until it
//! sleeps. Between two events nothing happens, so one thread runs the whole cluster. Killing a process drops
//! its fibers where they sleep: their stacks are unwound, and nothing that they touch is undone, because
//! their cache was told first (`Cache::kill`). Pausing it holds its wake-ups back.
//!
//! Invariant: no lock of production code is held while a fiber sleeps, or the next one that wants it would
//! stop the only thread.
//!
//! Unsafe code: the way from deep in a fiber's stack to its switch is a pointer.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Nanoseconds of simulated time.
pub type Time = u64;
pub const US: Time = 1_000;
pub const MS: Time = 1_000_000;
pub const S: Time = 1_000_000_000;

/// Names a fiber; never reused in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FiberId(u64);

/// Names a simulated process; never reused in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pid(pub u32);

type Switch = Yielder<(), ()>;

struct Fiber {
    pid: Pid,
    coroutine: Option<Coroutine<(), (), ()>>,
    switch: *const Switch,
    /// Which sleep it is in: an older timer must not end it.
    ticket: u64,
    sleeping: bool,
    /// A wake-up came while its process was paused.
    missed: bool,
}

/// How a process sees time.
#[derive(Clone, Copy, Default)]
pub struct Clock {
    /// Added to the monotonic time.
    pub monotonic_ns: u64,
    /// Added to the Unix time, ns.
    pub unix_ns: i64,
}

struct Process {
    clock: Clock,
    paused: bool,
}

struct Schedule {
    now: Time,
    sequence: u64,
    events: BinaryHeap<Reverse<Event>>,
    fibers: BTreeMap<FiberId, Fiber>,
    fiber_last: u64,
    processes: BTreeMap<Pid, Process>,
    stacks: Vec<DefaultStack>,
    random: Random,
    steps: u64,
}

struct Event {
    at: Time,
    sequence: u64,
    what: Box<dyn FnOnce()>,
}

thread_local! {
    static SCHEDULE: RefCell<Option<Schedule>> = const { RefCell::new(None) };
    static CURRENT: Cell<Option<(FiberId, Pid)>> = const { Cell::new(None) };
    /// The running fiber is being unwound: it must not sleep.
    static UNWINDING: Cell<bool> = const { Cell::new(false) };
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
}

/// Unix time at the beginning of every simulation, ns.
const BEGAN_NS: u64 = 1_800_000_000 * S;
/// Monotonic time at the beginning: the product subtracts durations from it.
const MONOTONIC_NS: u64 = 100_000 * S;
const STACK_BYTES: usize = 256 << 10;

fn with<T>(work: impl FnOnce(&mut Schedule) -> T) -> T {
    SCHEDULE.with_borrow_mut(|schedule| work(schedule.as_mut().expect("a simulation runs on this thread")))
}

/// Begins a simulation on this thread.
pub fn begin(seed: u64) {
    let schedule = Schedule {
        now: 0,
        sequence: 0,
        events: BinaryHeap::new(),
        fibers: BTreeMap::new(),
        fiber_last: 0,
        processes: BTreeMap::new(),
        stacks: Vec::new(),
        random: Random::new(seed ^ 0x5e1f_a9e5),
        steps: 0,
    };
    SCHEDULE.set(Some(schedule));
    ACTIVE.set(true);
}

/// Ends it: everything that is left goes.
pub fn end() {
    let pids: Vec<Pid> = with(|schedule| schedule.processes.keys().copied().collect());
    pids.into_iter().for_each(kill);
    let events = with(|schedule| std::mem::take(&mut schedule.events));
    drop(events);
    ACTIVE.set(false);
    SCHEDULE.set(None);
}

/// Events carried out so far.
pub fn steps() -> u64 {
    with(|schedule| schedule.steps)
}

/// Simulated time since the beginning.
pub fn now() -> Time {
    with(|schedule| schedule.now)
}

/// Time that a spinning processor uses up.
pub fn spin(time: Time) {
    with(|schedule| schedule.now += time);
}

/// Calls `what` after so long.
pub fn after(time: Time, what: impl FnOnce() + 'static) {
    with(|schedule| schedule.push(schedule.now + time, Box::new(what)));
}

/// Runs events until `end`, or until `stop` says so.
pub fn run(end: Time, stop: impl Fn() -> bool) {
    while !stop() {
        let next = with(|schedule| match schedule.events.peek() {
            Some(Reverse(event)) if event.at <= end => {
                let Reverse(event) = schedule.events.pop()?;
                schedule.now = schedule.now.max(event.at);
                schedule.steps += 1;
                Some(event.what)
            }
            _ => None,
        });
        match next {
            Some(what) => what(),
            None => return with(|schedule| schedule.now = schedule.now.max(end)),
        }
    }
}

/// A new process.
pub fn add_process(pid: Pid, clock: Clock) {
    with(|schedule| schedule.processes.insert(pid, Process { clock, paused: false }));
}

pub fn is_alive(pid: Pid) -> bool {
    with(|schedule| schedule.processes.contains_key(&pid))
}

pub fn is_paused(pid: Pid) -> bool {
    with(|schedule| schedule.processes.get(&pid).is_some_and(|process| process.paused))
}

/// Changes a process's clock.
pub fn set_clock(pid: Pid, change: impl FnOnce(&mut Clock)) {
    with(|schedule| {
        if let Some(process) = schedule.processes.get_mut(&pid) {
            change(&mut process.clock);
        }
    });
}

/// As SIGSTOP.
pub fn pause(pid: Pid) {
    with(|schedule| {
        if let Some(process) = schedule.processes.get_mut(&pid) {
            process.paused = true;
        }
    });
}

/// As SIGCONT.
pub fn resume(pid: Pid) {
    let missed: Vec<FiberId> = with(|schedule| {
        let Some(process) = schedule.processes.get_mut(&pid) else { return Vec::new() };
        process.paused = false;
        let fibers = schedule.fibers.iter_mut().filter(|(_, fiber)| fiber.pid == pid);
        fibers.filter_map(|(id, fiber)| std::mem::take(&mut fiber.missed).then_some(*id)).collect()
    });
    missed.into_iter().for_each(wake);
}

/// As SIGKILL. Called from outside the process only.
pub fn kill(pid: Pid) {
    let fibers: Vec<Fiber> = with(|schedule| {
        schedule.processes.remove(&pid);
        let ids: Vec<FiberId> =
            schedule.fibers.iter().filter(|(_, fiber)| fiber.pid == pid).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| schedule.fibers.remove(&id)).collect()
    });
    let before = CURRENT.get();
    assert!(before.is_none_or(|(_, current)| current != pid), "a process is killed from outside");
    UNWINDING.set(true);
    for fiber in fibers {
        CURRENT.set(Some((FiberId(0), pid)));
        drop(fiber);
    }
    UNWINDING.set(false);
    CURRENT.set(before);
}

/// Starts a thread of a process.
pub fn spawn(pid: Pid, work: impl FnOnce() + 'static) -> FiberId {
    let id = with(|schedule| {
        schedule.fiber_last += 1;
        let id = FiberId(schedule.fiber_last);
        let stack = schedule.stacks.pop();
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a stack"));
        let coroutine = Coroutine::with_stack(stack, move |switch: &Switch, ()| {
            with(|schedule| {
                if let Some(fiber) = schedule.fibers.get_mut(&id) {
                    fiber.switch = switch;
                }
            });
            work();
        });
        let (coroutine, switch) = (Some(coroutine), std::ptr::null());
        let fiber = Fiber { pid, coroutine, switch, ticket: 0, sleeping: true, missed: false };
        schedule.fibers.insert(id, fiber);
        id
    });
    wake(id);
    id
}

/// The running fiber.
pub fn current() -> Option<FiberId> {
    CURRENT.get().map(|(id, _)| id)
}

/// The process of the running fiber.
pub fn current_pid() -> Option<Pid> {
    CURRENT.get().map(|(_, pid)| pid)
}

/// Sleeps so long.
pub fn sleep(time: Time) {
    park(time);
}

/// Sleeps until woken, or so long.
pub fn park(time: Time) {
    if UNWINDING.get() || std::thread::panicking() {
        return;
    }
    let Some((id, _)) = CURRENT.get() else { panic!("only fibers sleep") };
    let switch = with(|schedule| {
        let at = schedule.now.saturating_add(time.max(1));
        let fiber = schedule.fibers.get_mut(&id)?;
        fiber.ticket += 1;
        fiber.sleeping = true;
        let (ticket, switch) = (fiber.ticket, fiber.switch);
        schedule.push(at, Box::new(move || timer(id, ticket)));
        Some(switch)
    });
    let Some(switch) = switch else { return };
    // SAFETY: the switch lies at the base of the running fiber's own stack, which lives as long as it runs.
    let switch = unsafe { &*switch };
    switch.suspend(());
}

/// Wakes a fiber now.
pub fn wake(id: FiberId) {
    let ticket = with(|schedule| schedule.fibers.get(&id).filter(|fiber| fiber.sleeping).map(|f| f.ticket));
    if let Some(ticket) = ticket {
        after(0, move || timer(id, ticket));
    }
}

/// The end of one sleep of a fiber.
fn timer(id: FiberId, ticket: u64) {
    let coroutine = with(|schedule| {
        let fiber = schedule.fibers.get_mut(&id).filter(|fiber| fiber.sleeping && fiber.ticket == ticket)?;
        let process = schedule.processes.get(&fiber.pid)?;
        if process.paused {
            fiber.missed = true;
            return None;
        }
        fiber.sleeping = false;
        Some((fiber.pid, fiber.coroutine.take()?))
    });
    let Some((pid, mut coroutine)) = coroutine else { return };
    CURRENT.set(Some((id, pid)));
    let result = coroutine.resume(());
    CURRENT.set(None);
    match result {
        CoroutineResult::Yield(()) => with(|schedule| {
            if let Some(fiber) = schedule.fibers.get_mut(&id) {
                fiber.coroutine = Some(coroutine);
            }
        }),
        CoroutineResult::Return(()) => with(|schedule| {
            schedule.fibers.remove(&id);
            schedule.stacks.push(coroutine.into_stack());
        }),
    }
}

/// What a simulated process's clock shows, ns; `None` if the caller is none.
pub fn clock(unix: bool) -> Option<u64> {
    if !ACTIVE.try_with(Cell::get).unwrap_or(false) {
        return None;
    }
    let pid = CURRENT.get().map(|(_, pid)| pid);
    Some(clock_of(pid, unix))
}

/// What a process's clock shows, ns.
pub fn clock_of(pid: Option<Pid>, unix: bool) -> u64 {
    SCHEDULE.with(|schedule| {
        // Asked in the middle of a step of the scheduler itself: nobody's time.
        let Ok(schedule) = schedule.try_borrow() else { return MONOTONIC_NS };
        let Some(schedule) = schedule.as_ref() else { return MONOTONIC_NS };
        let process = pid.and_then(|pid| schedule.processes.get(&pid));
        let clock = process.map(|process| process.clock).unwrap_or_default();
        match unix {
            true => (BEGAN_NS + schedule.now).saturating_add_signed(clock.unix_ns),
            false => MONOTONIC_NS + schedule.now + clock.monotonic_ns,
        }
    })
}

/// Random bytes for simulated code. False: the caller is none.
pub fn fill_random(out: &mut [u8]) -> bool {
    if !ACTIVE.try_with(Cell::get).unwrap_or(false) {
        return false;
    }
    SCHEDULE.with(|schedule| {
        let Ok(mut schedule) = schedule.try_borrow_mut() else {
            out.fill(0x5a);
            return true;
        };
        let Some(schedule) = schedule.as_mut() else { return false };
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&schedule.random.next().to_le_bytes()[..piece.len()]);
        }
        true
    })
}

/// The simulated process's id.
pub fn pid() -> Option<u32> {
    if !ACTIVE.try_with(Cell::get).unwrap_or(false) {
        return None;
    }
    CURRENT.get().map(|(_, pid)| pid.0)
}

impl Schedule {
    fn push(&mut self, at: Time, what: Box<dyn FnOnce()>) {
        self.sequence += 1;
        self.events.push(Reverse(Event { at, sequence: self.sequence, what }));
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Seeded numbers (splitmix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}
