//! Runs seeds on all processors until one fails.

use std::any::Any;
use std::cell::RefCell;
use std::env;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::env::Plant;
use crate::trace::Loudness;
use crate::world::World;

/// A run that failed.
pub struct Failure {
    pub seed: u64,
    pub problem: String,
    trace: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, problem, trace } = self;
        write!(
            f,
            "{trace}\nseed {seed}: {problem}\nonce more, with all that happens: TUNMESH_SIM_SEED={seed} cargo test \
             --test sim whatever_happens -- --nocapture"
        )
    }
}

/// The one seed that is to be run, if only one is.
pub fn single() -> Option<u64> {
    env::var("TUNMESH_SIM_SEED").ok().map(|seed| seed.parse().expect("TUNMESH_SIM_SEED is a number"))
}

/// How many runs there are to be.
pub fn runs(usual: u64) -> u64 {
    env::var("TUNMESH_SIM_RUNS").map_or(usual, |runs| runs.parse().expect("TUNMESH_SIM_RUNS is a number"))
}

thread_local! {
    /// Where the panic of a run came from.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the panics of runs from being printed: they are told with their trace.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(RUNNER) {
                PLACE.set(info.location().map(ToString::to_string));
            } else {
                usual(info);
            }
        }));
    });
}

const RUNNER: &str = "simulation";

/// Runs the first `runs` seeds; the failure of the least that fails. With `TUNMESH_SIM_ALL` set it does not stop at
/// that, and names all.
pub fn find(runs: u64, plant: Option<Plant>) -> Option<Failure> {
    keep_quiet();
    let all = env::var_os("TUNMESH_SIM_ALL").is_some();
    let (next, least) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs || (seed > least.load(Ordering::Relaxed) && !all) {
                return;
            }
            if let Some(failure) = run(seed, Loudness::Silent, plant) {
                least.fetch_min(seed, Ordering::Relaxed);
                if all {
                    eprintln!("seed {seed}: {}", failure.problem);
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(2, usize::from);
        let spawn = |_| thread::Builder::new().name(RUNNER.to_owned()).spawn_scoped(scope, work).unwrap();
        let running: Vec<_> = (0..threads).map(spawn).collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let least = least.into_inner();
    let again = || run(least, Loudness::Kept, plant).expect("a run is the same each time");
    let once_more = || {
        let thread = thread::Builder::new().name(RUNNER.to_owned());
        thread::scope(|scope| thread.spawn_scoped(scope, again).unwrap().join().unwrap())
    };
    (least != u64::MAX).then(once_more)
}

/// Runs one seed and prints all that happens.
pub fn show(seed: u64, plant: Option<Plant>) {
    if let Some(failure) = run(seed, Loudness::Loud, plant) {
        panic!("seed {seed}: {}", failure.problem);
    }
}

fn run(seed: u64, loudness: Loudness, plant: Option<Plant>) -> Option<Failure> {
    let mut world = World::new(seed, loudness, plant);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let panic = outcome.err()?;
    let place = PLACE.take().map(|place| format!(" ({place})")).unwrap_or_default();
    Some(Failure { seed, problem: words(panic.as_ref()) + &place, trace: world.env.trace.to_string() })
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
