//! The messages of a session to v1 and back.

mod examination;
mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prost::Message;

use super::{framing_to_wire, keepalive_to_wire, owner_to_wire, remotes_to_wire, texts, timestamp};
use crate::proto::command::{CommandError, Field, TunnelSpec};
use crate::proto::model::{
    DeviceName, Invalid, MeshName, OperatorName, Owner, PublicKey, Remotes, TunnelName, TunnelState,
    check_label, parse_interface_address, shown,
};
use crate::proto::session::{
    Ack, AgentMessage, ControllerMessage, Delta, Digest, Forwarding, Generation, Have, Heartbeat, Hello,
    Item, ItemId, Reach, Removals, Report, RunId, SnapshotChunk, SnapshotEnd, Tag, TunnelReport, Welcome,
};
use crate::proto::trust::Rights;
use crate::proto::v1;

/// What an item says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A device.
    Device(DeviceName, DeviceSpec),
    /// A tunnel. Its addresses are empty: they are its device's.
    Tunnel(TunnelSpec),
}

/// A device as a controller wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its addresses, at least one.
    pub addresses: Vec<IpNet>,
    /// The mesh for which the agent is to make a key: encrypted tunnels on the device use it.
    pub key: Option<MeshName>,
}

/// A device as an item.
pub fn device_item(name: &DeviceName, DeviceSpec { addresses, key }: &DeviceSpec) -> Item {
    let key = key.as_ref().map(ToString::to_string).unwrap_or_default();
    let content = v1::Device { name: name.to_string(), addresses: texts(addresses), key }.encode_to_vec();
    Item { id: ItemId::Device(name.clone()), tag: Tag::of(&content), content }
}

/// A tunnel as an item.
pub fn tunnel_item(tunnel: &TunnelSpec) -> Item {
    let (framing, peer_public_key) = framing_to_wire(tunnel.framing);
    let (remote, more_remotes) = remotes_to_wire(tunnel.remote.as_ref());
    let allowed = tunnel.allowed_prefixes.iter().map(|allowed| v1::AllowedPrefix {
        prefix: allowed.prefix.to_string(),
        preference: allowed.preference,
    });
    let content = v1::Tunnel {
        name: tunnel.name.to_string(),
        device: tunnel.device.to_string(),
        addresses: Vec::new(),
        mtu: tunnel.mtu.map_or(0, u32::from),
        remote,
        more_remotes,
        framing: framing.into(),
        keepalive: keepalive_to_wire(tunnel.keepalive),
        also_plain: tunnel.also_plain,
        probed: tunnel.probed,
        echo: super::echo_to_wire(tunnel.echo),
        peer_public_key,
        allowed_prefixes: allowed.collect(),
        routes: texts(&tunnel.routes),
        without: tunnel.without.iter().map(ToString::to_string).collect(),
    }
    .encode_to_vec();
    Item { id: ItemId::Tunnel(tunnel.name.clone()), tag: Tag::of(&content), content }
}

/// What an item says to this release; fields that it does not know are passed over.
///
/// # Errors
/// Where it cannot be meant, or only by a later release.
pub fn meaning(item: &Item) -> Result<Meaning, CommandError> {
    let garbled = |error: prost::DecodeError| {
        CommandError::invalid(
            Field::Command,
            "",
            Invalid::new(format!("cannot be read ({error})"), "run agent and controller of one release"),
        )
    };
    let misnamed = |name: &str| {
        CommandError::invalid(
            Field::Name,
            name,
            Invalid::new(format!("is another name than that of {}", item.id), "report this fault"),
        )
    };
    match &item.id {
        ItemId::Device(id) => {
            let device = v1::Device::decode(item.content.as_slice()).map_err(garbled)?;
            if device.name != id.as_str() {
                return Err(misnamed(&device.name));
            }
            let addresses = super::list(&device.addresses, Field::Address, parse_interface_address)?;
            if addresses.is_empty() {
                return Err(CommandError::missing(Field::Addresses, "give the device an address"));
            }
            let key = match device.key.as_str() {
                "" => None,
                text => Some(super::parse(Field::Device, text)?),
            };
            Ok(Meaning::Device(id.clone(), DeviceSpec { addresses, key }))
        }
        ItemId::Tunnel(id) => {
            let tunnel = v1::Tunnel::decode(item.content.as_slice()).map_err(garbled)?;
            if tunnel.name != id.as_str() {
                return Err(misnamed(&tunnel.name));
            }
            if !tunnel.addresses.is_empty() {
                return Err(CommandError::invalid(
                    Field::Addresses,
                    tunnel.addresses.join(", "),
                    Invalid::new("are a device's, not a tunnel's", "report this fault"),
                ));
            }
            super::tunnel_spec(&tunnel).map(Meaning::Tunnel)
        }
    }
}

