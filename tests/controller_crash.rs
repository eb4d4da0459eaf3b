//! A controller that is killed while meshes are applied.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]
#![allow(clippy::disallowed_methods, reason = "a process is killed at real moments")]

mod lab;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lab::{Controller, Lab, SOON};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tunmesh::controller::store::Store;
use tunmesh::controller::store::sqlite::SqliteStore;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::mesh_admin_client::MeshAdminClient;

/// How often it is killed.
const ROUNDS: u64 = 200;
/// Meshes that are applied at the same time, each in a version after the other.
const MESHES: usize = 4;
/// The nodes of which every version of a mesh has some.
const NODES: usize = 10;

/// What is known of a mesh.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The last version that was acknowledged.
    version: usize,
    /// A revision that has it.
    revision: u64,
    /// Whether the next was asked for and not acknowledged: it may be there or not.
    is_open: bool,
}

fn name(mesh: usize) -> String {
    format!("m{mesh}")
}

/// The nodes of a version: no two versions after each other have the same, and no two meshes have one in common.
fn nodes(mesh: usize, version: usize) -> BTreeSet<String> {
    let bits = version % ((1 << NODES) - 1) + 1;
    (0..NODES).filter(|node| bits & (1 << node) != 0).map(|node| format!("m{mesh}-n{node}")).collect()
}

fn file(mesh: usize, version: usize) -> v1::MeshFile {
    let name = name(mesh);
    let lines: String = nodes(mesh, version).iter().map(|node| format!("  {node}: {{}}\n")).collect();
    let content = format!("mesh: {name}\noverlay: 10.{mesh}.0.0/24\nsecurity: plain\nnodes:\n{lines}");
    v1::MeshFile { name, content }
}

/// Applies version after version of a mesh until the controller is gone.
async fn apply(socket: PathBuf, mesh: usize, mut known: Known, acknowledged: &Notify) -> Known {
    let mut client = MeshAdminClient::new(client::connect(&socket, "controller", "serve").await.unwrap());
    loop {
        // What was open has been settled, or is asked for again.
        known.is_open = true;
        let request = v1::ApplyRequest {
            file: Some(file(mesh, known.version + 1)),
            plan: String::new(),
            allow_removals: true,
        };
        match client.apply(request).await {
            Ok(answer) => {
                let revision = answer.into_inner().generation.unwrap().revision;
                assert!(revision > known.revision, "{revision} after {known:?}");
                known = Known { version: known.version + 1, revision, is_open: false };
                acknowledged.notify_one();
            }
            Err(status) if is_refusal(&status) => panic!("{status:?}"),
            Err(_) => return known,
        }
    }
}

/// Whether a controller that lives said no.
fn is_refusal(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::InvalidArgument | Code::FailedPrecondition | Code::Aborted | Code::NotFound | Code::Internal
    )
}

/// What the files of a dead controller have.
async fn on_disk(directory: &Path, known: &mut [Known]) {
    let store = SqliteStore::open(directory).unwrap();
    let (entries, _) = store.read("/").await.unwrap();
    for (mesh, known) in known.iter_mut().enumerate() {
        let of = |prefix: &str| {
            let key = format!("{prefix}{}", name(mesh));
            let entry = entries.iter().find(|entry| entry.key == key)?;
            Some((serde_json::from_slice::<serde_json::Value>(&entry.value).unwrap(), entry.revision))
        };
        let (kept, allocations) = (of("/meshes/"), of("/allocations/"));
        let Some((kept, revision)) = kept else {
            assert_eq!(known.version, 0, "{} was acknowledged and is lost", name(mesh));
            assert!(allocations.is_none());
            continue;
        };
        let found: BTreeSet<String> = kept["nodes"].as_object().unwrap().keys().cloned().collect();
        if known.is_open && found == nodes(mesh, known.version + 1) {
            assert!(revision > known.revision);
            *known = Known { version: known.version + 1, revision, is_open: false };
        }
        assert_eq!(found, nodes(mesh, known.version), "{} is of no version, or lost: {known:?}", name(mesh));
        assert!(revision <= known.revision, "{} was set at {revision}: {known:?}", name(mesh));
        known.revision = revision;
        let (allocations, _) = allocations.expect("a mesh has its allocations");
        let members = allocations["nodes"].as_object().unwrap().iter();
        let members =
            members.filter(|(_, allocation)| allocation["freed"].is_null()).map(|(node, _)| node.clone());
        assert_eq!(members.collect::<BTreeSet<_>>(), found, "{} is half there", name(mesh));
    }
}

/// What a controller that started again says.
async fn served(socket: &Path, known: &[Known]) {
    let mut client = MeshAdminClient::new(client::connect(socket, "controller", "serve").await.unwrap());
    let meshes = client.list_meshes(v1::ListMeshesRequest::default()).await.unwrap().into_inner().meshes;
    for (mesh, known) in known.iter().enumerate().filter(|(_, known)| known.version > 0) {
        let found = meshes.iter().find(|found| found.name == name(mesh)).expect("the mesh");
        assert_eq!(found.revision, known.revision, "{}", found.name);
        let with_address = found.nodes.iter().filter(|node| node.addresses.len() == 1);
        let with_address: BTreeSet<_> = with_address.map(|node| node.name.clone()).collect();
        assert_eq!(with_address, nodes(mesh, known.version), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_two_hundred_times_it_has_what_was_acknowledged() {
    let lab = Lab::new();
    let host = lab.host("controller");
    let mut controller = Controller::start(&host, &["--listen", "127.0.0.1:7443"]);
    let (socket, directory) = (controller.socket(), controller.state_dir());
    let mut known = [Known::default(); MESHES];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..ROUNDS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let moment = Duration::from_micros(seed % 50_000);
        let acknowledged = std::sync::Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        for (mesh, known) in known.into_iter().enumerate() {
            let (socket, acknowledged) = (socket.clone(), acknowledged.clone());
            tasks.spawn(async move { (mesh, apply(socket, mesh, known, &acknowledged).await) });
        }
        timeout(SOON, acknowledged.notified()).await.expect("a mesh is applied soon");
        tokio::task::block_in_place(|| {
            thread::sleep(moment);
            controller.kill9();
        });
        let ended = timeout(SOON, tasks.join_all()).await.expect("a call ends with its controller");
        ended.into_iter().for_each(|(mesh, after)| known[mesh] = after);
        on_disk(&directory, &mut known).await;
        tokio::task::block_in_place(|| controller.restart());
        served(&socket, &known).await;
        assert!(controller.alive(), "round {round}");
    }
    let versions: usize = known.iter().map(|known| known.version).sum();
    assert!(versions > 1_000, "{known:?}");
}
