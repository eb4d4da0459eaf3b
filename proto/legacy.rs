//! The control datagram of 2015, one JSON object: read into commands, answered, and built for the client.
//!
//! `{"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": 1500,
//! "remoteServer": "172.100.1.2"}]}`. Servers of 2015 read it and never reply; an agent replies with one JSON
//! object, an entry a tunnel. A field that is null counts as absent; unknown fields are ignored.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, ip_mask_to_prefix};
use serde_json::{Map, Value, json};

use super::command::{Command, CommandError, Field, Outcome, TunnelSpec};
use super::model::{
    DeviceName, Framing, Invalid, Mtu, Offloads, Remote, Remotes, TunnelState, check_interface_address,
};

#[cfg(test)]
mod tests;

const OP: &str = "op";
const TUNNEL: &str = "tunnel";
const NAME: &str = "name";
const TUNNEL_IP: &str = "tunnelIP";
const NETMASK: &str = "netmask";
const MTU: &str = "mtu";
const REMOTE_SERVER: &str = "remoteServer";

/// The control port: where servers of 2015 and agents take these datagrams unless told otherwise.
pub const CONTROL_PORT: u16 = 5001;

/// What an absent `mtu` means.
const DEFAULT_MTU: Mtu = Mtu::ETHERNET;
/// What an absent `netmask` means, as a prefix length: 255.255.255.252, and two bits of host in IPv6 too.
const DEFAULT_PREFIX: u8 = 30;
const DEFAULT_PREFIX_V6: u8 = 126;

/// The longest UDP payload over IPv4.
const LONGEST_DATAGRAM: usize = 65_507;

const ENTRY_FORM: &str = "write an object, as {\"name\": \"udp2\"}";

/// What is to be done with the tunnels of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `add`: add the tunnel, or change the one of that name in place.
    Add,
    /// `del`: delete the tunnel of that name.
    Delete,
}

impl FromStr for Operation {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "add" => Ok(Self::Add),
            "del" => Ok(Self::Delete),
            _ => Err(Invalid::new("is not known", "use add or del")),
        }
    }
}

/// A datagram, read: an entry a tunnel, in order, and at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The tunnels.
    pub entries: Vec<Entry>,
}

/// One tunnel of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key in the reply: the name as sent, or "#0" by position where there is none.
    pub key: String,
    /// What is asked for, or what is wrong with it. One entry's fault is no other's.
    pub command: Result<Command, CommandError>,
}

/// A datagram with nothing in it that could be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, not UTF-8, or nested too deep; with the parser's words.
    #[error("the datagram is not JSON ({0}); write {{\"op\": \"add\", \"tunnel\": [{{\"name\": …}}]}}")]
    NotJson(String),
    /// JSON, but no object; with what it is.
    #[error("the datagram is {0}; write an object with op and tunnel")]
    NotObject(&'static str),
    /// `op` is missing or unknown.
    #[error("{}", .0.describe(OP))]
    Operation(CommandError),
    /// `tunnel` is missing, no array, or empty.
    #[error("{}", .0.describe(TUNNEL))]
    Tunnels(CommandError),
}

/// Reads a datagram.
///
/// # Errors
/// Where the datagram as a whole cannot be read; a fault in one entry is that entry's error.
pub fn parse(datagram: &[u8]) -> Result<Request, Malformed> {
    let value = serde_json::from_slice(datagram).map_err(|error| Malformed::NotJson(error.to_string()))?;
    let Value::Object(object) = value else { return Err(Malformed::NotObject(kind(&value))) };
    let operation = operation(&object).map_err(Malformed::Operation)?;
    let tunnels = tunnels(&object).map_err(Malformed::Tunnels)?;
    let entries = tunnels
        .iter()
        .enumerate()
        .map(|(position, tunnel)| Entry {
            key: tunnel.get(NAME).and_then(Value::as_str).map_or(format!("#{position}"), str::to_owned),
            command: command(operation, tunnel),
        })
        .collect();
    Ok(Request { entries })
}

fn operation(object: &Map<String, Value>) -> Result<Operation, CommandError> {
    const REMEDY: &str = "give add or del";
    let text = text(object, OP, Field::Operation, REMEDY)?
        .ok_or_else(|| CommandError::missing(Field::Operation, REMEDY))?;
    text.parse().map_err(|fault| CommandError::invalid(Field::Operation, text, fault))
}

fn tunnels(object: &Map<String, Value>) -> Result<&[Value], CommandError> {
    const REMEDY: &str = "give an array with an object a tunnel";
    match field(object, TUNNEL) {
        Value::Null => Err(CommandError::missing(Field::Command, REMEDY)),
        Value::Array(tunnels) if tunnels.is_empty() => {
            Err(CommandError::invalid(Field::Command, "", Invalid::new("is empty", REMEDY)))
        }
        Value::Array(tunnels) => Ok(tunnels),
        other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            Err(mistyped(Field::Command, other, REMEDY))
        }
    }
}