/// Why a message cannot be taken: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {fault}")]
pub struct MessageError {
    /// The field at fault, as v1 names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: Invalid,
}

fn fault(field: &'static str, problem: impl Into<String>) -> MessageError {
    MessageError { field, fault: Invalid::new(problem, "run agent and controller of one release") }
}

/// The most bytes of what an agent says in words; longer than any words of ours.
const WORDS: usize = 1_000;
/// The most bytes of the words of all failures of an acknowledgement: so many as a slow link carries, and one message.
const ALL_WORDS: usize = 256 << 10;

/// The beginning of what an agent says in words: the controller keeps it, and whoever says more wants to fill its
/// memory.
fn cut(words: String) -> String {
    cut_to(words, WORDS)
}

fn cut_to(mut words: String, longest: usize) -> String {
    words.truncate(words.floor_char_boundary(longest));
    words.shrink_to_fit();
    words
}

fn missing(field: &'static str) -> MessageError {
    fault(field, "is missing")
}

fn parse<T: FromStr<Err = Invalid>>(field: &'static str, text: &str) -> Result<T, MessageError> {
    text.parse().map_err(|invalid: Invalid| MessageError {
        field,
        fault: Invalid::new(format!("{} {}", shown(text), invalid.problem), invalid.remedy),
    })
}

fn generation(field: &'static str, wire: Option<v1::Generation>) -> Result<Generation, MessageError> {
    wire.map(Into::into).ok_or_else(|| missing(field))
}

fn digest(bytes: &[u8]) -> Result<Digest, MessageError> {
    Digest::from_bytes(bytes).ok_or_else(|| fault("digest", "is not 16 bytes long"))
}

fn item_id(wire: Option<v1::ItemId>) -> Result<ItemId, MessageError> {
    match wire.and_then(|wire| wire.id).ok_or_else(|| missing("item"))? {
        v1::item_id::Id::Device(name) => parse("item.device", &name).map(ItemId::Device),
        v1::item_id::Id::Tunnel(name) => parse("item.tunnel", &name).map(ItemId::Tunnel),
    }
}

fn item(wire: v1::Item) -> Result<Arc<Item>, MessageError> {
    let tag = Tag::from_bytes(&wire.tag).ok_or_else(|| fault("tag", "is not 16 bytes long"))?;
    Ok(Arc::new(Item { id: item_id(wire.id)?, tag, content: wire.content }))
}

fn items(wire: Vec<v1::Item>) -> Result<Vec<Arc<Item>>, MessageError> {
    wire.into_iter().map(item).collect()
}

fn ids(wire: Vec<v1::ItemId>) -> Result<BTreeSet<ItemId>, MessageError> {
    wire.into_iter().map(|id| item_id(Some(id))).collect()
}

fn heartbeat(wire: v1::Heartbeat) -> Heartbeat {
    let some = |number| (number != 0).then_some(number);
    Heartbeat { ping: some(wire.ping), answers: some(wire.answers) }
}

