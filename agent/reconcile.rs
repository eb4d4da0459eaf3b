//! The operations that lead from the actual state of the host to the target.

mod drift;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::agent::target::{Forwarding, Target, TargetDevice};
use crate::proto::model::{DeviceName, MeshName, Mtu};

pub use drift::drift;

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// All interfaces of the host by name.
    pub links: BTreeMap<String, Link>,
    /// The routes under the agent's own protocol number.
    pub routes: BTreeSet<ActualRoute>,
}

impl Actual {
    /// Whether there is this route, with its MTU.
    pub fn has(&self, route: &Route) -> bool {
        self.leading_where(route).any(|there| route.matches(there))
    }

    fn leading_where(&self, route: &Route) -> impl Iterator<Item = &ActualRoute> {
        // The first of them in the order of routes.
        let least = ActualRoute { prefix: route.prefix, device: route.device.to_string(), mtu: None };
        self.routes.range(least..).take_while(|there| route.leads_where(there))
    }
}

/// An interface as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Whether this agent made it and holds it open.
    pub ours: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
}

/// A route as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ActualRoute {
    /// Where to.
    pub prefix: IpNet,
    /// The interface.
    pub device: String,
    /// Its own MTU, where it has one.
    pub mtu: Option<u32>,
}

/// A route to have, under the agent's own protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub prefix: IpNet,
    /// The device.
    pub device: DeviceName,
    /// The largest packet, where it is less than the device's.
    pub mtu: Option<Mtu>,
}

impl Route {
    fn matches(&self, actual: &ActualRoute) -> bool {
        self.leads_where(actual) && self.mtu.map(u32::from) == actual.mtu
    }

    fn leads_where(&self, actual: &ActualRoute) -> bool {
        self.prefix == actual.prefix && self.device.as_str() == actual.device
    }

    fn as_actual(&self) -> ActualRoute {
        ActualRoute { prefix: self.prefix, device: self.device.to_string(), mtu: self.mtu.map(u32::from) }
    }
}

/// One effect. Whoever performs it hands its result back before asking for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read the kernel's state anew.
    Observe,
    /// Ask for the addresses of a host name, and go on meanwhile.
    Resolve(String),
    /// Find the MTU of the route to each address.
    MeasurePaths(Vec<IpAddr>),
    /// Open this host's key of a mesh; where none is kept, make one.
    OpenKey(MeshName),
    /// Wipe this host's key of a mesh.
    RemoveKey(MeshName),
    /// Give the data path a new table.
    Publish(Forwarding),
    /// Remove a route of ours.
    RemoveRoute(ActualRoute),
    /// Remove a device of ours.
    DeleteDevice(DeviceName),
    /// Make a device; it is down, without addresses.
    CreateDevice(DeviceName),
    /// Set the largest packet of a device.
    SetMtu(DeviceName, Mtu),
    /// Give a device an address.
    AddAddress(DeviceName, IpNet),
    /// Take an address from a device.
    RemoveAddress(DeviceName, IpNet),
    /// Bring a device up.
    SetUp(DeviceName),
    /// Add a route; one that others made to the same prefix is an error.
    AddRoute(Route),
    /// Give a route of ours another MTU.
    ChangeRoute(Route),
}

impl Op {
    /// The device that the operation changes, if it changes one.
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Self::DeleteDevice(device)
            | Self::CreateDevice(device)
            | Self::SetMtu(device, _)
            | Self::AddAddress(device, _)
            | Self::RemoveAddress(device, _)
            | Self::SetUp(device) => Some(device),
            Self::Observe
            | Self::Resolve(_)
            | Self::MeasurePaths(_)
            | Self::OpenKey(_)
            | Self::RemoveKey(_)
            | Self::Publish(_)
            | Self::RemoveRoute(_)
            | Self::AddRoute(_)
            | Self::ChangeRoute(_) => None,
        }
    }
}

/// The devices and routes that failed lately and are left alone for now.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Devices by name.
    pub devices: BTreeSet<DeviceName>,
    /// Routes.
    pub routes: BTreeSet<Route>,
}

/// A part of the way to the target, as far as it can be gone now.
type Step = fn(&Actual, &Forwarding, &Target, &Held) -> Vec<Op>;

/// The next operations towards the target; none where the actual state is the target but for what is held.
///
/// Order: routes go before what they lead to; the data path lets go of a device before it is deleted, and knows
/// a device before routes lead to it. So each step is a batch of its own, and the caller asks again after it.
pub fn next_ops(actual: &Actual, published: &Forwarding, target: &Target, held: &Held) -> Vec<Op> {
    let steps: [Step; 5] = [remove_routes, publish, delete_devices, make_devices, add_routes];
    steps
        .iter()
        .map(|step| step(actual, published, target, held))
        .find(|ops| !ops.is_empty())
        .unwrap_or_default()
}

fn is_ours(actual: &Actual, device: &DeviceName) -> bool {
    actual.links.get(device.as_str()).is_some_and(|link| link.ours)
}

