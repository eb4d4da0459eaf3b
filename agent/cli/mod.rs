//! The agent's command line.

mod show;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::IpNet;

use crate::agent::config::{Config, ControllerConfig};
use crate::agent::service::controller::Introduction;
use crate::proto::host::log::{self, LogFormat};
use crate::proto::host::output::Format;
use crate::proto::model::{ACCEPTED, Invalid, NodeName, Offload, Remote, parse_label, parse_prefix};
use crate::proto::session::Reach;
use crate::proto::trust::{JoinToken, KeyId};

/// Joins this host to others by UDP tunnels over tun devices.
#[derive(Debug, Parser)]
#[command(name = "agent", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  agent                                run, steered over its socket and the legacy port of this host
  agent --legacy-allow 172.100.0.0/16  let other hosts steer it over the legacy port
  agent --controller 172.100.0.1 --token-file join.token
                                       join the mesh of a controller, which may be there later
  agent --controller 172.100.0.1       the same without a token, once an operator has approved it
  agent --controller 172.100.0.1 --endpoint 172.100.1.1,node1.example.net
                                       say where peers reach this host, the preferred place first
  agent status                         what the running agent does
  agent check                          what is missing on this host, and how to mend it";

#[derive(Debug, Subcommand)]
enum Sub {
    /// Show the running agent as a whole.
    Status(AskArgs),
    /// Show the tunnels of the running agent.
    Tunnels(AskArgs),
    /// Forget the controller: its tunnels go, and it is not dialled again until the agent is started anew.
    Leave(AskArgs),
    /// Show what is missing on this host, and how to mend it. Exit code 1 where something is.
    Check(FormatArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// UDP port of packets, here and at remotes that name none; also -dp and --dataPort
    #[arg(long, alias = "dataPort", env = "TUNMESH_DATA_PORT", default_value_t = 5000, value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..))]
    data_port: u16,
    /// UDP port of the legacy control protocol; also -cp and --controlPort
    #[arg(long, alias = "controlPort", env = "TUNMESH_CONTROL_PORT", default_value_t = crate::proto::legacy::CONTROL_PORT,
          value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    control_port: u16,
    /// Who beside this host may steer the agent over the legacy port, unauthenticated; may be repeated
    #[arg(long, env = "TUNMESH_LEGACY_ALLOW", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix)]
    legacy_allow: Vec<IpNet>,
    /// Close the legacy control port
    #[arg(long, env = "TUNMESH_NO_LEGACY", value_parser = clap::builder::FalseyValueParser::new())]
    no_legacy: bool,
    /// Where overlay addresses, allowed prefixes and routes may lie; may be repeated
    #[arg(long, env = "TUNMESH_ACCEPT_PREFIX", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix,
          default_values = ACCEPTED)]
    accept_prefix: Vec<IpNet>,
    /// Offloads not to use: tun-tso, tun-uso, udp-gso, udp-gro; may be repeated
    #[arg(long, env = "TUNMESH_WITHOUT", value_name = "OFFLOAD", value_delimiter = ',')]
    without: Vec<Offload>,
    #[command(flatten)]
    controller: ControllerArgs,
    #[command(flatten)]
    socket: SocketArgs,
    /// Address for TunnelService over TCP as well: in plain text on loopback, as 127.0.0.1:5002, otherwise for operators who
    /// show a certificate
    #[arg(long, env = "TUNMESH_GRPC_LISTEN", value_name = "ADDR")]
    grpc_listen: Option<SocketAddr>,
    /// Address for metrics over HTTP at /metrics, as 127.0.0.1:7480; on another than loopback whoever reaches it reads them
    #[arg(long, env = "TUNMESH_METRICS_LISTEN", value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// Where the wanted tunnels are kept
    #[arg(long, env = "TUNMESH_STATE_DIR", value_name = "DIR", default_value = "/var/lib/tunmesh-agent")]
    state_dir: PathBuf,
    /// How log lines are written
    #[arg(long, env = "TUNMESH_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct ControllerArgs {
    /// Controllers to follow, one at a time: addresses or host names, port 7443 where they name none
    #[arg(long, env = "TUNMESH_CONTROLLER", value_name = "ADDR", value_delimiter = ',')]
    controller: Vec<Remote>,
    /// The node that this host is; the host's name unless given
    #[arg(long, env = "TUNMESH_NAME", value_name = "NAME")]
    name: Option<NodeName>,
    /// What the node says of itself, as role=web; may be repeated
    #[arg(long, env = "TUNMESH_LABEL", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Where others reach this node's data port, the preferred one of at most four first, or none: then it reaches them;
    /// the address that its session comes from unless given, if addresses are not translated on the way
    #[arg(long, env = "TUNMESH_ENDPOINT", value_name = "ADDR,…|none")]
    endpoint: Option<Reach>,
    /// Token with which this host joins, as `controller token create` prints it; better in --token-file or TUNMESH_TOKEN
    #[arg(
        long,
        env = "TUNMESH_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// File with the token
    #[arg(long, env = "TUNMESH_TOKEN_FILE", value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// The controller's root, as `controller ca show` prints it, where no token names it
    // One pin in 64 begins with a hyphen.
    #[arg(
        long,
        env = "TUNMESH_PIN",
        value_name = "PIN",
        allow_hyphen_values = true,
        conflicts_with_all = ["token", "token_file"]
    )]
    pin: Option<KeyId>,
    /// Networks in which whoever answers first is believed to be the controller; may be repeated
    #[arg(long, env = "TUNMESH_APPROVE_ANY", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix)]
    approve_any: Vec<IpNet>,
    /// Networks in which the controller is followed in plain text; may be repeated
    #[arg(long, env = "TUNMESH_INSECURE", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix)]
    insecure: Vec<IpNet>,
}

