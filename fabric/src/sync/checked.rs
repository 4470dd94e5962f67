//! Atomics that loom checks: the words of shared memory stay where they are, and each that a model watches
//! has a shadow of loom's, by which it is read and written while the model runs.
//!
//! loom's own atomics are large and cannot lie in the layout's structures. So these have std's size; a model
//! says which memory it [`watch`]es, and [`check`] runs it for every interleaving, and for every older value
//! that a load may see. Words outside of what is watched, and all words while no model runs, are std's.
//!
//! Shadows are made by the model's first thread before the others begin, because loom takes the making of an
//! atomic for a write that all others must come after. Which words are needed is learned: a word that is met
//! later is noted, and the model begins anew.
//!
//! loom treats SeqCst accesses as AcqRel ones; here each has a SeqCst fence on both sides, which says more
//! than the standard does (a bug that hides in between is not found). Only for the feature `loom`.

use loom::sync::atomic as model;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{self, Ordering};

/// What a watched word is: the range, the offset in it, the bytes.
type Place = (usize, usize, usize);

#[derive(Clone)]
enum Shadow {
    Narrow(Rc<model::AtomicU32>),
    Wide(Rc<model::AtomicU64>),
}

#[derive(Default)]
struct Run {
    /// Address, bytes, and the range that it is.
    ranges: Vec<(usize, usize, usize)>,
    shadows: HashMap<Place, Shadow>,
    /// The first thread has begun others.
    spawned: bool,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
    static LEARNED: RefCell<BTreeSet<Place>> = const { RefCell::new(BTreeSet::new()) };
    /// A word was learned too late for this execution.
    static MISSED: RefCell<bool> = const { RefCell::new(false) };
    static WITHOUT_FENCE: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

/// How much was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Executions.
    pub executions: u64,
    /// Words that had a shadow.
    pub words: usize,
}

/// Runs a model for all interleavings with at most `preemptions` preemptions.
///
/// # Errors
/// What a thread of it has panicked with.
pub fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> Result<Checked, String> {
    LEARNED.with(|learned| learned.borrow_mut().clear());
    let model = std::sync::Arc::new(model);
    loop {
        let executions = std::sync::Arc::new(atomic::AtomicU64::new(0));
        let (this, count) = (model.clone(), executions.clone());
        MISSED.with(|missed| *missed.borrow_mut() = false);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 100_000;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                count.fetch_add(1, Ordering::Relaxed);
                // What the last execution has left belongs to no execution any more.
                RUN.with(|run| *run.borrow_mut() = Some(Run::default()));
                this();
                RUN.with(|run| *run.borrow_mut() = None);
            });
        }));
        RUN.with(|run| *run.borrow_mut() = None);
        if MISSED.with(|missed| *missed.borrow()) {
            continue;
        }
        let words = LEARNED.with(|learned| learned.borrow().len());
        return match ended {
            Ok(()) => Ok(Checked { executions: executions.load(Ordering::Relaxed), words }),
            Err(panic) => Err(panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic without a text".to_owned())),
        };
    }
}

/// Runs something without the full fences in files whose path ends like this.
pub fn without_fence<T>(file: &'static str, work: impl FnOnce() -> T) -> T {
    WITHOUT_FENCE.with(|without| *without.borrow_mut() = Some(file));
    let result = work();
    WITHOUT_FENCE.with(|without| *without.borrow_mut() = None);
    result
}

/// From now on in this execution, words in these bytes are checked. To be called by the model's first
/// thread, before it begins others. Returns the range.
pub fn watch(address: usize, bytes: usize) -> usize {
    let range = with_run(|run| {
        let range = run.ranges.len();
        run.ranges.push((address, bytes, range));
        range
    });
    let range = range.expect("only a model watches memory");
    let learned: Vec<Place> =
        LEARNED.with(|learned| learned.borrow().iter().filter(|(of, _, _)| *of == range).copied().collect());
    for place @ (_, offset, bytes) in learned {
        make(place, address + offset, bytes);
    }
    range
}

/// The same memory is mapped at another address, too.
pub fn watch_again(range: usize, address: usize, bytes: usize) {
    with_run(|run| run.ranges.push((address, bytes, range)));
}

/// Whether a model runs.
pub fn runs() -> bool {
    with_run(|_| ()).is_some()
}

/// Begins a thread of a model, with a stack on which the cache's code finds room.
///
/// # Panics
/// If no model runs.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + 'static) -> loom::thread::JoinHandle<T> {
    /// A model's threads are coroutines of one thread of the system, so nothing is sent anywhere.
    struct Here<T>(T);
    // SAFETY: see above.
    unsafe impl<T> Send for Here<T> {}
    impl<T> Here<T> {
        fn take(self) -> T {
            self.0
        }
    }
    with_run(|run| run.spawned = true);
    let work = Here(work);
    let builder = loom::thread::Builder::new().stack_size(1 << 16);
    builder.spawn(move || work.take()()).expect("a model has few threads")
}

/// Runs something on a thread of the system, where no model runs: what is made before the model's threads
/// begin, or looked at after they have ended.
///
/// # Panics
/// If it panics.
pub fn outside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).expect("it ended well")
}

fn with_run<T>(work: impl FnOnce(&mut Run) -> T) -> Option<T> {
    RUN.with(|run| run.borrow_mut().as_mut().map(work))
}

fn make(place: Place, address: usize, bytes: usize) -> Shadow {
    let shadow = if bytes == 4 {
        // SAFETY: the word lies in watched memory, which outlives the execution; all bit patterns are good.
        let word = unsafe { atomic::AtomicU32::from_ptr(address as *mut u32) };
        Shadow::Narrow(Rc::new(model::AtomicU32::new(word.load(Ordering::Relaxed))))
    } else {
        // SAFETY: as above.
        let word = unsafe { atomic::AtomicU64::from_ptr(address as *mut u64) };
        Shadow::Wide(Rc::new(model::AtomicU64::new(word.load(Ordering::Relaxed))))
    };
    with_run(|run| run.shadows.insert(place, shadow.clone()));
    shadow
}

