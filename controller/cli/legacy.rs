//! `controller legacy`: the control client of 2015.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use serde_json::{Map, Value};

use super::Error;
use crate::proto::command::{CommandError, Field};
use crate::proto::host::output::{print, printable};
use crate::proto::legacy::{self, CONTROL_PORT, Operation};

/// The longest reply.
const BUFFER: usize = 1 << 16;

/// Add or delete a tunnel on an agent, or on a server of 2015, over its legacy control port.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP, override_usage = "controller legacy -s HOST [-o add] -n NAME -t ADDRESS -r HOST [-tm MASK] [-m BYTES] [-p PORT]\n       controller legacy -s HOST -o del -n NAME [-p PORT]")]
pub struct Args {
    /// The host to tell, by name or address
    #[arg(value_name = "HOST", conflicts_with = "server")]
    host: Option<String>,
    /// The same, as a flag
    #[arg(short, long, value_name = "HOST", required_unless_present = "host")]
    server: Option<String>,
    /// UDP port of its control protocol
    #[arg(short, long, default_value_t = CONTROL_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// add (or change in place), or del
    #[arg(short, long, default_value = "add", value_name = "add|del", value_parser = operation)]
    operation: Operation,
    /// The tunnel, which is the name of its device, too: at most 15 bytes
    #[arg(short, long)]
    name: String,
    /// Its address on that host, as 10.0.1.1
    #[arg(short, long, value_name = "ADDRESS")]
    tunnel: Option<String>,
    /// -tm MASK or --mask MASK: dotted, or a prefix length [default: 255.255.255.252, for IPv6 126]
    #[arg(long, value_name = "MASK")]
    mask: Option<String>,
    /// The largest packet, 68 to 65535 bytes [default: 1500]
    #[arg(short, long, value_name = "BYTES")]
    mtu: Option<String>,
    /// The host at the other end, by address or name
    #[arg(short, long, value_name = "HOST")]
    remote: Option<String>,
    /// How long to wait for the reply, in seconds
    #[arg(long, default_value = "2", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
    /// Send, and do not wait: a server of 2015 never replies
    #[arg(long)]
    no_reply: bool,
}

const AFTER_HELP: &str = "\
An agent heeds its own host (127.0.0.1) and the networks of its --legacy-allow.
Without -tm an address stands in a network of four, as 10.0.1.1 in 10.0.1.0/30 with 10.0.1.2 at the other end; the
first and the last of the four, as 8.8.8.8, are no hosts'. With others give -tm 24 or another mask.
Exit code: 0 done, 1 refused or without a reply, 2 wrong use.

Examples:
  controller legacy -s 172.100.1.1 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2
  controller legacy 172.100.1.1 -n udp2 -t 10.0.1.1 -tm 255.255.255.252 -m 1400 -r 172.100.1.2 -p 5001
  controller legacy -s 172.100.1.1 -o del -n udp2";

fn operation(text: &str) -> Result<Operation, String> {
    text.parse().map_err(|fault: crate::proto::model::Invalid| fault.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "is no number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        Ok(_) | Err(_) => Err("is no time to wait".to_owned()),
    }
}

/// Writes `-tm`, the one flag of the client of 2015 with two letters, as `--mask`, in the arguments of `legacy`: clap
/// reads it as `-t m`.
pub fn spell_out_mask(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|command| command == "legacy") {
        for arg in args.iter_mut().skip(2) {
            let Some(text) = arg.to_str() else { continue };
            let spelled = match text.strip_prefix("-tm") {
                Some("") => "--mask".to_owned(),
                Some(value) if value.starts_with('=') => format!("--mask{value}"),
                Some(_) | None => continue,
            };
            *arg = spelled.into();
        }
    }
    args
}

/// A field's flag.
fn flag(field: Field) -> &'static str {
    match field {
        Field::Operation => "--operation",
        Field::Name | Field::Device => "--name",
        Field::Addresses | Field::Address(_) => "--tunnel",
        Field::Netmask => "--mask",
        Field::Mtu => "--mtu",
        Field::Remote => "--remote",
        Field::Command
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
        | Field::Interval => "the command",
    }
}

