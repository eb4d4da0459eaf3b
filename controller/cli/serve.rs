//! `controller serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{Error, SocketArgs};
use crate::controller::config::Config;
use crate::controller::daemon;
use crate::proto::host::log::{self, LogFormat};
use crate::proto::model::parse_prefix;

/// Run the controller: keep the meshes, and bring them to the agents that dial it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where agents dial; may be repeated
    #[arg(
        long,
        env = "TUNMESH_CONTROLLER_LISTEN",
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "0.0.0.0:7443"
    )]
    listen: Vec<SocketAddr>,
    #[command(flatten)]
    socket: SocketArgs,
    /// Where meshes, addresses and nodes are kept
    #[arg(
        long,
        env = "TUNMESH_CONTROLLER_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/tunmesh-controller"
    )]
    state_dir: PathBuf,
    /// Address for metrics over HTTP at /metrics, as 127.0.0.1:7480; on another than loopback whoever reaches it reads them
    #[arg(long, env = "TUNMESH_CONTROLLER_METRICS_LISTEN", value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// Networks from which agents may come in plain text, unauthenticated; may be repeated
    #[arg(long, env = "TUNMESH_CONTROLLER_INSECURE", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix)]
    insecure: Vec<IpNet>,
    /// Networks in which every host that asks may join, without a token or approval; may be repeated
    #[arg(long, env = "TUNMESH_CONTROLLER_APPROVE_ANY", value_name = "CIDR", value_delimiter = ',', value_parser = parse_prefix)]
    approve_any: Vec<IpNet>,
    /// How log lines are written
    #[arg(long, env = "TUNMESH_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

impl Args {
    /// Runs until SIGTERM or SIGINT.
    pub(super) fn run(self) -> Result<(), Error> {
        log::init(self.log_format);
        let config = Config {
            listen: self.listen,
            socket: self.socket.socket,
            state_dir: self.state_dir,
            metrics_listen: self.metrics_listen,
            insecure: self.insecure,
            approve_any: self.approve_any,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let ended = runtime.block_on(daemon::run(config));
        runtime.shutdown_background();
        Ok(ended?)
    }
}