/// What an agent says. `None`: something that only a later release understands.
///
/// # Errors
/// The first field that is missing or not valid.
pub fn agent_message(wire: v1::AgentMessage) -> Result<Option<AgentMessage>, MessageError> {
    use v1::agent_message::Message as Wire;
    let Some(message) = wire.message else { return Ok(None) };
    Ok(Some(match message {
        Wire::Hello(wire) => AgentMessage::Hello(Box::new(hello(wire)?)),
        Wire::Ack(wire) => AgentMessage::Ack(Ack {
            generation: generation("generation", wire.generation)?,
            failures: wire
                .failures
                .into_iter()
                .map(|failure| Ok((item_id(failure.item)?, cut(failure.reason))))
                .collect::<Result<_, MessageError>>()?,
            removals_held: ids(wire.removals_held)?,
        }),
        Wire::Resync(wire) => AgentMessage::Resync(cut(wire.reason)),
        Wire::Heartbeat(wire) => AgentMessage::Heartbeat(heartbeat(wire)),
        Wire::Report(wire) => AgentMessage::Report(report(wire)?),
        Wire::Goodbye(v1::Goodbye {}) => AgentMessage::Goodbye,
        Wire::Refusal(wire) => AgentMessage::Refusal(cut(wire.reason)),
        Wire::Keys(wire) => AgentMessage::Keys(keys(wire)?),
        Wire::Repaired(wire) => {
            AgentMessage::Repaired { device: parse("device", &wire.device)?, what: cut(wire.what) }
        }
        Wire::LinkStates(wire) => AgentMessage::LinkStates(link::states(wire)?),
        Wire::LinkFigures(wire) => AgentMessage::LinkFigures(link::figures(wire)?),
        Wire::Findings(wire) => AgentMessage::Findings(examination::findings(wire)?),
    }))
}

fn hello(wire: v1::Hello) -> Result<Hello, MessageError> {
    /// More of either nobody needs, and whoever sends it wants to fill the controller's store.
    const MOST: usize = 64;
    if wire.protocol_version == 0 {
        return Err(missing("protocol_version"));
    }
    if wire.capabilities.len() > MOST || wire.labels.len() > MOST {
        return Err(fault("labels", format!("or capabilities are more than {MOST}")));
    }
    for (key, value) in &wire.labels {
        check_label(key, value).map_err(|fault| MessageError { field: "labels", fault })?;
    }
    let have = match wire.have {
        None => None,
        Some(have) => Some(Have {
            store_id: wire.store_id,
            generation: generation("have", Some(have))?,
            digest: digest(&wire.digest)?,
            timeline: cut(wire.timeline),
        }),
    };
    Ok(Hello {
        protocol_version: wire.protocol_version,
        capabilities: wire.capabilities.into_iter().map(cut).collect(),
        node: parse("node", &wire.node)?,
        run_id: RunId::from_bytes(&wire.run_id).ok_or_else(|| fault("run_id", "is not 16 bytes long"))?,
        have,
        version: cut(wire.version),
        labels: wire.labels,
        reach: reach(&wire.endpoint, &wire.more_endpoints)?,
        local: wire.local_address.parse().ok(),
        data_port: u16::try_from(wire.data_port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| fault("data_port", "is no port"))?,
        clock: wire.time.and_then(|time| Some(Duration::from_secs(u64::try_from(time.seconds).ok()?))),
        keys: keys(wire.keys.unwrap_or_default())?,
    })
}

/// Where others reach a node.
fn reach(endpoint: &str, more: &[String]) -> Result<Reach, MessageError> {
    let reach = parse("endpoint", endpoint)?;
    let first = match reach {
        Reach::At(remotes) if !more.is_empty() => remotes.first().clone(),
        Reach::At(_) | Reach::BySession | Reach::Nowhere => return Ok(reach),
    };
    let mut remotes = vec![first];
    for more in more.iter().take(Remotes::MOST) {
        remotes.push(parse("more_endpoints", more)?);
    }
    let remotes =
        Remotes::new(remotes).map_err(|(_, fault)| MessageError { field: "more_endpoints", fault })?;
    Ok(Reach::At(remotes))
}

fn keys(wire: v1::Keys) -> Result<BTreeMap<MeshName, PublicKey>, MessageError> {
    /// More meshes than any node is in: whoever names more wants to fill the controller's store.
    const MOST: usize = 256;
    if wire.public_keys.len() > MOST {
        return Err(fault("keys", format!("are more than {MOST}")));
    }
    let key = |(mesh, bytes): (String, Vec<u8>)| {
        let key = PublicKey::from_bytes(&bytes).ok_or_else(|| fault("keys", "are not 32 bytes of a key"))?;
        Ok((parse("keys", &mesh)?, key))
    };
    wire.public_keys.into_iter().map(key).collect()
}