fn remove_routes(actual: &Actual, _: &Forwarding, target: &Target, _: &Held) -> Vec<Op> {
    let wanted: BTreeSet<(IpNet, &str)> =
        target.routes.iter().map(|route| (route.prefix, route.device.as_str())).collect();
    actual
        .routes
        .iter()
        .filter(|route| actual.links.get(&route.device).is_some_and(|link| link.ours))
        .filter(|route| !wanted.contains(&(route.prefix, route.device.as_str())))
        .map(|route| Op::RemoveRoute(route.clone()))
        .collect()
}

/// The part of the target's forwarding whose devices exist.
fn possible(actual: &Actual, target: &Target) -> Forwarding {
    let devices = target.forwarding.iter().filter(|(device, _)| is_ours(actual, device));
    devices.map(|(device, forwarding)| (device.clone(), forwarding.clone())).collect()
}

fn publish(actual: &Actual, published: &Forwarding, target: &Target, _: &Held) -> Vec<Op> {
    let possible = possible(actual, target);
    if possible == *published { Vec::new() } else { vec![Op::Publish(possible)] }
}

fn delete_devices(actual: &Actual, _: &Forwarding, target: &Target, held: &Held) -> Vec<Op> {
    actual
        .links
        .iter()
        .filter(|(_, link)| link.ours)
        .filter_map(|(name, _)| name.parse::<DeviceName>().ok())
        .filter(|name| !target.devices.contains_key(name) && !held.devices.contains(name))
        .map(Op::DeleteDevice)
        .collect()
}

fn make_devices(actual: &Actual, _: &Forwarding, target: &Target, held: &Held) -> Vec<Op> {
    let wanted = target.devices.iter().filter(|(name, _)| !held.devices.contains(*name));
    wanted
        .flat_map(|(name, device)| match actual.links.get(name.as_str()) {
            None => make_device(name, device),
            Some(link) if link.ours => change_device(name, device, link),
            Some(_) => Vec::new(),
        })
        .collect()
}

fn make_device(name: &DeviceName, device: &TargetDevice) -> Vec<Op> {
    let mut ops = vec![Op::CreateDevice(name.clone()), Op::SetMtu(name.clone(), device.mtu)];
    ops.extend(device.addresses.iter().map(|address| Op::AddAddress(name.clone(), *address)));
    ops.push(Op::SetUp(name.clone()));
    ops
}

fn change_device(name: &DeviceName, device: &TargetDevice, link: &Link) -> Vec<Op> {
    let mut ops = Vec::new();
    if link.mtu != u32::from(device.mtu) {
        ops.push(Op::SetMtu(name.clone(), device.mtu));
    }
    // New addresses first: with its last address a device loses its routes, also those of others.
    let missing = device.addresses.difference(&link.addresses);
    ops.extend(missing.map(|address| Op::AddAddress(name.clone(), *address)));
    let foreign = link.addresses.difference(&device.addresses);
    ops.extend(foreign.map(|address| Op::RemoveAddress(name.clone(), *address)));
    if !link.up {
        ops.push(Op::SetUp(name.clone()));
    }
    ops
}

fn add_routes(actual: &Actual, _: &Forwarding, target: &Target, held: &Held) -> Vec<Op> {
    let possible = target.routes.iter().filter(|route| {
        actual.links.get(route.device.as_str()).is_some_and(|link| link.ours && link.up)
            && !held.devices.contains(&route.device)
            && !held.routes.contains(*route)
    });
    possible
        .filter(|route| !actual.has(route))
        .map(|route| match actual.leading_where(route).next() {
            None => Op::AddRoute(route.clone()),
            Some(_) => Op::ChangeRoute(route.clone()),
        })
        .collect()
}

/// What the kernel holds after `op` was performed, as far as that can be told without reading it again.
pub fn apply(actual: &mut Actual, op: &Op) {
    let link = |actual: &mut Actual, device: &DeviceName, change: &dyn Fn(&mut Link)| {
        if let Some(link) = actual.links.get_mut(device.as_str()) {
            change(link);
        }
    };
    match op {
        Op::Observe
        | Op::Resolve(_)
        | Op::MeasurePaths(_)
        | Op::OpenKey(_)
        | Op::RemoveKey(_)
        | Op::Publish(_) => {}
        Op::RemoveRoute(route) => {
            actual.routes.remove(route);
        }
        Op::DeleteDevice(device) => {
            actual.links.remove(device.as_str());
            actual.routes.retain(|route| route.device != device.as_str());
        }
        Op::CreateDevice(device) => {
            let new = Link { ours: true, up: false, mtu: Mtu::ETHERNET.into(), addresses: BTreeSet::new() };
            actual.links.insert(device.to_string(), new);
        }
        Op::SetMtu(device, mtu) => link(actual, device, &|link| link.mtu = (*mtu).into()),
        Op::AddAddress(device, address) => link(actual, device, &|link| {
            link.addresses.insert(*address);
        }),
        Op::RemoveAddress(device, address) => link(actual, device, &|link| {
            link.addresses.remove(address);
        }),
        Op::SetUp(device) => link(actual, device, &|link| link.up = true),
        Op::AddRoute(route) | Op::ChangeRoute(route) => {
            actual.routes.retain(|there| !route.leads_where(there));
            actual.routes.insert(route.as_actual());
        }
    }
}