impl ControllerArgs {
    fn config(self) -> Result<Option<ControllerConfig>, String> {
        if self.controller.is_empty() {
            return Ok(None);
        }
        let token = match (self.token, self.token_file) {
            (Some(token), _) => Some(parse_token(&token, "--token")?),
            (None, Some(path)) => Some(read_token(&path)?),
            (None, None) => None,
        };
        Ok(Some(ControllerConfig {
            addresses: self.controller,
            insecure: self.insecure,
            introduction: Introduction { token, pin: self.pin, approve_any: self.approve_any },
            node: self.name.map_or_else(host_name, Ok)?,
            labels: self.label.into_iter().collect(),
            reach: self.endpoint.unwrap_or_default(),
        }))
    }
}

fn read_token(path: &Path) -> Result<JoinToken, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("--token-file {}: {error}", path.display()))?;
    parse_token(&text, &format!("--token-file {}", path.display()))
}

/// The token in a text that came with `flag`. The words have no part of it.
fn parse_token(text: &str, flag: &str) -> Result<JoinToken, String> {
    text.parse().map_err(|fault: Invalid| format!("{flag} {fault}"))
}

/// The host's name as a node's.
fn host_name() -> Result<NodeName, String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    name.parse().map_err(|Invalid { problem, .. }| {
        format!("the host name {name:?} {problem}: name the node that this host is with --name")
    })
}