fn report(wire: v1::Report) -> Result<Report, MessageError> {
    let tunnels = wire.tunnels.into_iter().map(tunnel_report).collect::<Result<_, MessageError>>()?;
    let gone = wire.gone.iter().map(|name| parse("gone", name)).collect::<Result<_, MessageError>>()?;
    let forwarding = wire.forwarding.map(|v1::Forwarding { ipv4, ipv6 }| Forwarding { ipv4, ipv6 });
    let request = (wire.request != 0).then_some(wire.request);
    Ok(Report { tunnels, gone, whole: wire.whole, request, forwarding })
}

fn tunnel_report(wire: v1::TunnelReport) -> Result<(TunnelName, TunnelReport), MessageError> {
    use v1::tunnel_status::{Owner as WireOwner, State};
    let owner = match WireOwner::try_from(wire.owner) {
        Ok(WireOwner::Local) => Owner::Local,
        Ok(WireOwner::Controller) => Owner::Controller,
        Ok(WireOwner::Unspecified) => return Err(missing("owner")),
        Err(_) => return Err(fault("owner", format!("{} is none of this version", wire.owner))),
    };
    let state = match State::try_from(wire.state) {
        Ok(State::Waiting) => TunnelState::Waiting((!wire.reason.is_empty()).then(|| cut(wire.reason))),
        Ok(State::Passing) => TunnelState::Passing,
        Ok(State::Failed) => TunnelState::Failed(cut(wire.reason)),
        Ok(State::Unspecified) => return Err(missing("state")),
        Err(_) => return Err(fault("state", format!("{} is none of this version", wire.state))),
    };
    let report = TunnelReport {
        device: parse("device", &wire.device)?,
        owner,
        state,
        endpoint: cut(wire.endpoint),
        preferred: cut(wire.preferred),
        last_received_ms: wire.last_received_ms,
        keyed: wire.keyed,
    };
    Ok((parse("name", &wire.name)?, report))
}

/// What a controller says. `None`: something that only a later release understands.
///
/// # Errors
/// The first field that is missing or not valid.
pub fn controller_message(wire: v1::ControllerMessage) -> Result<Option<ControllerMessage>, MessageError> {
    use v1::controller_message::Message as Wire;
    let Some(message) = wire.message else { return Ok(None) };
    Ok(Some(match message {
        Wire::Welcome(wire) => ControllerMessage::Welcome(Welcome {
            protocol_version: wire.protocol_version,
            capabilities: wire.capabilities.into_iter().collect(),
            store_id: wire.store_id,
            epoch: wire.epoch,
            version: wire.version,
            timeline: wire.timeline,
        }),
        Wire::NotModified(wire) => ControllerMessage::NotModified(generation("generation", wire.generation)?),
        Wire::Snapshot(wire) => ControllerMessage::Snapshot(SnapshotChunk {
            generation: generation("generation", wire.generation)?,
            items: items(wire.items)?,
            end: match wire.last {
                true => Some(SnapshotEnd {
                    digest: digest(&wire.digest)?,
                    removals: Removals { consent: wire.consent, are_held: wire.removals_held },
                }),
                false => None,
            },
        }),
        Wire::Delta(wire) => ControllerMessage::Delta(Delta {
            base: generation("base", wire.base)?,
            generation: generation("generation", wire.generation)?,
            set: items(wire.set)?,
            delete: ids(wire.delete)?,
            digest: digest(&wire.digest)?,
            removals: Removals { consent: wire.consent, are_held: wire.removals_held },
        }),
        Wire::Heartbeat(wire) => ControllerMessage::Heartbeat(heartbeat(wire)),
        Wire::ReportRequest(wire) => ControllerMessage::ReportRequest(wire.request),
        Wire::Examination(wire) => ControllerMessage::Examination(examination::examination(wire)?),
        Wire::Operators(wire) => ControllerMessage::Operators(operators(wire)),
        Wire::GoAway(wire) => ControllerMessage::GoAway { reason: wire.reason, after_ms: wire.after_ms },
    }))
}

/// Those that this release understands: whoever has a later role may do nothing here.
fn operators(wire: v1::Operators) -> Arc<BTreeMap<OperatorName, Rights>> {
    let operator = |wire: v1::operators::Operator| {
        let rights = Rights { key: wire.key.parse().ok()?, role: wire.role.parse().ok()? };
        Some((wire.name.parse().ok()?, rights))
    };
    Arc::new(wire.operators.into_iter().filter_map(operator).collect())
}