/// The shadow of a word; `None` if it is not watched.
fn shadow(address: usize, bytes: usize) -> Option<Shadow> {
    // What unwinds is of no interest any more, and must not panic again.
    if std::thread::panicking() {
        return None;
    }
    let (place, known, spawned) = with_run(|run| {
        let inside =
            |(start, length, _): &&(usize, usize, usize)| (*start..start + length).contains(&address);
        let (start, _, range) = run.ranges.iter().find(inside)?;
        let place = (*range, address - start, bytes);
        Some((place, run.shadows.get(&place).cloned(), run.spawned))
    })??;
    if known.is_some() {
        return known;
    }
    LEARNED.with(|learned| learned.borrow_mut().insert(place));
    if spawned {
        MISSED.with(|missed| *missed.borrow_mut() = true);
        // Not a panic that anybody is told of: the model begins anew.
        std::panic::resume_unwind(Box::new("a word was learned"));
    }
    Some(make(place, address, bytes))
}

/// A fence, of loom's while a model runs.
pub fn fence(order: Ordering) {
    if runs() {
        model::fence(order);
    } else {
        atomic::fence(order);
    }
}

/// A full fence, unless it is the one that the model does without.
#[track_caller]
pub fn fence_full() {
    let here = Location::caller().file();
    if WITHOUT_FENCE.with(|without| without.borrow().is_none_or(|file| !here.ends_with(file))) {
        fence(Ordering::SeqCst);
    }
}

/// A moment of waiting for another thread: in a model, another thread goes on.
pub fn spin() {
    if runs() {
        loom::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Fences around an access that is to be sequentially consistent.
fn fenced<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    let full = order == Ordering::SeqCst;
    if full {
        model::fence(Ordering::SeqCst);
    }
    let result = access();
    if full {
        model::fence(Ordering::SeqCst);
    }
    result
}

macro_rules! checked {
    ($(#[$meta:meta])* $name:ident, $value:ty, $variant:ident) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Debug, Default)]
        pub struct $name(atomic::$name);

        #[allow(missing_docs, reason = "as std's")]
        impl $name {
            pub const fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            fn shadow(&self) -> Option<Rc<model::$name>> {
                match shadow(std::ptr::from_ref(self) as usize, size_of::<$value>())? {
                    Shadow::$variant(shadow) => Some(shadow),
                    _ => None,
                }
            }

            pub fn load(&self, order: Ordering) -> $value {
                match self.shadow() {
                    Some(shadow) => fenced(order, || shadow.load(order)),
                    None => self.0.load(order),
                }
            }

            pub fn store(&self, value: $value, order: Ordering) {
                if let Some(shadow) = self.shadow() {
                    fenced(order, || shadow.store(value, order));
                }
                self.0.store(value, order);
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                let by_shadow = |shadow: &model::$name| shadow.swap(value, order);
                self.change(order, by_shadow, |word| word.swap(value, order), |_| value)
            }

            pub fn fetch_add(&self, by: $value, order: Ordering) -> $value {
                let sum = |before: $value| before.wrapping_add(by);
                let by_shadow = |shadow: &model::$name| shadow.fetch_add(by, order);
                self.change(order, by_shadow, |word| word.fetch_add(by, order), sum)
            }

            pub fn fetch_sub(&self, by: $value, order: Ordering) -> $value {
                let rest = |before: $value| before.wrapping_sub(by);
                let by_shadow = |shadow: &model::$name| shadow.fetch_sub(by, order);
                self.change(order, by_shadow, |word| word.fetch_sub(by, order), rest)
            }

            pub fn fetch_max(&self, with: $value, order: Ordering) -> $value {
                let most = |before: $value| before.max(with);
                let by_shadow = |shadow: &model::$name| shadow.fetch_max(with, order);
                self.change(order, by_shadow, |word| word.fetch_max(with, order), most)
            }

            /// A read-modify-write: by the shadow, and then the word has the new value, too.
            fn change(
                &self,
                order: Ordering,
                by_shadow: impl FnOnce(&model::$name) -> $value,
                by_word: impl FnOnce(&atomic::$name) -> $value,
                new: impl FnOnce($value) -> $value,
            ) -> $value {
                let Some(shadow) = self.shadow() else { return by_word(&self.0) };
                let before = fenced(order, || by_shadow(&shadow));
                self.0.store(new(before), Ordering::Relaxed);
                before
            }

            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let Some(shadow) = self.shadow() else {
                    return self.0.compare_exchange(current, new, success, failure);
                };
                let result = fenced(success, || shadow.compare_exchange(current, new, success, failure));
                if result.is_ok() {
                    self.0.store(new, Ordering::Relaxed);
                }
                result
            }

            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }

            /// # Safety
            /// As of std's.
            pub unsafe fn from_ptr<'a>(word: *mut $value) -> &'a Self {
                // SAFETY: the caller vouches for the word; this type has the layout of std's, and that of the
                // plain value.
                unsafe { &*word.cast::<Self>() }
            }
        }
    };
}

checked!(/** A word of 4 bytes. */ AtomicU32, u32, Narrow);
checked!(/** A word of 8 bytes. */ AtomicU64, u64, Wide);

/// A byte; never checked.
pub type AtomicU8 = atomic::AtomicU8;

impl AtomicU32 {
    /// The word as std knows it, for the kernel.
    pub fn plain(&self) -> &atomic::AtomicU32 {
        &self.0
    }
}
