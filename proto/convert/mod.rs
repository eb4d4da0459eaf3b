//! v1 to the model and back; an error names the field.

pub mod room;
pub mod session;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::command::{Command, CommandError, Field, TunnelSpec};
use super::model::{
    AllowedPrefix, DeviceName, Framing, Hearing, Invalid, LinkState, LinkStatus, Mtu, OffloadState, Owner,
    PublicKey, Remote, Remotes, Traffic, TunnelName, TunnelState, TunnelStatus, is_host_address,
    parse_interface_address, parse_network,
};
use super::v1;

/// A field's name in the messages of v1.
pub fn field_name(field: Field) -> String {
    match field {
        Field::Command | Field::Operation | Field::Netmask => "request".to_owned(),
        Field::Name => "tunnel.name".to_owned(),
        Field::Device => "tunnel.device".to_owned(),
        Field::Addresses => "tunnel.addresses".to_owned(),
        Field::Address(position) => format!("tunnel.addresses[{position}]"),
        Field::Mtu => "tunnel.mtu".to_owned(),
        Field::Remote => "tunnel.remote".to_owned(),
        Field::MoreRemotes(position) => format!("tunnel.more_remotes[{position}]"),
        Field::Framing => "tunnel.framing".to_owned(),
        Field::PeerPublicKey => "tunnel.peer_public_key".to_owned(),
        Field::Keepalive => "tunnel.keepalive".to_owned(),
        Field::AlsoPlain => "tunnel.also_plain".to_owned(),
        Field::Probed => "tunnel.probed".to_owned(),
        Field::Echo => "tunnel.echo".to_owned(),
        Field::AllowedPrefixes => "tunnel.allowed_prefixes".to_owned(),
        Field::AllowedPrefix(position) => format!("tunnel.allowed_prefixes[{position}].prefix"),
        Field::Route(position) => format!("tunnel.routes[{position}]"),
        Field::Without(position) => format!("tunnel.without[{position}]"),
        Field::Interval => "interval".to_owned(),
    }
}

/// The command that a request is.
///
/// # Errors
/// The first field that is missing or not valid.
pub fn add_tunnel(request: v1::AddTunnelRequest) -> Result<Command, CommandError> {
    let tunnel = request.tunnel.unwrap_or_default();
    Ok(Command::Add { tunnel: Box::new(tunnel_spec(&tunnel)?), replace: request.replace })
}

/// A tunnel's name.
///
/// # Errors
/// Where it is missing or not valid.
pub fn tunnel_name(name: &str) -> Result<TunnelName, CommandError> {
    if name.is_empty() {
        return Err(CommandError::missing(Field::Name, "give the tunnel a name, as udp2"));
    }
    parse(Field::Name, name)
}

fn tunnel_spec(tunnel: &v1::Tunnel) -> Result<TunnelSpec, CommandError> {
    let name = tunnel_name(&tunnel.name)?;
    let framing = framing(tunnel)?;
    let is_encrypted = matches!(framing, Framing::Wireguard(_));
    if tunnel.also_plain && framing == Framing::Pi {
        let fault = Invalid::new("has no use in a tunnel to a server of 2015", "leave it out");
        return Err(CommandError::invalid(Field::AlsoPlain, tunnel.also_plain, fault));
    }
    if tunnel.probed && framing == Framing::Pi {
        let fault =
            Invalid::new("is not to be had with a server of 2015, which no probe may reach", "leave it out");
        return Err(CommandError::invalid(Field::Probed, tunnel.probed, fault));
    }
    Ok(TunnelSpec {
        device: device_name(&name, &tunnel.device)?,
        name,
        addresses: list(&tunnel.addresses, Field::Address, parse_interface_address)?,
        mtu: mtu(tunnel.mtu)?,
        // Whoever sends unencrypted shows by its address alone who it is.
        remote: remotes(&tunnel.remote, &tunnel.more_remotes, is_encrypted && !tunnel.also_plain)?,
        framing,
        keepalive: keepalive(tunnel.keepalive, is_encrypted)?,
        also_plain: tunnel.also_plain,
        probed: tunnel.probed,
        echo: echo(tunnel)?,
        allowed_prefixes: allowed_prefixes(&tunnel.allowed_prefixes)?,
        routes: list(&tunnel.routes, Field::Route, parse_network)?,
        without: list(&tunnel.without, Field::Without, str::parse)?.into_iter().collect(),
    })
}

