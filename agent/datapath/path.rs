//! What is learnt of the way to a tunnel's peer. Written and read by the data threads; it outlives every table.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use socket2::SockAddr;

/// How long no trains are sent where one was refused.
const WITHOUT_TRAINS: Duration = Duration::from_secs(60);
/// How long it takes at most until what the path carries is known again.
const MEASURED: Duration = Duration::from_millis(200);
/// How long a peer's moves are not told again.
const MOVED: Duration = Duration::from_secs(1);

/// Where datagrams go.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The peer's address and port.
    pub address: SocketAddr,
    /// The same as the kernel takes it.
    pub socket: SockAddr,
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self { address, socket: address.into() }
    }
}

/// What is learnt of the way to a peer.
#[derive(Debug, Default)]
pub struct Path {
    /// Where the peer is now, if it has shown that it is not where it was said to be.
    roamed: ArcSwapOption<Destination>,
    /// The address of this host that the peer sends to: answers go from there.
    local: ArcSwapOption<IpAddr>,
    /// Milliseconds since boot until which each datagram goes alone; 0: trains go.
    no_trains_until: AtomicU64,
    /// Milliseconds since boot until which it is not told again that the path has become narrow.
    told_until: AtomicU64,
    /// The same of the peer's being somewhere else.
    move_told_until: AtomicU64,
}

impl Path {
    /// Notes that the peer, who was said to be at `configured`, has shown that it is at `source`. Returns whether that is news.
    pub fn roam(&self, configured: Option<&Destination>, source: SocketAddr) -> bool {
        let configured = configured.map(|configured| configured.address);
        let roamed = self.roamed.load();
        let is_news = roamed.as_ref().map(|roamed| roamed.address).or(configured) != Some(source);
        if is_news {
            let is_back = configured == Some(source);
            self.roamed.store((!is_back).then(|| Arc::new(source.into())));
        }
        is_news
    }

    /// Notes that the peer is no more where it has shown to be, if it has. Returns whether that is news.
    pub fn forget_roamed(&self) -> bool {
        self.roamed.swap(None).is_some()
    }

    /// Where the peer is now, if it is not where it was said to be.
    pub fn roamed(&self) -> Guard<Option<Arc<Destination>>> {
        self.roamed.load()
    }

    /// Notes the address of this host that a packet of the peer came to.
    pub fn mark_local(&self, local: IpAddr) {
        if self.local.load().as_deref() != Some(&local) {
            self.local.store(Some(Arc::new(local)));
        }
    }

    /// Forgets it: nothing can be sent from there any more.
    pub fn forget_local(&self) {
        self.local.store(None);
    }

    /// The address of this host that the peer sends to, where it has sent something.
    pub fn local(&self) -> Option<IpAddr> {
        self.local.load().as_deref().copied()
    }

    /// Notes that a train was refused at `since_boot`, for this peer alone.
    pub fn refuse_trains(&self, since_boot: Duration) {
        self.no_trains_until.store(millis(since_boot + WITHOUT_TRAINS), Ordering::Relaxed);
    }

    /// Whether trains may be sent at `since_boot`.
    pub fn takes_trains(&self, since_boot: Duration) -> bool {
        millis(since_boot) >= self.no_trains_until.load(Ordering::Relaxed)
    }

    /// Whether it is to be told at `since_boot` that the path carries less than was sent: not with every packet.
    pub fn is_news(&self, since_boot: Duration) -> bool {
        is_due(&self.told_until, since_boot, MEASURED)
    }

    /// Whether it is to be told at `since_boot` that the peer is somewhere else: whoever moves all the time is looked at
    /// now and then.
    pub fn is_move_news(&self, since_boot: Duration) -> bool {
        is_due(&self.move_told_until, since_boot, MOVED)
    }
}

/// Whether something is due at `since_boot`; if it is, not again for `pause`.
fn is_due(until: &AtomicU64, since_boot: Duration, pause: Duration) -> bool {
    let is_due = millis(since_boot) >= until.load(Ordering::Relaxed);
    if is_due {
        until.store(millis(since_boot + pause), Ordering::Relaxed);
    }
    is_due
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
