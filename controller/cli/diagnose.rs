//! `controller diagnose`.

use super::{AskArgs, Error};
use crate::proto::host::output::printable;
use crate::proto::v1;

/// Say what is wrong between two nodes, and what to try
///
/// Both nodes are asked, and a third one of their mesh: they send pings and a datagram to each other on the underlay, and look at
/// their routes, filters and keys. It takes a few seconds.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One of both
    node: String,
    /// The other one
    peer: String,
    /// In this mesh; the first that joins them unless given
    #[arg(long, value_name = "MESH", default_value = "")]
    mesh: String,
    #[command(flatten)]
    ask: AskArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let request =
            v1::DiagnoseRequest { node: self.node.clone(), peer: self.peer.clone(), mesh: self.mesh.clone() };
        let answer = self.ask.connect().await?.diagnose(request).await?.into_inner();
        self.ask.write(&answer, |answer| printable(&answer.paragraph))
    }
}
