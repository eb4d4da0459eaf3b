//! Those who want something: operators of meshes, and the users of each host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tunmesh::controller::mesh::{Mesh, MeshNode, Overlay, Security, Selector, Topology};
use tunmesh::controller::state::ApplyError;
use tunmesh::proto::command::{Command, TunnelSpec};
use tunmesh::proto::model::{AllowedPrefix, Framing, MeshName, NodeName};

use crate::env::Env;
use crate::machine;
use crate::random::Random;
use crate::server::Server;

const WHO: &str = "operator";

/// Meshes that operators apply and delete, and the third byte of their overlays.
const MESHES: [(&str, u8); 3] = [("a", 1), ("b", 2), ("c", 3)];

/// An operator does something to a mesh of `nodes`.
pub fn operate(server: &mut Server, nodes: &[NodeName], env: &mut Env) {
    let (name, number) = *env.random.pick(&MESHES);
    let name: MeshName = name.parse().unwrap();
    let allow = env.random.once_in(3);
    if env.random.once_in(8) {
        delete(server, &name, allow, env);
    } else {
        let mesh = some_mesh(&name, number, nodes, &mut env.random);
        apply(server, mesh, allow, env);
    }
}

/// An operator consents to what agents keep.
pub fn consent(server: &mut Server, env: &mut Env) {
    let Some(process) = &server.process else { return };
    if process.state.nodes(env.instant()).iter().all(|node| node.removals_held == 0) {
        return;
    }
    // No other mesh will do for sure: one that clashes with another since labels changed is refused.
    let mesh = empty_mesh(&"d".parse().unwrap(), 4);
    apply(server, mesh, true, env);
}

fn apply(server: &mut Server, mesh: Mesh, allow: bool, env: &mut Env) {
    let Some(process) = &server.process else { return };
    let wall = env.wall();
    // Some look at the plan first, and apply no other.
    let hash = env.random.once_in(2).then(|| process.state.basis().plan(mesh.clone(), wall).hash);
    let name = mesh.name.clone();
    let nodes: Vec<&str> = mesh.nodes.keys().map(NodeName::as_str).collect();
    env.trace.say(
        env.now,
        WHO,
        format_args!(
            "applies {name} of {nodes:?}, {} by label{}",
            mesh.members.len(),
            if allow { ", with consent" } else { "" }
        ),
    );
    let mut outcome = process.state.basis().apply(mesh.clone(), hash, allow, wall);
    if matches!(outcome, Err(ApplyError::NeedsConsent(_))) && env.random.once_in(2) {
        env.say(WHO, format_args!("consents"));
        outcome = process.state.basis().apply(mesh, hash, true, wall);
    }
    match outcome {
        Ok((_, Some(transaction))) => server.submit(&name, transaction, env),
        Ok((_, None)) => {}
        Err(ApplyError::Hazards(plan)) => {
            let error = plan.hazards.iter().find(|hazard| hazard.is_error);
            env.say(WHO, format_args!("is refused: {:?}", error.map(|hazard| &hazard.message)));
        }
        Err(error) => env.say(WHO, format_args!("is refused: {error:?}")),
    }
}

fn delete(server: &mut Server, mesh: &MeshName, allow: bool, env: &mut Env) {
    let Some(process) = &server.process else { return };
    match process.state.basis().delete_mesh(mesh, allow) {
        Ok((_, transaction)) => {
            env.say(WHO, format_args!("deletes {mesh}"));
            server.submit(mesh, transaction, env);
        }
        Err(error) => env.say(WHO, format_args!("deletes {mesh}, and is refused: {error:?}")),
    }
}

fn empty_mesh(name: &MeshName, number: u8) -> Mesh {
    Mesh {
        name: name.clone(),
        overlay: Overlay { v4: Some(format!("10.{number}.0.0/28").parse().unwrap()), v6: None },
        device: name.as_str().parse().unwrap(),
        topology: Topology::Full,
        security: Security::Plain,
        mtu: None,
        without: BTreeSet::new(),
        nodes: BTreeMap::new(),
        members: Vec::new(),
    }
}

fn some_mesh(name: &MeshName, number: u8, nodes: &[NodeName], random: &mut Random) -> Mesh {
    let mut mesh = empty_mesh(name, number);
    if random.once_in(10) {
        mesh.overlay.v4 = Some(format!("10.{}.0.0/28", number + 10).parse().unwrap());
    }
    if random.once_in(10) {
        mesh.mtu = Some(1300.try_into().unwrap());
    }
    if random.once_in(2) {
        mesh.security = Security::Encrypted;
    }
    // Small ones, and ones of nearly all.
    let times = 2 + random.of(0..4);
    let inverted = random.once_in(2);
    for (position, node) in nodes.iter().enumerate() {
        if random.once_in(times) == inverted {
            continue;
        }
        let mut entry = MeshNode::default();
        if random.once_in(2) {
            entry.endpoint = Some(machine::address(position).to_string().parse().unwrap());
        }
        if random.once_in(6) {
            let host = 1 + u8::try_from(random.of(0..6)).unwrap();
            entry.addresses = vec![IpAddr::from([10, number, 0, host])];
        }
        if random.once_in(4) {
            entry.routes = vec![format!("192.168.{position}.0/24").parse().unwrap()];
        }
        mesh.nodes.insert(node.clone(), entry);
    }
    if random.once_in(3) {
        let role = *random.pick(&["web", "db"]);
        mesh.members.push(Selector { labels: [("role".to_owned(), role.to_owned())].into() });
    }
    mesh
}

/// What a user of a host wants.
pub fn some_command(nodes: &[NodeName], random: &mut Random) -> Command {
    let number = random.of(1..4);
    // Some have a name that a controller's tunnel may have.
    let name = match random.once_in(8) {
        true => format!("a.{}", random.pick(nodes)),
        false => format!("l{number}"),
    };
    if random.once_in(4) {
        return Command::Delete { name: name.parse().unwrap() };
    }
    let remote = match random.once_in(8) {
        true => machine::address(random.index(nodes.len())).to_string(),
        false => format!("172.30.0.{number}"),
    };
    let prefix = format!("10.200.{number}.0/24").parse().unwrap();
    Command::Add {
        tunnel: Box::new(TunnelSpec {
            name: name.parse().unwrap(),
            device: format!("l{number}").parse().unwrap(),
            addresses: vec![format!("10.200.{number}.1/24").parse().unwrap()],
            mtu: None,
            remote: Some(remote.parse().unwrap()),
            framing: Framing::Raw,
            keepalive: None,
            also_plain: false,
            probed: false,
            echo: None,
            allowed_prefixes: vec![AllowedPrefix { prefix, preference: 0 }],
            routes: Vec::new(),
            without: BTreeSet::new(),
        }),
        replace: random.once_in(2),
    }
}