fn parse<T: FromStr<Err = Invalid>>(field: Field, text: &str) -> Result<T, CommandError> {
    text.parse().map_err(|fault| CommandError::invalid(field, text, fault))
}

fn device_name(tunnel: &TunnelName, device: &str) -> Result<DeviceName, CommandError> {
    if !device.is_empty() {
        return parse(Field::Device, device);
    }
    tunnel.as_str().parse().map_err(|Invalid { problem, remedy }| {
        CommandError::invalid(
            Field::Name,
            tunnel,
            Invalid::new(
                format!("{problem}, and names the device, too"),
                format!("{remedy}, or give `device`"),
            ),
        )
    })
}

/// Parses each text of a list in which nothing may stand twice; `field` is that of a position.
fn list<T: PartialEq>(
    texts: &[String],
    field: fn(usize) -> Field,
    parse: fn(&str) -> Result<T, Invalid>,
) -> Result<Vec<T>, CommandError> {
    let mut values = Vec::with_capacity(texts.len());
    for (position, text) in texts.iter().enumerate() {
        let invalid = |fault| CommandError::invalid(field(position), text, fault);
        let value = parse(text).map_err(invalid)?;
        if values.contains(&value) {
            return Err(invalid(Invalid::new("stands twice", "give it once")));
        }
        values.push(value);
    }
    Ok(values)
}

fn mtu(bytes: u32) -> Result<Option<Mtu>, CommandError> {
    match bytes {
        0 => Ok(None),
        _ => Mtu::try_from(bytes).map(Some).map_err(|fault| CommandError::invalid(Field::Mtu, bytes, fault)),
    }
}

fn remotes(preferred: &str, more: &[String], is_encrypted: bool) -> Result<Option<Remotes>, CommandError> {
    if preferred.is_empty() {
        return match more {
            [] if is_encrypted => Ok(None),
            [] | [_, ..] => Err(CommandError::missing(
                Field::Remote,
                "give the peer's address or host name, as 172.100.1.2",
            )),
        };
    }
    let mut remotes = vec![parse(Field::Remote, preferred)?];
    for (position, text) in more.iter().take(Remotes::MOST).enumerate() {
        remotes.push(parse(Field::MoreRemotes(position), text)?);
    }
    Remotes::new(remotes).map(Some).map_err(|(at, fault)| {
        let position = at.saturating_sub(1);
        let text = more.get(position).map(String::as_str).unwrap_or_default();
        CommandError::invalid(Field::MoreRemotes(position), text, fault)
    })
}

fn keepalive(seconds: u32, is_encrypted: bool) -> Result<Option<NonZeroU16>, CommandError> {
    let invalid = |problem: &str, remedy: &str| {
        Err(CommandError::invalid(Field::Keepalive, seconds, Invalid::new(problem, remedy)))
    };
    match u16::try_from(seconds).map(NonZeroU16::new) {
        Ok(None) => Ok(None),
        Ok(Some(_)) if !is_encrypted => invalid(
            "has no use in a tunnel that is not encrypted",
            "leave it out, or write framing WIREGUARD",
        ),
        Ok(Some(seconds)) => Ok(Some(seconds)),
        Err(_) => invalid("is more than 65535 seconds", "give 25, or 0 for none"),
    }
}

fn framing(tunnel: &v1::Tunnel) -> Result<Framing, CommandError> {
    let key = match tunnel.peer_public_key.as_str() {
        "" => None,
        text => Some(parse::<PublicKey>(Field::PeerPublicKey, text)?),
    };
    let key_with_plain = |key: PublicKey| {
        CommandError::invalid(
            Field::PeerPublicKey,
            key,
            Invalid::new(
                "has no use in a tunnel that is not encrypted",
                "leave it out, or write framing WIREGUARD",
            ),
        )
    };
    use v1::tunnel::Framing as Wire;
    match (Wire::try_from(tunnel.framing), key) {
        (Ok(Wire::Raw | Wire::Pi), Some(key)) => Err(key_with_plain(key)),
        (Ok(Wire::Raw), None) => Ok(Framing::Raw),
        (Ok(Wire::Pi), None) => Ok(Framing::Pi),
        (Ok(Wire::Wireguard | Wire::Unspecified), Some(key)) => Ok(Framing::Wireguard(key)),
        (Ok(Wire::Wireguard), None) => {
            Err(CommandError::missing(Field::PeerPublicKey, "give the peer's key, as `wg pubkey` prints it"))
        }
        (Ok(Wire::Unspecified), None) => Err(CommandError::missing(
            Field::Framing,
            "unencrypted is asked for by name: write RAW, or PI for a server of 2015",
        )),
        (Err(_), _) => Err(CommandError::invalid(
            Field::Framing,
            tunnel.framing,
            Invalid::new("is no framing of this version", "write WIREGUARD, RAW or PI"),
        )),
    }
}

