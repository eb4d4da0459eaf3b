//! The operator's commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tonic::transport::Channel;

use crate::proto::host::log::{self, LogFormat};
use crate::proto::host::output::{self, Format};
use crate::proto::host::{client, limits};
use crate::proto::model::Remote;
use crate::proto::v1::mesh_admin_client::MeshAdminClient;

mod admin;
mod apply;
mod audit;
mod ca;
mod converge;
mod diagnose;
mod error;
mod events;
mod export;
pub mod legacy;
mod links;
mod mesh;
mod node;
mod nodes;
mod operations;
mod serve;
mod status;
mod token;
mod wait;

pub use error::Error;

/// Operates a mesh of UDP tunnels between hosts.
#[derive(Debug, Parser)]
#[command(name = "controller", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Exit code: 0 done, 1 failed, 2 wrong use. `plan` has 3 where there are changes.

Examples:
  controller serve                       run the controller
  controller token create --name 'web-*' a token with which one host joins within an hour
  controller plan -f mesh.yaml           what applying the file would do
  controller apply -f mesh.yaml --wait   do it, and wait until every node has it
  controller nodes                       the nodes and how far they are
  controller links                       how they hear each other, in each direction
  controller diagnose web-1 web-2        what is wrong between two of them, and what to try";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    #[command(flatten)]
    Ask(Ask),
    Legacy(legacy::Args),
}

/// What a running controller is asked.
#[derive(Debug, Subcommand)]
enum Ask {
    Plan(apply::PlanArgs),
    Apply(apply::ApplyArgs),
    /// List the meshes, or delete one
    #[command(subcommand)]
    Mesh(mesh::Command),
    Status(status::Args),
    Nodes(nodes::NodesArgs),
    Tunnels(nodes::TunnelsArgs),
    Links(links::Args),
    Diagnose(diagnose::Args),
    Wait(wait::Args),
    Events(events::Args),
    /// Print how something that has no agent is set up
    #[command(subcommand)]
    Export(export::Command),
    Audit(audit::Args),
    /// Say which hosts may join
    #[command(subcommand)]
    Token(token::Command),
    /// Let a host join, or take a node out
    #[command(subcommand)]
    Node(node::Command),
    /// Say who may steer from elsewhere
    #[command(subcommand)]
    Admin(admin::Command),
    /// Show or change by what agents know the controller
    #[command(subcommand)]
    Ca(ca::Command),
}

/// Where a controller hears its operators.
#[derive(Debug, clap::Args)]
struct SocketArgs {
    /// Unix socket of the controller
    #[arg(
        long,
        env = "TUNMESH_CONTROLLER_SOCKET",
        value_name = "PATH",
        default_value = "/run/tunmesh-controller/controller.sock"
    )]
    socket: PathBuf,
}

/// Which controller is asked.
#[derive(Debug, clap::Args)]
struct ControllerArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// A controller elsewhere, instead of the one on this host: an address or host name, port 7443 where it names none
    #[arg(long, env = "TUNMESH_SERVER", value_name = "ADDR", requires = "identity")]
    server: Option<Remote>,
    /// Who asks it: a file of `controller admin create`
    #[arg(long, env = "TUNMESH_IDENTITY", value_name = "PATH", requires = "server")]
    identity: Option<PathBuf>,
}

/// Which controller is asked, and how its answer is written.
#[derive(Debug, clap::Args)]
struct AskArgs {
    #[command(flatten)]
    controller: ControllerArgs,
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl ControllerArgs {
    async fn connect(&self) -> Result<MeshAdminClient<Channel>, Error> {
        let channel = match (&self.server, &self.identity) {
            (Some(server), Some(identity)) => client::dial(server, identity).await?,
            (Some(_) | None, _) => {
                client::connect(&self.socket.socket, "controller", "controller serve").await?
            }
        };
        Ok(MeshAdminClient::new(channel))
    }
}

impl AskArgs {
    async fn connect(&self) -> Result<MeshAdminClient<Channel>, Error> {
        self.controller.connect().await
    }

    fn write<T: serde::Serialize>(&self, answer: &T, table: impl FnOnce(&T) -> String) -> Result<(), Error> {
        Ok(output::write(self.output, answer, table)?)
    }
}

impl Cli {
    /// Reads a command line, the program's name first. A fault or `--help` ends the process, with 2 or 0.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(legacy::spell_out_mask(args))
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self) -> Result<ExitCode, Error> {
        // The controller's keys, or an operator's.
        limits::keep_memory_private();
        match self.command {
            Command::Serve(args) => args.run().map(|()| ExitCode::SUCCESS),
            Command::Ask(ask) => {
                log::init(LogFormat::Text);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(ask.run())
            }
            Command::Legacy(args) => {
                log::init(LogFormat::Text);
                args.run().map(|()| ExitCode::SUCCESS)
            }
        }
    }
}

impl Ask {
    async fn run(self) -> Result<ExitCode, Error> {
        match self {
            Self::Plan(args) => return args.run().await,
            Self::Apply(args) => args.run().await,
            Self::Mesh(command) => command.run().await,
            Self::Status(args) => args.run().await,
            Self::Nodes(args) => args.run().await,
            Self::Tunnels(args) => args.run().await,
            Self::Links(args) => args.run().await,
            Self::Diagnose(args) => args.run().await,
            Self::Wait(args) => args.run().await,
            Self::Events(args) => args.run().await,
            Self::Export(command) => command.run().await,
            Self::Audit(args) => args.run().await,
            Self::Token(command) => command.run().await,
            Self::Node(command) => command.run().await,
            Self::Admin(command) => command.run().await,
            Self::Ca(command) => command.run().await,
        }
        .map(|()| ExitCode::SUCCESS)
    }
}
