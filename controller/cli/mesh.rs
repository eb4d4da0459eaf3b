//! `controller mesh`.

use super::apply::generation;
use super::operations::{Tense, operations, summary};
use super::{AskArgs, Error};
use crate::proto::host::client::pages;
use crate::proto::host::output::columns;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the meshes
    List(ListArgs),
    /// Delete a mesh: its devices and tunnels go from all nodes
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// The mesh
    name: String,
    /// Consent to the removal of more than half, and more than three, of a node's tunnels
    #[arg(long)]
    allow_removals: bool,
    #[command(flatten)]
    ask: AskArgs,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::List(args) => args.run().await,
            Self::Delete(args) => args.run().await,
        }
    }
}

impl ListArgs {
    async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        let page = async |after| {
            let answer = controller.list_meshes(v1::ListMeshesRequest { after }).await?.into_inner();
            Ok::<_, Error>((answer.meshes, answer.more))
        };
        let meshes = pages(page, |mesh| &mesh.name).await?;
        let all = v1::ListMeshesResponse { meshes, more: 0 };
        self.ask.write(&all, table)
    }
}

impl DeleteArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::DeleteMeshRequest { name: self.name.clone(), allow_removals: self.allow_removals };
        let answer = self.ask.connect().await?.delete_mesh(request).await?.into_inner();
        self.ask.write(&answer, |answer| {
            let done = answer.plan.clone().unwrap_or_default();
            let mut lines = operations(&done);
            lines.push(format!(
                "mesh {} deleted: {}; {}",
                self.name,
                summary(&done, Tense::Past),
                generation(answer.generation)
            ));
            lines.join("\n")
        })
    }
}

fn table(answer: &v1::ListMeshesResponse) -> String {
    if answer.meshes.is_empty() {
        return "no meshes: write a mesh file, and `controller apply -f` it".to_owned();
    }
    let rows = answer.meshes.iter().map(|mesh| {
        vec![
            mesh.name.clone(),
            mesh.overlay.join(" "),
            mesh.device.clone(),
            mesh.topology.clone(),
            mesh.security.clone(),
            (mesh.nodes.len() + mesh.more_nodes as usize).to_string(),
            mesh.revision.to_string(),
        ]
    });
    columns(&["name", "overlay", "device", "topology", "security", "nodes", "revision"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meshes_are_rows() {
        let mesh = v1::Mesh {
            name: "prod".to_owned(),
            overlay: vec!["10.9.0.0/24".to_owned(), "fd00:9::/64".to_owned()],
            device: "tun9".to_owned(),
            topology: "full".to_owned(),
            security: "plain".to_owned(),
            revision: 17,
            nodes: vec![v1::MeshNode::default(); 3],
            more_nodes: 4,
        };
        let text = table(&v1::ListMeshesResponse { meshes: vec![mesh], more: 0 });
        let words: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(words, ["prod", "10.9.0.0/24", "fd00:9::/64", "tun9", "full", "plain", "7", "17"]);
        assert!(table(&v1::ListMeshesResponse::default()).contains("`controller apply -f`"));
    }
}
