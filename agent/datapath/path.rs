//! What is learnt of the way to a tunnel's peer. Written and read by the data threads; it outlives every table.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

/// How long no trains are sent where one was refused.
const WITHOUT_TRAINS: Duration = Duration::from_secs(60);
/// How long it takes at most until what the path carries is known again.
const MEASURED: Duration = Duration::from_millis(200);

/// What is learnt of the way to a peer.
#[derive(Debug, Default)]
pub struct Path {
    /// The address of this host that the peer sends to: answers go from there.
    local: ArcSwapOption<IpAddr>,
    /// Milliseconds since boot until which each datagram goes alone; 0: trains go.
    no_trains_until: AtomicU64,
    /// Milliseconds since boot until which it is not told again that the path has become narrow.
    told_until: AtomicU64,
}

impl Path {
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
        let is_news = millis(since_boot) >= self.told_until.load(Ordering::Relaxed);
        if is_news {
            self.told_until.store(millis(since_boot + MEASURED), Ordering::Relaxed);
        }
        is_news
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
