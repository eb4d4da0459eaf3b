//! The packet path, on threads apart from tokio: *egress* from the devices to the sockets, and *ingress* from the sockets
//! to the devices. They share a table that is never changed, only replaced whole.

mod asking;
mod batch;
mod egress;
mod handshakes;
mod ingress;
pub mod link;
mod links;
mod load;
mod outbox;
pub mod path;
pub mod peer;
mod post;
#[cfg(test)]
mod sample;
pub mod standby;
pub mod stats;
pub mod table;
mod threads;

use std::io;
use std::net::IpAddr;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::agent::os::epoll::Waker;
use crate::agent::os::udp::SocketPair;
use crate::agent::wireguard::cookie::Limits;
use load::Load;
use peer::Receivers;
use stats::AgentStats;
use table::Table;
use threads::Main;

/// The most packets that egress takes from one device before it looks at the others.
const BUDGET: usize = 64;
/// The longest datagram, and with room in front the longest packet.
const BUFFER: usize = 1 << 16;

/// How many threads receive at most beside the one that does the rest: one for each processor, within reason.
fn readers() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).clamp(2, 8)
}

/// What a data thread tells the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatapathEvent {
    /// A device cannot be read any more: someone else removed it.
    DeviceGone,
    /// The thread has ended, in words why: nothing goes its way any more.
    Ended(String),
    /// The path to a peer carries less than was sent.
    PathNarrowed(IpAddr),
    /// The peer of an encrypted tunnel has shown to be somewhere else.
    PeerMoved,
    /// A link is in another state.
    LinkChanged,
}

/// What all threads share.
struct Shared {
    table: ArcSwap<Table>,
    sockets: SocketPair,
    stats: Arc<AgentStats>,
    load: Load,
    /// Whose the indices of encrypted datagrams are.
    receivers: Arc<Receivers>,
    /// How many handshakes there are.
    limits: Mutex<Limits>,
    /// How many readers wait to be lent a port, by its number.
    wished: [AtomicUsize; 2],
    /// When the links are to be looked at.
    links_due: DueTime,
    /// Whether the runtime was told that links have changed, and has not looked yet.
    links_told: AtomicBool,
    waker: Waker,
    stop: AtomicBool,
    events: mpsc::Sender<DatapathEvent>,
}

impl Shared {
    /// Tells the runtime that the peer of a tunnel is somewhere else at `since_boot`; not with every packet. A full channel has
    /// news enough: it looks at all peers with each.
    fn tell_moved(&self, tunnel: &table::Tunnel, since_boot: Duration) {
        if tunnel.path.is_move_news(since_boot) {
            let _ = self.events.try_send(DatapathEvent::PeerMoved);
        }
    }

    /// Tells the runtime that a link is in another state; once, until it looks.
    fn tell_links(&self) {
        if !self.links_told.swap(true, Ordering::AcqRel) {
            let _ = self.events.try_send(DatapathEvent::LinkChanged);
        }
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When something is due, as time since boot in microseconds: any thread may bring it forward.
#[derive(Default)]
struct DueTime(AtomicU64);

impl DueTime {
    fn get(&self) -> Duration {
        match self.0.load(Ordering::Acquire) {
            u64::MAX => Duration::MAX,
            micros => Duration::from_micros(micros),
        }
    }

    fn set(&self, due: Duration) {
        self.0.store(micros(due), Ordering::Release);
    }

    /// Returns whether it was later before.
    fn bring_forward(&self, due: Duration) -> bool {
        let due = micros(due);
        self.0.fetch_min(due, Ordering::AcqRel) > due
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A data thread.
struct Worker(Option<JoinHandle<()>>);

impl Worker {
    /// Starts a thread that does `body`, which ends well only where it is stopped. Any other end is an event.
    fn start<F>(name: &'static str, events: &mpsc::Sender<DatapathEvent>, body: F) -> io::Result<Self>
    where
        F: FnOnce() -> io::Result<()> + Send + 'static,
    {
        // Kept for the last word, which must not be lost among others.
        let place = events.clone().try_reserve_owned().map_err(io::Error::other)?;
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let ended = catch_unwind(AssertUnwindSafe(body));
            let why = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it panicked".to_owned(),
            };
            place.send(DatapathEvent::Ended(format!("the thread {name} ended: {why}")));
        })?;
        Ok(Self(Some(thread)))
    }

    fn join(&mut self) {
        if let Some(thread) = self.0.take() {
            // How it ended it has said itself.
            let _ = thread.join();
        }
    }
}

/// The running packet path. Its threads end with it.
pub struct Datapath {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

impl Datapath {
    /// Starts all threads with an empty table. `events` has room for more than one event of each.
    ///
    /// # Errors
    /// What the kernel says where a descriptor or thread cannot be had.
    pub fn start(
        sockets: SocketPair,
        stats: Arc<AgentStats>,
        receivers: Arc<Receivers>,
        events: mpsc::Sender<DatapathEvent>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(Table::default()),
            sockets,
            stats,
            load: Load::default(),
            receivers,
            limits: Mutex::default(),
            wished: Default::default(),
            links_due: DueTime::default(),
            links_told: AtomicBool::new(false),
            waker: Waker::new()?,
            stop: AtomicBool::new(false),
            events: events.clone(),
        });
        // Before the first thread, so that they end where a later one cannot be had.
        let mut datapath = Self { shared: Arc::clone(&shared), workers: Vec::new() };
        let mut main = Main::new(Arc::clone(&shared))?;
        for _ in 0..readers() {
            let mut reader = main.reader();
            datapath.workers.push(Worker::start("tunmesh-reader", &events, move || reader.drive())?);
        }
        datapath.workers.push(Worker::start("tunmesh-data", &events, move || main.drive())?);
        Ok(datapath)
    }

    /// From now on it is told again that links have changed: they are looked at now.
    pub fn look_at_links(&self) {
        self.shared.links_told.store(false, Ordering::Release);
    }

    /// Replaces the table. Packets that are under way still see the old one.
    pub fn publish(&self, table: Table) {
        self.shared.table.store(Arc::new(table));
        self.shared.waker.wake();
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waker.wake();
        self.shared.sockets.end_receiving();
        self.workers.iter_mut().for_each(Worker::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(body: impl FnOnce() -> io::Result<()> + Send + 'static) -> Option<DatapathEvent> {
        // One place is taken by what does not matter here, as all others could be.
        let (sender, mut events) = mpsc::channel(2);
        sender.try_send(DatapathEvent::DeviceGone).unwrap();
        let mut worker = Worker::start("tunmesh-test", &sender, body).unwrap();
        worker.join();
        drop(sender);
        assert_eq!(events.try_recv(), Ok(DatapathEvent::DeviceGone));
        events.try_recv().ok()
    }

    #[test]
    fn a_thread_that_ends_unasked_says_so() {
        let words = |event| match event {
            Some(DatapathEvent::Ended(words)) => words,
            other => panic!("{other:?}"),
        };
        let failed = words(ends(|| Err(io::Error::from(io::ErrorKind::PermissionDenied))));
        assert!(failed.contains("tunmesh-test ended: permission denied"), "{failed}");
        let panicked = words(ends(|| panic!("a fault of this test")));
        assert!(panicked.contains("tunmesh-test ended: it panicked"), "{panicked}");
        assert_eq!(ends(|| Ok(())), None, "it was stopped");
    }
}