/// Reads one element of `tunnel`.
///
/// # Errors
/// The first field that is missing or cannot be.
pub fn command(operation: Operation, tunnel: &Value) -> Result<Command, CommandError> {
    let Value::Object(object) = tunnel else { return Err(mistyped(Field::Command, tunnel, ENTRY_FORM)) };
    match operation {
        Operation::Add => Ok(Command::Add { tunnel: Box::new(spec(object)?), replace: true }),
        Operation::Delete => Ok(Command::Delete { name: name(object)? }),
    }
}

fn name<T: FromStr<Err = Invalid>>(object: &Map<String, Value>) -> Result<T, CommandError> {
    required(object, NAME, Field::Name, "give the tunnel's name, as udp2")
}

fn spec(object: &Map<String, Value>) -> Result<TunnelSpec, CommandError> {
    // Before the tunnel's name, which may be longer: here the device is always of the tunnel's name.
    let device: DeviceName = name(object)?;
    Ok(TunnelSpec {
        name: name(object)?,
        device,
        addresses: vec![address(object)?],
        mtu: Some(mtu(field(object, MTU))?),
        remote: Some(Remotes::from(remote(object)?)),
        framing: Framing::Pi,
        keepalive: None,
        also_plain: false,
        probed: false,
        echo: None,
        allowed_prefixes: Vec::new(),
        routes: Vec::new(),
        without: Offloads::new(),
    })
}

fn remote(object: &Map<String, Value>) -> Result<Remote, CommandError> {
    required(object, REMOTE_SERVER, Field::Remote, "give the peer's host, as 172.100.1.2")
}

fn address(object: &Map<String, Value>) -> Result<IpNet, CommandError> {
    const AT: Field = Field::Address(0);
    const REMEDY: &str = "give the device's address, as 10.0.1.1 or fd00:1::1";
    let text = text(object, TUNNEL_IP, AT, REMEDY)?.ok_or_else(|| CommandError::missing(AT, REMEDY))?;
    let (address, own_prefix) = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) => (address, None),
        (Err(_), Ok(network)) => (network.addr(), Some(network.prefix_len())),
        (Err(_), Err(_)) => {
            return Err(CommandError::invalid(AT, text, Invalid::new("is not an address", REMEDY)));
        }
    };
    let mask = field(object, NETMASK);
    let bad_mask = |problem| CommandError::invalid(Field::Netmask, shown(mask), mask_fault(address, problem));
    let prefix = match (own_prefix, prefix_length(mask, address)?) {
        (Some(own), Some(given)) if own != given => {
            return Err(bad_mask("differs from the address's own prefix length"));
        }
        (Some(prefix), _) | (None, Some(prefix)) => prefix,
        (None, None) if address.is_ipv6() => DEFAULT_PREFIX_V6,
        (None, None) => DEFAULT_PREFIX,
    };
    let network = IpNet::new(address, prefix).map_err(|_| bad_mask("is out of range"))?;
    check_interface_address(network).map_err(|fault| CommandError::invalid(AT, network, fault))?;
    Ok(network)
}

fn mask_fault(address: IpAddr, problem: &str) -> Invalid {
    let remedy = if address.is_ipv6() {
        "give a prefix length of 0 to 128, as 64, or leave it out"
    } else {
        "give a mask as 255.255.255.252, a prefix length of 0 to 32, or leave it out"
    };
    Invalid::new(problem, remedy)
}

