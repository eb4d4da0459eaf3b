//! What must always hold, and what must hold once nothing goes wrong any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tunmesh::agent::reconcile::ActualRoute;
use tunmesh::agent::session::SessionState;
use tunmesh::controller::stored::Stored;
use tunmesh::proto::convert::session::{DeviceSpec, Meaning, meaning};
use tunmesh::proto::model::{DeviceName, NodeName, Owner, TunnelName};
use tunmesh::proto::session::{ItemId, Items};

use crate::env::Env;
use crate::machine::{Machine, Process};
use crate::server::{Acknowledged, Server};

/// No local tunnel is lost to the controller's doings, neither in memory nor on disk.
pub fn locals(machine: &Machine) {
    let wanted = machine.process.as_ref().map(|process| process.state.desired());
    for desired in wanted.into_iter().chain([&machine.disk.desired]) {
        for (name, spec) in &machine.locals {
            let Some(tunnel) = desired.tunnels.get(name) else {
                panic!("{} lost its local tunnel {name}", machine.who);
            };
            assert_eq!(tunnel.owner, Owner::Local, "{}: {name} is another's now", machine.who);
            assert_eq!(tunnel.remote, spec.remote, "{}: {name} leads elsewhere", machine.who);
        }
    }
}

/// What was acknowledged is on the disk of the agent that the connection leads to. `installed` is the disk that it
/// had when it connected.
pub fn acknowledged(machine: &Machine, installed: u64, acknowledged: &Acknowledged) {
    if machine.installed != installed {
        return;
    }
    let Acknowledged { connection, generation, items } = acknowledged;
    let who = format!("{} on {connection:?}", machine.who);
    let Some(base) = &machine.disk.controller else {
        panic!("{who} acknowledged {generation} and has nothing")
    };
    assert!(base.generation >= *generation, "{who} acknowledged {generation} and has {}", base.generation);
    if let Some(items) = items
        && base.generation == *generation
    {
        assert_eq!(names(&base.items), names(items), "{who} has another {generation} than was pushed");
    }
}

fn names(items: &Items) -> BTreeMap<String, String> {
    items.iter().map(|item| (item.id.to_string(), item.tag.to_string())).collect()
}

/// What the store says is consistent, and has what operators were told.
pub fn store(server: &Server) {
    let (entries, revision) = server.store.read("/");
    let revisions: BTreeMap<String, u64> = entries.iter().map(|e| (e.key.clone(), e.revision)).collect();
    for (mesh, told) in &server.told {
        let set = revisions.get(&format!("/meshes/{mesh}"));
        let last = server.store.last_change(&format!("/meshes/{mesh}"));
        assert!(revision >= *told, "{mesh} was told to be stored at {told}, and the store is at {revision}");
        assert!(set.is_none() || last == set.copied(), "{mesh} is not what it was last set to");
    }
    let stored = Stored::from_entries(entries, revision);
    assert!(stored.faults.is_empty(), "the store cannot be read: {:?}", stored.faults);
    for (mesh, allocations) in &stored.wanted.allocations {
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (node, allocation) in &allocations.nodes {
            for address in &allocation.addresses {
                let other = owners.insert(*address, node.as_str());
                assert_eq!(other, None, "{address} of {mesh} is also {node}'s");
            }
        }
    }
}

/// Whether everything is as it is wanted, or the first thing that is not.
pub fn converged(machines: &[Machine], server: &Server, env: &Env) -> Result<(), String> {
    let (entries, revision) = server.store.read("/");
    let stored = Stored::from_entries(entries, revision);
    let views = stored.wanted.views();
    allocated(&stored)?;
    let Some(controller) = &server.process else { return Err("the controller does not run".to_owned()) };
    let state = &controller.state;
    if state.generation() != stored.generation() {
        return Err(format!(
            "the controller is at {}, the store at {}",
            state.generation(),
            stored.generation()
        ));
    }
    let statuses = state.nodes(env.instant());
    let mut addresses: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for machine in machines {
        let who = &machine.who;
        let Some(process) = &machine.process else {
            if machine.is_off() {
                continue;
            }
            return Err(format!("{who} does not run"));
        };
        // What is half open may look well to both sides for a while.
        if !process.connection.is_some_and(|connection| env.network.is_open(connection)) {
            return Err(format!("{who} is not connected"));
        }
        let view = views.get(&machine.node).cloned().unwrap_or_default();
        agent(machine, process, &view).map_err(|problem| format!("{who} {problem}"))?;
        kernel(machine, process).map_err(|problem| format!("{who} {problem}"))?;
        let known = stored.wanted.nodes.get(&machine.node).map(|record| &record.keys);
        if known != Some(&process.state.keys()) {
            return Err(format!("{who} has other keys than the controller knows"));
        }
        let Some(status) = statuses.iter().find(|status| status.name == machine.node) else {
            return Err(format!("{who} is not known to the controller"));
        };
        if !status.converged || status.removals_held > 0 {
            return Err(format!("{who} is not in step for the controller: {status:?}"));
        }
        if status.tunnels != process.state.desired().tunnels.len() {
            return Err(format!("{who} has reported {} tunnels", status.tunnels));
        }
        if status.labels != machine.labels {
            return Err(format!("{who} has the labels {:?}, the store {:?}", machine.labels, status.labels));
        }
        for name in process.state.desired().tunnels.iter().filter(|(_, t)| t.owner == Owner::Controller) {
            let (mesh, peer) = name.0.as_str().split_once('.').unwrap();
            let mesh = &stored.wanted.meshes[&mesh.parse().unwrap()];
            let members = stored.wanted.members(mesh);
            for node in [&peer.parse().unwrap(), &machine.node] {
                if !members.contains(node) {
                    return Err(format!("{who} has a tunnel {}, and {node} is no member", name.0));
                }
            }
        }
        let devices = process.state.desired().devices.values().filter(|d| d.owner == Owner::Controller);
        for address in devices.flat_map(|device| &device.addresses) {
            if let Some(other) = addresses.insert(address.addr(), who) {
                return Err(format!("{who} and {other} both have {address}"));
            }
        }
    }
    Ok(())
}