fn allowed_prefixes(wanted: &[v1::AllowedPrefix]) -> Result<Vec<AllowedPrefix>, CommandError> {
    let mut allowed: Vec<AllowedPrefix> = Vec::with_capacity(wanted.len());
    for (position, v1::AllowedPrefix { prefix: text, preference }) in wanted.iter().enumerate() {
        let invalid = |fault| CommandError::invalid(Field::AllowedPrefix(position), text, fault);
        let prefix = parse_network(text).map_err(invalid)?;
        if allowed.iter().any(|other| other.prefix == prefix) {
            return Err(invalid(Invalid::new("stands twice", "give it once")));
        }
        allowed.push(AllowedPrefix { prefix, preference: *preference });
    }
    Ok(allowed)
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

/// A state as v1 has it, with its reason.
fn state_to_wire(state: TunnelState) -> (v1::tunnel_status::State, String) {
    match state {
        TunnelState::Waiting(reason) => (v1::tunnel_status::State::Waiting, reason.unwrap_or_default()),
        TunnelState::Passing => (v1::tunnel_status::State::Passing, String::new()),
        TunnelState::Failed(reason) => (v1::tunnel_status::State::Failed, reason),
    }
}

fn owner_to_wire(owner: Owner) -> v1::tunnel_status::Owner {
    match owner {
        Owner::Local => v1::tunnel_status::Owner::Local,
        Owner::Controller => v1::tunnel_status::Owner::Controller,
    }
}

/// The preferred one as v1 has it, and the others.
fn remotes_to_wire(remotes: Option<&Remotes>) -> (String, Vec<String>) {
    remotes.map(|remotes| (remotes.first().to_string(), texts(remotes.others()))).unwrap_or_default()
}

/// Who is asked by an ICMP echo.
fn echo(tunnel: &v1::Tunnel) -> Result<Option<IpAddr>, CommandError> {
    let (address, probed) = (&tunnel.echo, tunnel.probed);
    if address.is_empty() {
        return Ok(None);
    }
    let refused =
        |problem, remedy| Err(CommandError::invalid(Field::Echo, address, Invalid::new(problem, remedy)));
    match address.parse() {
        Ok(_) if probed => {
            refused("is not asked where probes are sent", "leave out one of `probed` and `echo`")
        }
        Ok(asked) if is_host_address(asked) => {
            let own = list(&tunnel.addresses, Field::Address, parse_interface_address)?;
            let allowed = allowed_prefixes(&tunnel.allowed_prefixes)?;
            if own.iter().any(|own| own.addr() == asked) {
                return refused("is this host's own", "give an overlay address of the peer, as 10.9.0.2");
            }
            if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed.prefix.contains(&asked)) {
                return refused(
                    "is in none of allowed_prefixes",
                    "give an address of the peer that is in one",
                );
            }
            Ok(Some(asked))
        }
        Ok(_) | Err(_) => {
            refused("is no address of a host", "give an overlay address of the peer, as 10.9.0.2")
        }
    }
}

fn echo_to_wire(echo: Option<IpAddr>) -> String {
    echo.map(|address| address.to_string()).unwrap_or_default()
}

fn keepalive_to_wire(keepalive: Option<NonZeroU16>) -> u32 {
    keepalive.map_or(0, |seconds| seconds.get().into())
}

/// A framing as v1 has it, with the peer's key.
fn framing_to_wire(framing: Framing) -> (v1::tunnel::Framing, String) {
    match framing {
        Framing::Raw => (v1::tunnel::Framing::Raw, String::new()),
        Framing::Pi => (v1::tunnel::Framing::Pi, String::new()),
        Framing::Wireguard(key) => (v1::tunnel::Framing::Wireguard, key.to_string()),
    }
}

