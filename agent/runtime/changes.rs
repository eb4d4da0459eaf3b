//! What has changed without this agent's doing: the host's interfaces and routes, what others did to devices, and links.

use std::time::{Duration, Instant};

use super::Runtime;
use crate::agent::os::clock;
use crate::agent::os::netlink::watch::Change;
use crate::agent::state::{Move, Repair};
use crate::proto::host::clock::now;
use crate::proto::model::TunnelName;
use crate::proto::rate::{Bucket, Rate};

/// How long after a change of the host it is looked at, and how long after a look at the earliest.
const SETTLED: Duration = Duration::from_millis(50);
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// How long after links were looked at they are looked at again.
const BETWEEN_LINKS: Duration = Duration::from_millis(50);

/// How often it is logged of one link that it has changed.
const LINK_NEWS: Rate = Rate { burst: 6, every: Duration::from_secs(60) };

/// What is known of changes of the host.
pub(super) struct Changed {
    /// When they are looked at; absent: there was none.
    pub(super) due: Option<Instant>,
    /// Whether all of them are of this agent's own devices and routes.
    is_ours: bool,
    /// Whether there was one of interfaces or of this agent's routes.
    is_of_devices: bool,
    looked_at: Option<Instant>,
    /// When links are looked at that have changed, and when they last were.
    pub(super) links_due: Option<Instant>,
    links_at: Option<Instant>,
}

impl Default for Changed {
    fn default() -> Self {
        Self {
            due: None,
            is_ours: true,
            is_of_devices: false,
            looked_at: None,
            links_due: None,
            links_at: None,
        }
    }
}

/// What was logged of a link.
#[derive(Default)]
pub(super) struct LinkTold {
    /// How often it had changed.
    changes: u32,
    news: Bucket,
}

impl Runtime {
    /// Takes in that something of the host has changed, and all else that has by now. It is looked at a little later: changes
    /// seldom come alone.
    pub(super) fn note_change(&mut self, first: Change) {
        for change in std::iter::once(first).chain(std::iter::from_fn(|| self.watch.waiting())) {
            self.changed.is_of_devices |= change != Change::Other;
            self.changed.is_ours &= match change {
                Change::Interface(index) => self.platform.is_own(index),
                Change::OwnRoute => true,
                Change::Other | Change::Unheard => false,
            };
        }
        let now = now();
        let earliest = self.changed.looked_at.map_or(now, |at| at + BETWEEN_LOOKS);
        self.changed.due.get_or_insert(earliest.max(now + SETTLED));
    }

    /// Looks at the host where that is due.
    pub(super) fn look_at_host(&mut self) {
        let now = now();
        if self.changed.due.is_some_and(|due| due <= now) {
            if self.changed.is_of_devices {
                self.state.handle_device_event(now);
            }
            if !self.changed.is_ours {
                self.state.handle_paths_changed(now);
            }
            let Changed { links_due, links_at, .. } = self.changed;
            self.changed = Changed { looked_at: Some(now), links_due, links_at, ..Changed::default() };
        }
    }

    /// Takes in that links have changed: of those that do so all the time not each change is looked at.
    pub(super) fn note_links(&mut self) {
        let now = now();
        let earliest = self.changed.links_at.map_or(now, |at| at + BETWEEN_LINKS);
        self.changed.links_due.get_or_insert(earliest.max(now));
    }

    /// Looks at links where that is due.
    pub(super) fn look_at_links(&mut self) {
        let now = now();
        if self.changed.links_due.is_some_and(|due| due <= now) {
            (self.changed.links_due, self.changed.links_at) = (None, Some(now));
            self.platform.look_at_links();
            self.log_links();
        }
    }

    /// Has the state choose among the endpoints of peers that have several.
    pub(super) fn choose_endpoints(&mut self) {
        let since_boot = clock::since_boot();
        let standing = |name: &TunnelName| (name.clone(), self.platform.standing(name, since_boot));
        let standings = self.state.choosers().map(standing).collect();
        self.state.handle_standings(&standings, now());
        while let Some(Move { tunnel, to, is_preferred }) = self.state.poll_move() {
            let which = if is_preferred { "its preferred endpoint" } else { "another endpoint of its peer" };
            tracing::info!(%tunnel, %to, "the tunnel goes to {which} now");
        }
    }

    /// Says what others have done that is put right.
    pub(super) fn tell_repairs(&mut self) {
        while let Some(Repair { device, what }) = self.state.poll_repair() {
            tracing::warn!(%device, "others {what}; it is put right");
            if let Some(uplink) = &mut self.uplink {
                uplink.handle_repair(device, what, now());
            }
        }
    }

    /// Logs how links have changed; of one that changes all the time now and then how often.
    pub(super) fn log_links(&mut self) {
        let now = now();
        for (tunnel, link) in self.platform.links() {
            let told = self.links.entry(tunnel.clone()).or_default();
            if link.changes < told.changes {
                // It is another one.
                told.changes = 0;
            }
            if told.changes == link.changes || told.news.take(LINK_NEWS, now).is_err() {
                continue;
            }
            let times = link.changes.wrapping_sub(told.changes);
            told.changes = link.changes;
            let (state, why) = (link.state.name(), link.why);
            match times {
                1 => tracing::info!(%tunnel, state, "the link has changed: {why}"),
                _ => tracing::info!(%tunnel, state, "the link has changed {times} times: {why}"),
            }
        }
    }
}
