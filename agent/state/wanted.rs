//! What is wanted by both owners, and what the controller's part means.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::agent::session::Base;
use crate::proto::command::TunnelSpec;
use crate::proto::convert::session::{DeviceSpec, Meaning, meaning};
use crate::proto::model::{Desired, Device, DeviceName, Framing, MeshName, Owner, TunnelName};
use crate::proto::session::ItemId;

/// What is wanted. Its serde form is the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// All devices and tunnels, of both owners.
    #[serde(flatten)]
    pub desired: Desired,
    /// What the controller said, from which its part of `desired` follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Base>,
}

/// What is wanted when the controller's part has been worked out.
pub(super) struct Derived {
    pub(super) wanted: Wanted,
    /// What of the controller's is not among it, and why.
    pub(super) refused: BTreeMap<ItemId, String>,
    /// The meshes for which this host is to have a key.
    pub(super) keys: BTreeSet<MeshName>,
    /// The controller's tunnels that are new or differ.
    pub(super) changed: BTreeSet<TunnelName>,
}

impl Wanted {
    /// Works the controller's part out anew. Names that are local stay so. What is unchanged keeps its seniority, and
    /// behind it comes what is new or changed, and last what is unchanged and `is_faulty`.
    pub(super) fn derived(self, is_faulty: impl Fn(&TunnelName) -> bool) -> Derived {
        let Self { desired: before, controller: Some(base) } = self else {
            let (refused, keys, changed) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
            return Derived { wanted: self, refused, keys, changed };
        };
        let mut desired = before.clone();
        desired.retain(|_, tunnel| tunnel.owner == Owner::Local);
        let mut part = Part::understood(&base);
        let keys = part.devices.values().filter_map(|device| device.key.clone()).collect();
        part.yield_to(&desired);
        let Part { devices, tunnels, refused } = part;
        for spec in tunnels.into_values() {
            let Some(DeviceSpec { addresses, key }) = devices.get(&spec.device).cloned() else { continue };
            let device = || Device { addresses, key, owner: Owner::Controller };
            desired.devices.entry(spec.device.clone()).or_insert_with(device);
            let tunnel = spec.tunnel(Owner::Controller);
            desired.tunnels.insert(spec.name, tunnel);
        }
        let is_same = |name: &TunnelName| {
            let of = |desired: &Desired| {
                let tunnel = desired.tunnels.get(name)?.clone();
                let device = desired.devices.get(&tunnel.device).cloned();
                Some((tunnel, device))
            };
            of(&before) == of(&desired)
        };
        let is_local = |name: &TunnelName| desired.tunnels.get(name).is_some_and(|t| t.owner == Owner::Local);
        let changed: BTreeSet<TunnelName> =
            desired.tunnels.keys().filter(|name| !is_local(name) && !is_same(name)).cloned().collect();
        let stays = |name: &&TunnelName| desired.tunnels.contains_key(*name) && !changed.contains(*name);
        desired.seniority = before.seniority.iter().filter(stays).chain(&changed).cloned().collect();
        if !changed.is_empty() {
            desired.rank_last(|name| !changed.contains(name) && is_faulty(name));
        }
        Derived { wanted: Self { desired, controller: Some(base) }, refused, keys, changed }
    }
}

impl From<Desired> for Wanted {
    /// Without a controller.
    fn from(desired: Desired) -> Self {
        Self { desired, controller: None }
    }
}

/// What the controller wants, as far as it can be had.
struct Part {
    devices: BTreeMap<DeviceName, DeviceSpec>,
    tunnels: BTreeMap<TunnelName, TunnelSpec>,
    refused: BTreeMap<ItemId, String>,
}

impl Part {
    fn understood(base: &Base) -> Self {
        let mut part = Self { devices: BTreeMap::new(), tunnels: BTreeMap::new(), refused: BTreeMap::new() };
        for item in base.all().iter() {
            match meaning(item) {
                Ok(Meaning::Device(name, device)) => {
                    part.devices.insert(name, device);
                }
                Ok(Meaning::Tunnel(spec)) => {
                    part.tunnels.insert(spec.name.clone(), spec);
                }
                Err(error) => {
                    part.refused.insert(item.id.clone(), error.describe(error.field.name()));
                }
            }
        }
        part
    }

    /// Gives up the names that are local, and the tunnels whose device is not there.
    fn yield_to(&mut self, local: &Desired) {
        const TAKEN: &str = "is taken by a local tunnel; it comes up once that is gone";
        let Self { devices, tunnels, refused } = self;
        devices.retain(|name, _| {
            let is_local = local.devices.contains_key(name);
            if is_local {
                refused.insert(ItemId::Device(name.clone()), format!("the name {TAKEN}"));
            }
            !is_local
        });
        tunnels.retain(|name, spec| {
            let device = ItemId::Device(spec.device.clone());
            let is_plain = !matches!(spec.framing, Framing::Wireguard(_)) && !spec.also_plain;
            let why = if local.tunnels.contains_key(name) {
                format!("the name {TAKEN}")
            } else if let Some(device) = devices.get(&spec.device) {
                match &device.key {
                    // What is kept of a mesh that was plain is none of one that is encrypted, unless that is said of it.
                    Some(mesh) if is_plain => format!("it is not encrypted, and mesh {mesh} is"),
                    Some(_) | None => return true,
                }
            } else if let Some(why) = refused.get(&device) {
                format!("{device} cannot be had: {why}")
            } else {
                format!("{device} is not among what the controller wants")
            };
            refused.insert(ItemId::Tunnel(name.clone()), why);
            false
        });
    }
}
