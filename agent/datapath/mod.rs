//! The packet path: two threads apart from tokio, *egress* from the devices to the sockets and *ingress* from the
//! sockets to the devices. They share a table that is never changed, only replaced whole.

mod egress;
mod ingress;
pub mod stats;
pub mod table;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::agent::os::epoll::Waker;
use crate::agent::os::udp::SocketPair;
use stats::AgentStats;
use table::Table;

/// The most packets that a thread takes from one descriptor before it looks at the others.
const BUDGET: usize = 64;
/// The longest datagram, and with room in front the longest packet.
const BUFFER: usize = 1 << 16;

/// What a data thread tells the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatapathEvent {
    /// A device cannot be read any more: someone else removed it.
    DeviceGone,
}

/// What both threads share.
struct Shared {
    table: ArcSwap<Table>,
    sockets: SocketPair,
    stats: Arc<AgentStats>,
    stop: AtomicBool,
    events: mpsc::Sender<DatapathEvent>,
}

/// A thread that waits on descriptors of its own.
struct Worker {
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start<F>(name: &str, body: F) -> io::Result<Self>
    where
        F: FnOnce(Arc<Waker>) + Send + 'static,
    {
        let waker = Arc::new(Waker::new()?);
        let of_thread = Arc::clone(&waker);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || body(of_thread))?;
        Ok(Self { waker, thread: Some(thread) })
    }
}

/// The running packet path. Its threads end with it.
pub struct Datapath {
    shared: Arc<Shared>,
    workers: [Worker; 2],
}

impl Datapath {
    /// Starts both threads with an empty table.
    ///
    /// # Errors
    /// What the kernel says where a descriptor or thread cannot be had.
    pub fn start(
        sockets: SocketPair,
        stats: Arc<AgentStats>,
        events: mpsc::Sender<DatapathEvent>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(Table::default()),
            sockets,
            stats,
            stop: AtomicBool::new(false),
            events,
        });
        let egress = egress::Egress::new(Arc::clone(&shared))?;
        let ingress = ingress::Ingress::new(Arc::clone(&shared))?;
        let egress = Worker::start("tunmesh-egress", move |waker| egress.run(&waker))?;
        let ingress = Worker::start("tunmesh-ingress", move |waker| ingress.run(&waker))?;
        Ok(Self { shared, workers: [egress, ingress] })
    }

    /// Replaces the table. Packets that are under way still see the old one.
    pub fn publish(&self, table: Table) {
        self.shared.table.store(Arc::new(table));
        self.wake();
    }

    fn wake(&self) {
        for worker in &self.workers {
            worker.waker.wake();
        }
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a data thread panicked");
            }
        }
    }
}