/// The members of each mesh have their addresses, and nobody else.
fn allocated(stored: &Stored) -> Result<(), String> {
    for (name, mesh) in &stored.wanted.meshes {
        let allocations =
            stored.wanted.allocations.get(name).map(|all| all.nodes.clone()).unwrap_or_default();
        let owners = allocations.iter().filter(|(_, allocation)| allocation.freed.is_none());
        let owners: BTreeSet<&NodeName> = owners.map(|(node, _)| node).collect();
        let members = stored.wanted.members(mesh);
        if owners != members.iter().collect() {
            return Err(format!("the members of {name} are {members:?}, and {owners:?} have addresses"));
        }
    }
    Ok(())
}

/// An agent has what is wanted of it, on disk and in memory, and beside it only what is local.
fn agent(machine: &Machine, process: &Process, view: &Items) -> Result<(), String> {
    let standing = process.session.standing();
    if standing.state != SessionState::Synced || process.is_busy() {
        return Err(format!("is not in step: {:?}, {:?}", standing.state, standing.trouble));
    }
    let Some(base) = &machine.disk.controller else { return Err("has nothing of the controller".to_owned()) };
    if !base.held.is_empty() {
        return Err(format!("holds {:?}", names(&base.held)));
    }
    if base.items != *view {
        return Err(format!("has {:?}, and is to have {:?}", names(&base.items), names(view)));
    }
    if process.state.base() != Some(base) || process.session.base() != Some(base) {
        return Err("has something else in memory than on disk".to_owned());
    }
    let desired = process.state.desired();
    if *desired != machine.disk.desired {
        return Err("wants something else than is on its disk".to_owned());
    }
    let failures = process.state.failures();
    let mut wanted = BTreeSet::new();
    for item in base.items.iter() {
        match meaning(item).map_err(|error| format!("does not understand {}: {error:?}", item.id))? {
            Meaning::Device(name, DeviceSpec { addresses, key: _ }) => {
                let device = desired.devices.get(&name).filter(|device| device.owner == Owner::Controller);
                if device.is_some_and(|device| device.addresses != addresses) {
                    return Err(format!("wants other addresses on {name}"));
                }
            }
            Meaning::Tunnel(spec) => {
                let tunnel =
                    desired.tunnels.get(&spec.name).filter(|tunnel| tunnel.owner == Owner::Controller);
                let Some(tunnel) = tunnel else {
                    if failures.contains_key(&ItemId::Tunnel(spec.name.clone())) {
                        continue;
                    }
                    return Err(format!("does not want {}, and does not say why", spec.name));
                };
                if tunnel.remote != spec.remote
                    || tunnel.device != spec.device
                    || tunnel.routes != spec.routes
                {
                    return Err(format!("wants another {}", spec.name));
                }
                wanted.insert(spec.name);
            }
        }
    }
    let controllers = desired.tunnels.iter().filter(|(_, tunnel)| tunnel.owner == Owner::Controller);
    let surplus: Vec<&TunnelName> =
        controllers.map(|(name, _)| name).filter(|name| !wanted.contains(name)).collect();
    if !surplus.is_empty() {
        return Err(format!("still wants {surplus:?}"));
    }
    Ok(())
}

/// The kernel and the data path hold what the agent wants.
fn kernel(machine: &Machine, process: &Process) -> Result<(), String> {
    let target = process.state.target();
    let actual = machine.kernel.actual();
    let wanted: BTreeSet<&str> = target.devices.keys().map(DeviceName::as_str).collect();
    if machine.kernel.our_devices() != wanted {
        return Err(format!("has the devices {:?}, and wants {wanted:?}", machine.kernel.our_devices()));
    }
    for (name, device) in &target.devices {
        let link = &actual.links[name.as_str()];
        if !link.up || link.mtu != u32::from(device.mtu) || link.addresses != device.addresses {
            return Err(format!("has {name} as {link:?}, and wants {device:?}"));
        }
    }
    let route = |route: &tunmesh::agent::reconcile::Route| ActualRoute {
        prefix: route.prefix,
        device: route.device.to_string(),
        mtu: route.mtu.map(u32::from),
    };
    let routes: BTreeSet<ActualRoute> = target.routes.iter().map(route).collect();
    if actual.routes != routes {
        return Err(format!("has the routes {:?}, and wants {routes:?}", actual.routes));
    }
    if process.published != target.forwarding {
        return Err("forwards otherwise than it wants".to_owned());
    }
    Ok(())
}