/// The prefix length that `mask` means for `address`, not yet held against the family's longest.
fn prefix_length(mask: &Value, address: IpAddr) -> Result<Option<u8>, CommandError> {
    let prefix = match mask {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_u64().and_then(|prefix| u8::try_from(prefix).ok()),
        Value::String(text) => match (text.parse::<u8>(), text.parse::<IpAddr>()) {
            (Ok(prefix), _) => Some(prefix),
            (Err(_), Ok(mask)) if mask.is_ipv4() == address.is_ipv4() => ip_mask_to_prefix(mask).ok(),
            (Err(_), _) => None,
        },
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let Some(prefix) = prefix else {
        let fault = mask_fault(address, "is no netmask for the address");
        return Err(CommandError::invalid(Field::Netmask, shown(mask), fault));
    };
    Ok(Some(prefix))
}

fn mtu(value: &Value) -> Result<Mtu, CommandError> {
    let fault = |problem: &str| {
        let remedy = format!("use {} to {}, or leave it out for {DEFAULT_MTU}", Mtu::LEAST, Mtu::MOST);
        CommandError::invalid(Field::Mtu, shown(value), Invalid::new(problem, remedy))
    };
    let bytes = match value {
        Value::Null => return Ok(DEFAULT_MTU),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let bytes = bytes.ok_or_else(|| fault("is no number of bytes"))?;
    u32::try_from(bytes)
        .ok()
        .and_then(|bytes| Mtu::try_from(bytes).ok())
        .ok_or_else(|| fault("is out of range"))
}

fn required<T: FromStr<Err = Invalid>>(
    object: &Map<String, Value>,
    key: &str,
    at: Field,
    remedy: &str,
) -> Result<T, CommandError> {
    let text = text(object, key, at, remedy)?.ok_or_else(|| CommandError::missing(at, remedy))?;
    text.parse().map_err(|fault| CommandError::invalid(at, text, fault))
}

fn text<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    at: Field,
    remedy: &str,
) -> Result<Option<&'a str>, CommandError> {
    match field(object, key) {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Err(mistyped(at, other, remedy))
        }
    }
}

fn field<'a>(object: &'a Map<String, Value>, key: &str) -> &'a Value {
    object.get(key).unwrap_or(&Value::Null)
}

fn mistyped(at: Field, value: &Value, remedy: &str) -> CommandError {
    CommandError::invalid(at, shown(value), Invalid::new(format!("is {}", kind(value)), remedy))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The name that a field has in a datagram; for what the datagram has no field for, the nearest.
pub fn field_name(field: Field) -> &'static str {
    match field {
        Field::Command => TUNNEL,
        Field::Operation => OP,
        Field::Addresses | Field::Address(_) => TUNNEL_IP,
        Field::Netmask => NETMASK,
        Field::Mtu => MTU,
        Field::Remote => REMOTE_SERVER,
        Field::Name
        | Field::Device
        | Field::MoreRemotes(_)
        | Field::Framing
        | Field::PeerPublicKey
        | Field::Keepalive
        | Field::AlsoPlain
        | Field::Probed
        | Field::Echo
        | Field::AllowedPrefixes
        | Field::AllowedPrefix(_)
        | Field::Route(_)
        | Field::Without(_)
        | Field::Interval => NAME,
    }
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done, with what the caller should know.
    Ok(Vec<String>),
    /// Refused, in words.
    Error(String),
}

impl From<Result<Outcome, CommandError>> for Answer {
    fn from(result: Result<Outcome, CommandError>) -> Self {
        match result {
            Ok(Outcome::Added { status, notes }) => match status.state {
                TunnelState::Failed(reason) => {
                    Self::Error(format!("is kept and tried again, but cannot be had yet: {reason}"))
                }
                TunnelState::Waiting(reason) => Self::Ok(reason.into_iter().chain(notes).collect()),
                TunnelState::Passing => Self::Ok(notes),
            },
            Ok(Outcome::Deleted) => Self::Ok(Vec::new()),
            Err(error) => Self::Error(error.describe(field_name(error.field))),
        }
    }
}

/// The words of a reply that mean "done"; notes follow behind [`NOTE`].
const DONE: &str = "ok";
const NOTE: &str = "; ";

/// The reply to a datagram, by the entries' keys: `{"udp2": "ok", "udp3": "remoteServer …"}`.
///
/// Where a key occurs more than once its first error counts. A reply of more than `longest` bytes loses its notes,
/// then the ends of its longest errors, down to the word "error"; where that is still too long there is none.
pub fn reply(answers: &[(String, Answer)], longest: Option<usize>) -> Option<Vec<u8>> {
    let longest = longest.unwrap_or(LONGEST_DATAGRAM).min(LONGEST_DATAGRAM);
    let mut answer_of: BTreeMap<&str, Answer> = BTreeMap::new();
    for (key, answer) in answers {
        let known = answer_of.entry(key).or_insert_with(|| Answer::Ok(Vec::new()));
        match (known, answer) {
            (Answer::Error(_), _) => {}
            (Answer::Ok(notes), Answer::Ok(more)) => notes.extend_from_slice(more),
            (known @ Answer::Ok(_), Answer::Error(_)) => *known = answer.clone(),
        }
    }
    let render = |ok: &dyn Fn(&[String]) -> String, error_bytes: usize| {
        let object: Map<String, Value> = answer_of
            .iter()
            .map(|(key, answer)| {
                let words = match answer {
                    Answer::Ok(notes) => ok(notes),
                    Answer::Error(words) => shorten(words, error_bytes),
                };
                ((*key).to_owned(), Value::String(words))
            })
            .collect();
        let bytes = Value::Object(object).to_string().into_bytes();
        (bytes.len() <= longest).then_some(bytes)
    };
    let with_notes = |notes: &[String]| notes.iter().fold(DONE.to_owned(), |words, note| words + NOTE + note);
    let without_notes = |_: &[String]| DONE.to_owned();
    if let Some(whole) = render(&with_notes, usize::MAX).or_else(|| render(&without_notes, usize::MAX)) {
        return Some(whole);
    }
    // The most bytes an error that fit: `fits` do, `over` do not. An error above `longest` never fits.
    let mut shortened = render(&without_notes, 0)?;
    let (mut fits, mut over) = (0, longest);
    while over - fits > 1 {
        let middle = fits.midpoint(over);
        match render(&without_notes, middle) {
            Some(bytes) => (shortened, fits) = (bytes, middle),
            None => over = middle,
        }
    }
    Some(shortened)
}