impl Args {
    /// Sends the datagram, and shows the reply.
    pub(super) fn run(&self) -> Result<(), Error> {
        let datagram = self.datagram()?;
        let host = self.host.as_ref().or(self.server.as_ref()).map_or("", String::as_str);
        let (server, reply) = self.ask(host, &datagram)?;
        let Some(reply) = reply else { return Ok(()) };
        let reply = legacy::parse_reply(&reply)
            .map_err(|error| Error::Failed(format!("{server} answered, but {error}")))?;
        for (tunnel, words) in &reply.entries {
            // Whoever answered may be anybody.
            print(&printable(&format!("{tunnel}: {words}")))?;
        }
        if reply.is_ok() { Ok(()) } else { Err(Error::Failed(format!("{server} refused"))) }
    }

    fn datagram(&self) -> Result<Vec<u8>, Error> {
        let fields = [
            ("name", Some(&self.name)),
            ("tunnelIP", self.tunnel.as_ref()),
            ("netmask", self.mask.as_ref()),
            ("mtu", self.mtu.as_ref()),
            ("remoteServer", self.remote.as_ref()),
        ];
        let given = fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?.clone())));
        let tunnel: Map<String, Value> = given.map(|(field, value)| (field, Value::String(value))).collect();
        let command = legacy::command(self.operation, &Value::Object(tunnel));
        let command =
            command.map_err(|error: CommandError| Error::Usage(error.describe(flag(error.field))))?;
        Ok(legacy::request(&command))
    }

    /// Asks `host` at its first address, and at the next where nothing listens.
    fn ask(&self, host: &str, datagram: &[u8]) -> Result<(SocketAddr, Option<Vec<u8>>), Error> {
        let unknown =
            || Error::Failed(format!("{host:?} does not resolve: give an address, or check the name"));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let servers = (bare, self.port).to_socket_addrs().map_err(|_| unknown())?;
        let mut refused = unknown();
        for server in servers {
            match self.exchange(server, datagram) {
                Ok(reply) => return Ok((server, reply)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    refused = self.in_words(server, &error);
                }
                Err(error) => return Err(self.in_words(server, &error)),
            }
        }
        Err(refused)
    }

    fn exchange(&self, server: SocketAddr, datagram: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        // Connected, the socket is told where nobody listens.
        socket.connect(server)?;
        socket.set_read_timeout(Some(self.timeout))?;
        socket.send(datagram)?;
        if self.no_reply {
            return Ok(None);
        }
        let mut buffer = vec![0; BUFFER];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(Some(buffer))
    }

    fn in_words(&self, server: SocketAddr, error: &io::Error) -> Error {
        let silent = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
        Error::Failed(if error.kind() == io::ErrorKind::ConnectionRefused {
            format!("nothing listens on the control port {server}: start the agent, or give its port with -p")
        } else if silent {
            format!(
                "no reply from {server} within {} s: an agent heeds only its own host (127.0.0.1) and the networks \
                 of its --legacy-allow; a server of 2015 never replies (--no-reply)",
                self.timeout.as_secs_f64()
            )
        } else {
            format!("{server}: {error}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_out_the_mask_of_legacy_alone() {
        let spelled = |line: &str| {
            let args = line.split(' ').map(OsString::from);
            let spelled: Vec<String> =
                spell_out_mask(args).into_iter().map(|arg| arg.into_string().unwrap()).collect();
            spelled.join(" ")
        };
        assert_eq!(spelled("c legacy -tm 255.0.0.0 -t 1"), "c legacy --mask 255.0.0.0 -t 1");
        assert_eq!(spelled("c legacy -tm=24"), "c legacy --mask=24");
        assert_eq!(spelled("c legacy -tmx"), "c legacy -tmx");
        assert_eq!(spelled("c other -tm x"), "c other -tm x");
    }

    #[test]
    fn an_address_without_a_mask_stands_in_a_network_of_four_as_the_help_says() {
        let datagram = |words: &str| {
            let line = format!("controller legacy -s h -n udp2 -r 172.100.1.2 {words}");
            let cli = super::super::Cli::read(line.split(' ').map(OsString::from));
            let super::super::Command::Legacy(args) = cli.command else { panic!("{line}") };
            args.datagram().map(|datagram| String::from_utf8(datagram).unwrap())
        };
        assert!(datagram("-t 10.0.1.1").unwrap().contains("\"255.255.255.252\""));
        let refused = datagram("-t 8.8.8.8").unwrap_err().to_string();
        assert!(refused.contains("8.8.8.8/30\" is the address of the network itself"), "{refused}");
        assert!(datagram("-t 8.8.8.8 -tm 24").unwrap().contains("\"255.255.255.0\""));
        assert!(AFTER_HELP.contains("as 8.8.8.8, are no hosts'"));
    }
}
