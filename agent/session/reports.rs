//! What a controller is told of tunnels.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::model::TunnelName;
use crate::proto::session::{Forwarding, Report, TunnelReport};

/// What the controller of a session knows of the tunnels, and has asked.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// As they were told last; `None`: not yet.
    known: Option<BTreeMap<TunnelName, TunnelReport>>,
    requests: BTreeSet<u64>,
    /// What the host forwards, as far as it is known, and as it was told last.
    forwarding: Option<Forwarding>,
    told_forwarding: Option<Forwarding>,
}

impl Reports {
    /// Takes in that all are asked for.
    pub(super) fn handle_request(&mut self, request: u64) {
        self.requests.insert(request);
    }

    /// Takes in what the host forwards.
    pub(super) fn handle_forwarding(&mut self, forwarding: Forwarding) {
        self.forwarding = Some(forwarding);
    }

    /// Whether the controller is to be told of all, changed or not.
    pub(super) fn are_due(&self) -> bool {
        self.known.is_none() || !self.requests.is_empty()
    }

    /// What is to be said when the tunnels are `now`.
    pub(super) fn next(&mut self, now: BTreeMap<TunnelName, TunnelReport>) -> Vec<Report> {
        let requests = std::mem::take(&mut self.requests).into_iter();
        let whole =
            || Report { tunnels: now.clone(), whole: true, forwarding: self.forwarding, ..Report::default() };
        let mut reports: Vec<Report> =
            requests.map(|request| Report { request: Some(request), ..whole() }).collect();
        if reports.is_empty() {
            reports.extend(match &self.known {
                None => Some(whole()),
                Some(before) => self.changes(before, &now),
            });
        }
        if !reports.is_empty() {
            self.known = Some(now);
            self.told_forwarding = self.forwarding;
        }
        reports
    }

    /// What differs, but for the age of the last packet, which always does.
    fn changes(
        &self,
        before: &BTreeMap<TunnelName, TunnelReport>,
        now: &BTreeMap<TunnelName, TunnelReport>,
    ) -> Option<Report> {
        let is_same = |one: &TunnelReport, other: &TunnelReport| {
            let TunnelReport { device, owner, state, endpoint, preferred, last_received_ms: _, keyed } = one;
            let TunnelReport {
                device: d,
                owner: o,
                state: s,
                endpoint: e,
                preferred: p,
                last_received_ms: _,
                keyed: k,
            } = other;
            (device, owner, state, endpoint, preferred, keyed) == (d, o, s, e, p, k)
        };
        let changed =
            now.iter().filter(|(name, tunnel)| !before.get(*name).is_some_and(|old| is_same(old, tunnel)));
        let report = Report {
            tunnels: changed.map(|(name, tunnel)| (name.clone(), tunnel.clone())).collect(),
            gone: before.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
            whole: false,
            request: None,
            forwarding: self.forwarding.filter(|now| self.told_forwarding != Some(*now)),
        };
        (report != Report::default()).then_some(report)
    }
}