/// `words` in at most `bytes` bytes with an ellipsis at the cut, or the word "error" where that says more.
fn shorten(words: &str, bytes: usize) -> String {
    const LEAST: &str = "error";
    const ELLIPSIS: &str = "…";
    if words.len() <= bytes {
        return words.to_owned();
    }
    let kept = words.floor_char_boundary(bytes.saturating_sub(ELLIPSIS.len()));
    match words.get(..kept) {
        Some(beginning) if kept >= LEAST.len() => format!("{beginning}{ELLIPSIS}"),
        Some(_) | None => LEAST.to_owned(),
    }
}

/// The reply to a datagram that could not be read: `{"error": "op is missing; …"}`, shortened as [`reply`] is.
pub fn malformed_reply(malformed: &Malformed, longest: Option<usize>) -> Option<Vec<u8>> {
    reply(&[("error".to_owned(), Answer::Error(malformed.to_string()))], longest)
}

/// The datagram that asks for `command`, as the client of 2015 sent it: dotted netmask, `mtu` a number.
///
/// Of an `add` it carries what the datagram has fields for, which is all of a command that [`parse`] or
/// [`command()`] made: those come back equal.
pub fn request(command: &Command) -> Vec<u8> {
    let (operation, tunnel) = match command {
        Command::Add { tunnel, replace: _ } => ("add", spec_entry(tunnel)),
        Command::Delete { name } => ("del", json!({ NAME: name.as_str() })),
    };
    json!({ OP: operation, TUNNEL: [tunnel] }).to_string().into_bytes()
}

fn spec_entry(tunnel: &TunnelSpec) -> Value {
    let address = tunnel.addresses.first();
    let mut entry = json!({
        NAME: tunnel.name.as_str(),
        TUNNEL_IP: address.map(IpNet::addr),
        MTU: tunnel.mtu.map(Mtu::get),
        REMOTE_SERVER: tunnel.remote.as_ref().map(|remotes| remotes.first().to_string()),
    });
    match address {
        Some(IpNet::V4(v4)) => entry[NETMASK] = json!(Ipv4Net::netmask(v4)),
        Some(IpNet::V6(v6)) if v6.prefix_len() != DEFAULT_PREFIX_V6 => {
            entry[NETMASK] = json!(v6.prefix_len())
        }
        Some(IpNet::V6(_)) | None => {}
    }
    entry
}

/// A reply, read: what became of each tunnel, by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Keys and words, in the order of the keys.
    pub entries: Vec<(String, String)>,
}

impl Reply {
    /// Whether there are entries, and all are done.
    pub fn is_ok(&self) -> bool {
        !self.entries.is_empty() && self.entries.iter().all(|(_, words)| is_done(words))
    }
}

/// Whether the words of an entry mean that it is done.
pub fn is_done(words: &str) -> bool {
    words.strip_prefix(DONE).is_some_and(|notes| notes.is_empty() || notes.starts_with(NOTE))
}

/// A reply that is no JSON object of texts.
#[derive(Debug, thiserror::Error)]
#[error("the reply is no JSON object of texts")]
pub struct NotAReply(#[from] serde_json::Error);

/// Whether a datagram reads as a reply, and as no attempt at a request. Two agents that answered each other's replies
/// would never end.
pub fn is_reply(datagram: &[u8]) -> bool {
    parse_reply(datagram)
        .is_ok_and(|Reply { entries }| !entries.is_empty() && entries.iter().all(|(key, _)| key != OP))
}

/// Reads a reply.
///
/// # Errors
/// [`NotAReply`] where it is something else.
pub fn parse_reply(datagram: &[u8]) -> Result<Reply, NotAReply> {
    let words_of: BTreeMap<String, String> = serde_json::from_slice(datagram)?;
    Ok(Reply { entries: words_of.into_iter().collect() })
}