fn wire_operators(operators: &BTreeMap<OperatorName, Rights>) -> v1::Operators {
    let operator = |(name, rights): (&OperatorName, &Rights)| v1::operators::Operator {
        name: name.to_string(),
        key: rights.key.to_string(),
        role: rights.role.to_string(),
    };
    v1::Operators { operators: operators.iter().map(operator).collect() }
}

impl From<Generation> for v1::Generation {
    fn from(Generation { incarnation, revision }: Generation) -> Self {
        Self { incarnation, revision }
    }
}

impl From<v1::Generation> for Generation {
    fn from(v1::Generation { incarnation, revision }: v1::Generation) -> Self {
        Self { incarnation, revision }
    }
}

impl From<ItemId> for v1::ItemId {
    fn from(id: ItemId) -> Self {
        Self {
            id: Some(match id {
                ItemId::Device(name) => v1::item_id::Id::Device(name.into()),
                ItemId::Tunnel(name) => v1::item_id::Id::Tunnel(name.into()),
            }),
        }
    }
}

impl From<&Item> for v1::Item {
    fn from(item: &Item) -> Self {
        Self {
            id: Some(item.id.clone().into()),
            tag: item.tag.as_bytes().to_vec(),
            content: item.content.clone(),
        }
    }
}

fn wire_items(items: &[Arc<Item>]) -> Vec<v1::Item> {
    items.iter().map(|item| item.as_ref().into()).collect()
}

fn wire_ids(ids: BTreeSet<ItemId>) -> Vec<v1::ItemId> {
    ids.into_iter().map(Into::into).collect()
}

impl From<Heartbeat> for v1::Heartbeat {
    fn from(heartbeat: Heartbeat) -> Self {
        Self { ping: heartbeat.ping.unwrap_or(0), answers: heartbeat.answers.unwrap_or(0) }
    }
}

impl From<AgentMessage> for v1::AgentMessage {
    fn from(message: AgentMessage) -> Self {
        use v1::agent_message::Message as Wire;
        let message = match message {
            AgentMessage::Hello(hello) => Wire::Hello((*hello).into()),
            AgentMessage::Ack(ack) => Wire::Ack(v1::Ack {
                generation: Some(ack.generation.into()),
                failures: failures(ack.failures),
                removals_held: wire_ids(ack.removals_held),
            }),
            AgentMessage::Resync(reason) => Wire::Resync(v1::Resync { reason }),
            AgentMessage::Heartbeat(heartbeat) => Wire::Heartbeat(heartbeat.into()),
            AgentMessage::Report(report) => Wire::Report(report.into()),
            AgentMessage::Goodbye => Wire::Goodbye(v1::Goodbye {}),
            AgentMessage::Refusal(reason) => Wire::Refusal(v1::Refusal { reason }),
            AgentMessage::Keys(keys) => Wire::Keys(wire_keys(keys)),
            AgentMessage::Repaired { device, what } => {
                Wire::Repaired(v1::Repaired { device: device.into(), what })
            }
            AgentMessage::LinkStates(states) => Wire::LinkStates(link::wire_states(states)),
            AgentMessage::LinkFigures(all) => Wire::LinkFigures(link::wire_figures(all)),
            AgentMessage::Findings(findings) => Wire::Findings(examination::wire_findings(findings)),
        };
        Self { message: Some(message) }
    }
}

fn wire_keys(keys: BTreeMap<MeshName, PublicKey>) -> v1::Keys {
    let wire = |(mesh, key): (MeshName, PublicKey)| (mesh.into(), key.as_bytes().to_vec());
    v1::Keys { public_keys: keys.into_iter().map(wire).collect() }
}

/// Failures with their words, which are the shorter the more there are.
fn failures(failures: BTreeMap<ItemId, String>) -> Vec<v1::Failure> {
    let each = (ALL_WORDS / failures.len().max(1)).min(WORDS);
    let wire = |(item, reason): (ItemId, String)| v1::Failure {
        item: Some(item.into()),
        reason: cut_to(reason, each),
    };
    failures.into_iter().map(wire).collect()
}