#[derive(Debug, Args)]
struct SocketArgs {
    /// Unix socket of TunnelService
    #[arg(
        long,
        env = "TUNMESH_SOCKET",
        value_name = "PATH",
        default_value = "/run/tunmesh-agent/agent.sock"
    )]
    socket: PathBuf,
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct AskArgs {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Writes the two-letter flags of the server of 2015 as long ones: clap's short flags have one letter.
pub fn modern(args: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    const FLAGS: [(&str, &str); 2] = [("-dp", "--data-port"), ("-cp", "--control-port")];
    args.map(|arg| {
        let (flag, value) =
            arg.split_once('=').map_or((arg.as_str(), None), |(flag, value)| (flag, Some(value)));
        match (FLAGS.iter().find(|(old, _)| *old == flag), value) {
            (Some((_, new)), Some(value)) => format!("{new}={value}"),
            (Some((_, new)), None) => (*new).to_owned(),
            (None, _) => arg,
        }
    })
}

impl Cli {
    /// Parses the process's own arguments; a fault or `--help` ends the process, with 2 or 0.
    pub fn from_args() -> Self {
        // A path that is no text stays one that does not exist.
        let args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
        Self::parse_from(modern(args))
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// Why it failed, in words.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            None => self.run.run().map(|()| ExitCode::SUCCESS),
            Some(Sub::Status(ask)) => block_on(show::status(&ask.socket.socket, ask.format.output))?,
            Some(Sub::Tunnels(ask)) => block_on(show::tunnels(&ask.socket.socket, ask.format.output))?,
            Some(Sub::Leave(ask)) => block_on(show::leave(&ask.socket.socket, ask.format.output))?,
            Some(Sub::Check(format)) => show::check(format.output),
        }
    }
}

fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

impl RunArgs {
    fn run(self) -> anyhow::Result<()> {
        let refuse = |problem: String| -> ! {
            Cli::command().error(clap::error::ErrorKind::ValueValidation, problem).exit()
        };
        if !self.no_legacy && self.data_port == self.control_port {
            refuse(format!("--data-port and --control-port are both {}", self.data_port));
        }
        let controller = self.controller.config().unwrap_or_else(|problem| refuse(problem));
        if let Some(address) = self.grpc_listen.filter(|address| !address.ip().is_loopback())
            && controller.is_none()
        {
            refuse(format!(
                "--grpc-listen {address} needs --controller, which gives this agent a certificate: without one only a \
                 loopback address is listened on, as 127.0.0.1:5002"
            ));
        }
        log::init(self.log_format);
        let config = Config {
            data_port: self.data_port,
            control_port: (!self.no_legacy).then_some(self.control_port),
            legacy_allow: self.legacy_allow,
            accept_prefixes: self.accept_prefix,
            without: self.without,
            socket: self.socket.socket,
            grpc_listen: self.grpc_listen,
            metrics_listen: self.metrics_listen,
            state_dir: self.state_dir,
            controller,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let ended = runtime.block_on(crate::agent::daemon::run(config));
        // A thread that waits for a resolver cannot be stopped: the end does not wait for it.
        runtime.shutdown_background();
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(modern(std::iter::once("agent").chain(args.iter().copied()).map(str::to_owned)))
    }

    #[test]
    fn takes_the_flags_of_2015() {
        for args in [
            ["-dp", "6000", "-cp", "6001"],
            ["--dataPort", "6000", "--controlPort", "6001"],
            ["--data-port", "6000", "--control-port", "6001"],
        ] {
            let cli = parse(&args).unwrap();
            assert_eq!((cli.run.data_port, cli.run.control_port), (6000, 6001), "{args:?}");
        }
        let cli = parse(&["-dp=6000"]).unwrap();
        assert_eq!((cli.run.data_port, cli.run.control_port), (6000, 5001));
    }

    #[test]
    fn the_help_names_the_flags_of_2015() {
        let mut command = <Cli as clap::CommandFactory>::command();
        for help in [command.render_help().to_string(), command.render_long_help().to_string()] {
            for flag in ["-dp", "--dataPort", "-cp", "--controlPort"] {
                assert!(help.contains(flag), "{flag} is not in: {help}");
            }
        }
    }

    #[test]
    fn a_pin_may_begin_with_a_hyphen() {
        for first in ["-", "A"] {
            let pin = format!("{first}{}", "A".repeat(42));
            let args = parse(&["--controller", "10.0.0.1", "--pin", &pin]).unwrap();
            assert_eq!(args.run.controller.pin.map(|pin| pin.to_string()), Some(pin));
        }
    }

    #[test]
    fn refuses_ports_that_are_none() {
        assert!(parse(&["--data-port", "0"]).is_err());
        assert!(parse(&["--data-port", "65536"]).is_err());
        assert!(parse(&["--legacy-allow", "nowhere"]).is_err());
    }
}