impl From<TunnelStatus> for v1::TunnelStatus {
    fn from(status: TunnelStatus) -> Self {
        let (state, reason) = state_to_wire(status.state);
        let owner = owner_to_wire(status.tunnel.owner);
        let (framing, peer_public_key) = framing_to_wire(status.tunnel.framing);
        let (remote, more_remotes) = remotes_to_wire(status.tunnel.remote.as_ref());
        let allowed = status.tunnel.allowed_prefixes.iter().map(|allowed| v1::AllowedPrefix {
            prefix: allowed.prefix.to_string(),
            preference: allowed.preference,
        });
        Self {
            tunnel: Some(v1::Tunnel {
                name: status.name.to_string(),
                device: status.tunnel.device.to_string(),
                addresses: texts(&status.addresses),
                mtu: status.tunnel.mtu.map_or(0, u32::from),
                remote,
                more_remotes,
                framing: framing.into(),
                keepalive: keepalive_to_wire(status.tunnel.keepalive),
                also_plain: status.tunnel.also_plain,
                probed: status.tunnel.probed,
                echo: echo_to_wire(status.tunnel.echo),
                peer_public_key,
                allowed_prefixes: allowed.collect(),
                routes: texts(&status.tunnel.routes),
                without: status.tunnel.without.iter().map(ToString::to_string).collect(),
            }),
            owner: owner.into(),
            state: state.into(),
            reason,
            endpoint: status.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            preferred: status.preferred.as_ref().map(Remote::to_string).unwrap_or_default(),
            device_mtu: status.device_mtu.map_or(0, u32::from),
            path_mtu: status.path_mtu.map_or(0, u32::from),
            sent: Some(status.sent.into()),
            received: Some(status.received.into()),
            last_received: status.last_received.map(timestamp),
            last_handshake: status.last_handshake.map(timestamp),
            link: status.link.map(Into::into),
            notes: status.notes,
            offloads: status.offloads.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<LinkStatus> for v1::Link {
    fn from(link: LinkStatus) -> Self {
        let reason = match link.unsent {
            None => link.why.to_string(),
            Some(unsent) => format!("{}; the agent could not send the last probe: {unsent}", link.why),
        };
        Self {
            state: link_state_to_wire(link.state).into(),
            since: Some(timestamp(link.since)),
            reason,
            last_heard: link.last_heard.map(timestamp),
            detection_time: link.detection_time.map(duration),
            round_trip: link.round_trip.map(duration),
            sent: link.sent.map(Into::into),
            received: link.received.map(Into::into),
            changes: link.changes,
            carries: link.carries.map_or(0, u32::from),
            is_carried: link.is_carried,
            loses: link.loses.map_or(0, u32::from),
        }
    }
}

/// A state of a link as v1 has it.
fn link_state_to_wire(state: LinkState) -> v1::link::State {
    match state {
        LinkState::AdminDown => v1::link::State::AdminDown,
        LinkState::Down => v1::link::State::Down,
        LinkState::Init => v1::link::State::Init,
        LinkState::Up => v1::link::State::Up,
    }
}

impl From<Hearing> for v1::Hearing {
    fn from(Hearing { known, lost, reordered, jitter }: Hearing) -> Self {
        Self {
            known: known.into(),
            lost: lost.into(),
            reordered: reordered.into(),
            jitter: Some(duration(jitter)),
        }
    }
}

impl From<OffloadState> for v1::OffloadState {
    fn from(OffloadState { offload, why_off }: OffloadState) -> Self {
        Self { name: offload.to_string(), in_use: why_off.is_none(), reason: why_off.unwrap_or_default() }
    }
}

impl From<Traffic> for v1::Traffic {
    fn from(traffic: Traffic) -> Self {
        Self { packets: traffic.packets, bytes: traffic.bytes, drops: drops(traffic.drops) }
    }
}

/// Drops by reason, as v1 has them.
pub fn drops(
    drops: impl IntoIterator<Item = (&'static str, u64)>,
) -> std::collections::BTreeMap<String, u64> {
    drops.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
}

/// A time since the Unix epoch, as v1 has it.
pub fn timestamp(since_epoch: std::time::Duration) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since_epoch.subsec_nanos()).unwrap_or_default(),
    }
}

/// A span of time, as v1 has it.
pub fn duration(span: std::time::Duration) -> pbjson_types::Duration {
    let pbjson_types::Timestamp { seconds, nanos } = timestamp(span);
    pbjson_types::Duration { seconds, nanos }
}

/// A span of time as v1 has it; one below zero is none.
pub fn span(wire: &pbjson_types::Duration) -> std::time::Duration {
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) => std::time::Duration::from_secs(seconds)
            .saturating_add(std::time::Duration::from_nanos(nanos.into())),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => std::time::Duration::ZERO,
    }
}

#[cfg(test)]
mod tests;