impl From<Hello> for v1::Hello {
    fn from(hello: Hello) -> Self {
        let (store_id, have, digest, timeline) = match hello.have {
            None => (String::new(), None, Vec::new(), String::new()),
            Some(Have { store_id, generation, digest, timeline }) => {
                (store_id, Some(generation.into()), digest.as_bytes().to_vec(), timeline)
            }
        };
        let (endpoint, more_endpoints) = match &hello.reach {
            Reach::At(remotes) => remotes_to_wire(Some(remotes)),
            reach @ (Reach::BySession | Reach::Nowhere) => (reach.to_string(), Vec::new()),
        };
        Self {
            protocol_version: hello.protocol_version,
            capabilities: hello.capabilities.into_iter().collect(),
            node: hello.node.into(),
            run_id: hello.run_id.as_bytes().to_vec(),
            store_id,
            have,
            digest,
            version: hello.version,
            labels: hello.labels,
            endpoint,
            more_endpoints,
            local_address: hello.local.map(|local| local.to_string()).unwrap_or_default(),
            data_port: hello.data_port.into(),
            timeline,
            time: hello.clock.map(timestamp),
            keys: Some(wire_keys(hello.keys)),
        }
    }
}

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        Self {
            tunnels: report.tunnels.into_iter().map(wire_tunnel_report).collect(),
            gone: report.gone.into_iter().map(String::from).collect(),
            whole: report.whole,
            request: report.request.unwrap_or(0),
            forwarding: report.forwarding.map(|Forwarding { ipv4, ipv6 }| v1::Forwarding { ipv4, ipv6 }),
        }
    }
}

/// One tunnel of a report, as v1 has it.
pub fn wire_tunnel_report((name, report): (TunnelName, TunnelReport)) -> v1::TunnelReport {
    let (state, reason) = super::state_to_wire(report.state);
    v1::TunnelReport {
        name: name.into(),
        device: report.device.into(),
        owner: owner_to_wire(report.owner).into(),
        state: state.into(),
        reason,
        endpoint: report.endpoint,
        preferred: report.preferred,
        last_received_ms: report.last_received_ms,
        keyed: report.keyed,
    }
}

impl From<ControllerMessage> for v1::ControllerMessage {
    fn from(message: ControllerMessage) -> Self {
        use v1::controller_message::Message as Wire;
        let message = match message {
            ControllerMessage::Welcome(welcome) => Wire::Welcome(v1::Welcome {
                protocol_version: welcome.protocol_version,
                capabilities: welcome.capabilities.into_iter().collect(),
                store_id: welcome.store_id,
                epoch: welcome.epoch,
                version: welcome.version,
                timeline: welcome.timeline,
            }),
            ControllerMessage::NotModified(generation) => {
                Wire::NotModified(v1::NotModified { generation: Some(generation.into()) })
            }
            ControllerMessage::Snapshot(chunk) => Wire::Snapshot(v1::SnapshotChunk {
                generation: Some(chunk.generation.into()),
                items: wire_items(&chunk.items),
                last: chunk.end.is_some(),
                digest: chunk.end.map(|end| end.digest.as_bytes().to_vec()).unwrap_or_default(),
                consent: chunk.end.map_or(0, |end| end.removals.consent),
                removals_held: chunk.end.is_some_and(|end| end.removals.are_held),
            }),
            ControllerMessage::Delta(delta) => Wire::Delta(v1::Delta {
                base: Some(delta.base.into()),
                generation: Some(delta.generation.into()),
                set: wire_items(&delta.set),
                delete: wire_ids(delta.delete),
                digest: delta.digest.as_bytes().to_vec(),
                consent: delta.removals.consent,
                removals_held: delta.removals.are_held,
            }),
            ControllerMessage::Heartbeat(heartbeat) => Wire::Heartbeat(heartbeat.into()),
            ControllerMessage::ReportRequest(request) => Wire::ReportRequest(v1::ReportRequest { request }),
            ControllerMessage::Examination(asked) => Wire::Examination(examination::wire_examination(asked)),
            ControllerMessage::Operators(operators) => Wire::Operators(wire_operators(&operators)),
            ControllerMessage::GoAway { reason, after_ms } => Wire::GoAway(v1::GoAway { reason, after_ms }),
        };
        Self { message: Some(message) }
    }
}

#[cfg(test)]
mod tests;
