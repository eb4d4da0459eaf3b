//! Operators that act at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault ends the test")]

mod lab;

use futures_util::future::join_all;
use lab::{Controller, Lab};
use tonic::Code;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::mesh_admin_client::MeshAdminClient;

fn request(name: &str, position: usize, nodes: [&str; 2]) -> v1::ApplyRequest {
    let [one, other] = nodes;
    let content = format!(
        "mesh: {name}\noverlay: 10.{position}.0.0/24\nsecurity: plain\nnodes:\n  {one}: {{}}\n  {other}: {{}}\n"
    );
    let file = v1::MeshFile { name: name.to_owned(), content };
    v1::ApplyRequest { file: Some(file), plan: String::new(), allow_removals: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_meshes_that_exclude_each_other_one_is_applied() {
    const MESHES: usize = 8;
    let lab = Lab::new();
    let host = lab.host("controller");
    let controller = Controller::start(&host, &["--listen", "127.0.0.1:7443"]);
    let channel = client::connect(&controller.socket(), "controller", "serve").await.unwrap();
    let apply = async |request| MeshAdminClient::new(channel.clone()).apply(request).await;
    // Two nodes cannot be in two plain meshes together.
    let requests = (0..MESHES).map(|n| apply(request(&format!("m{n}"), n, ["a", "b"])));
    let (done, refused): (Vec<_>, Vec<_>) = join_all(requests).await.into_iter().partition(Result::is_ok);
    assert_eq!(done.len(), 1, "{done:?}");
    for status in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("a and b are both in mesh"), "{status:?}");
    }
    // Those that go together are all applied, whatever comes in between.
    let nodes: Vec<_> = (0..MESHES).map(|n| [format!("c{n}"), format!("d{n}")]).collect();
    let requests =
        (0..MESHES).map(|n| apply(request(&format!("n{n}"), 100 + n, [&nodes[n][0], &nodes[n][1]])));
    for answer in join_all(requests).await {
        answer.unwrap();
    }
    assert_eq!(controller.json(&["mesh", "list"])["meshes"].as_array().unwrap().len(), MESHES + 1);
}
