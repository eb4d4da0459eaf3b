//! What can be asked of an agent, whatever the wire: gRPC and the legacy port both become these values.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::model::{
    AllowedPrefix, DeviceName, Framing, Invalid, Mtu, Offloads, Owner, Remotes, Tunnel, TunnelName,
    TunnelStatus,
};

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Add a tunnel, or change it in place where the name is known and `replace` is set.
    Add {
        /// What is wanted.
        tunnel: Box<TunnelSpec>,
        /// Whether a known name is changed.
        replace: bool,
    },
    /// Delete a tunnel, and its device with the last tunnel on it.
    Delete {
        /// The tunnel's name.
        name: TunnelName,
    },
}

impl Command {
    /// The tunnel that it is about.
    pub fn tunnel(&self) -> &TunnelName {
        match self {
            Self::Add { tunnel, .. } => &tunnel.name,
            Self::Delete { name } => name,
        }
    }
}

/// A tunnel as it is asked for, with the device that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Its name.
    pub name: TunnelName,
    /// Its device.
    pub device: DeviceName,
    /// The device's addresses; empty: those that the device has.
    pub addresses: Vec<IpNet>,
    /// The largest packet; absent: what the path carries.
    pub mtu: Option<Mtu>,
    /// Where the peer is on the underlay. Absent: it comes first, which only that of an encrypted tunnel can.
    pub remote: Option<Remotes>,
    /// How packets are laid out.
    pub framing: Framing,
    /// How often at least something is sent to the peer of an encrypted tunnel, in seconds; absent: nothing is where there
    /// is nothing to send.
    pub keepalive: Option<NonZeroU16>,
    /// While it changes from unencrypted to encrypted: packets are taken unencrypted, too, and sent so until keys have been
    /// agreed on with the peer.
    pub also_plain: bool,
    /// Whether both ends send each other probes.
    pub probed: bool,
    /// An overlay address of a peer that sends no probes, which is asked by an ICMP echo now and then.
    pub echo: Option<IpAddr>,
    /// What may be sent and received; empty: all.
    pub allowed_prefixes: Vec<AllowedPrefix>,
    /// Kernel routes for the device.
    pub routes: Vec<IpNet>,
    /// What is not to be used.
    pub without: Offloads,
}

impl TunnelSpec {
    /// The tunnel that it asks for, as `owner` wants it.
    pub fn tunnel(&self, owner: Owner) -> Tunnel {
        Tunnel {
            device: self.device.clone(),
            mtu: self.mtu,
            remote: self.remote.clone(),
            framing: self.framing,
            keepalive: self.keepalive,
            also_plain: self.also_plain,
            probed: self.probed,
            echo: self.echo,
            allowed_prefixes: self.allowed_prefixes.clone(),
            routes: self.routes.clone(),
            without: self.without.clone(),
            owner,
        }
    }
}

/// What came of a command that was accepted. It is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The tunnel is wanted; its status says how far it is.
    Added {
        /// The tunnel as it is now.
        status: Box<TunnelStatus>,
        /// What the caller should know.
        notes: Vec<String>,
    },
    /// The tunnel is gone.
    Deleted,
}

/// The part of a command that is at fault. Each wire has its own name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The command as a whole.
    Command,
    /// The kind of command.
    Operation,
    /// The tunnel's name.
    Name,
    /// The device.
    Device,
    /// The addresses as a whole.
    Addresses,
    /// An address of the device, by position.
    Address(usize),
    /// The legacy port's netmask.
    Netmask,
    /// The largest packet.
    Mtu,
    /// The peer on the underlay.
    Remote,
    /// Where else it is, by position.
    MoreRemotes(usize),
    /// The framing.
    Framing,
    /// The peer's key.
    PeerPublicKey,
    /// How often something is sent.
    Keepalive,
    /// Whether packets are taken unencrypted, too.
    AlsoPlain,
    /// Whether both ends send each other probes.
    Probed,
    /// Who is asked by an ICMP echo.
    Echo,
    /// The allowed prefixes as a whole.
    AllowedPrefixes,
    /// An allowed prefix, by position.
    AllowedPrefix(usize),
    /// A route, by position.
    Route(usize),
    /// An offload that is not to be used, by position.
    Without(usize),
    /// How often a watch looks.
    Interval,
}

impl Field {
    /// The field of the model, as messages without a wire name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Operation => "operation",
            Self::Name => "name",
            Self::Device => "device",
            Self::Addresses | Self::Address(_) => "address",
            Self::Netmask => "netmask",
            Self::Mtu => "mtu",
            Self::Remote | Self::MoreRemotes(_) => "remote",
            Self::Framing => "framing",
            Self::PeerPublicKey => "public key",
            Self::Keepalive => "keepalive",
            Self::AlsoPlain => "also_plain",
            Self::Probed => "probed",
            Self::Echo => "echo",
            Self::AllowedPrefixes | Self::AllowedPrefix(_) => "allowed prefix",
            Self::Route(_) => "route",
            Self::Without(_) => "without",
            Self::Interval => "interval",
        }
    }
}

/// The kind of fault: what a caller can branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The value can never be right.
    Invalid,
    /// No tunnel of that name.
    NotFound,
    /// The name is known with another content.
    AlreadyExists,
    /// Another tunnel, device or interface of the host has it.
    Clash,
    /// This host does not accept it from anyone.
    NotAccepted,
    /// The agent could not keep it; nothing changed.
    Storage,
    /// The agent is stopping or too busy.
    Unavailable,
}

/// A command that was refused. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// What a caller can branch on.
    pub kind: ErrorKind,
    /// The part at fault.
    pub field: Field,
    /// Its value, as it was given.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub fault: Invalid,
}

impl CommandError {
    /// An error of `kind` about `field`, whose value reads `value`.
    pub fn new(kind: ErrorKind, field: Field, value: impl fmt::Display, fault: Invalid) -> Self {
        Self { kind, field, value: value.to_string(), fault }
    }

    /// A value that can never be right.
    pub fn invalid(field: Field, value: impl fmt::Display, fault: Invalid) -> Self {
        Self::new(ErrorKind::Invalid, field, value, fault)
    }

    /// A value that is missing.
    pub fn missing(field: Field, remedy: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, field, "", Invalid::new("is missing", remedy))
    }

    /// The error in words, with the field named as `field` on the wire that it came from.
    pub fn describe(&self, field: &str) -> String {
        self.fault.describe(field, &self.value)
    }
}
