//! The controller's process.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;
use tunmesh::proto::host::client;
use tunmesh::proto::v1;
use tunmesh::proto::v1::mesh_admin_client::MeshAdminClient;

/// What a start may take at most.
const START: Duration = Duration::from_secs(30);
/// Lines of the log that a failure shows.
const TAIL: usize = 40;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Time on any processor.
    pub processor: Duration,
    /// The most memory that it ever had, in bytes.
    pub memory: u64,
}

impl Usage {
    pub fn since(self, before: Self) -> Self {
        Self { processor: self.processor.saturating_sub(before.processor), memory: self.memory }
    }
}

/// A controller with a directory of its own. Dropping it ends it.
pub struct Controller {
    binary: PathBuf,
    address: SocketAddr,
    directory: TempDir,
    process: Child,
}

impl Controller {
    pub async fn start(binary: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("tunmesh-fleet-").tempdir().unwrap();
        // The port is free again when the listener is dropped, and nobody else has been told of it.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let process = spawn(binary, address, directory.path());
        let controller = Self { binary: binary.to_owned(), address, directory, process };
        controller.client().await;
        controller
    }

    /// Where agents dial it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it with what it had; does not wait for it.
    pub fn start_again(&mut self) {
        self.process = spawn(&self.binary, self.address, self.directory.path());
    }

    /// Applies a mesh, and returns the revision that has it.
    pub async fn apply(&self, mesh: &str) -> u64 {
        let file = v1::MeshFile { name: "fleet.yaml".to_owned(), content: mesh.to_owned() };
        let request = v1::ApplyRequest { file: Some(file), plan: String::new(), allow_removals: false };
        let applied = self.client().await.apply(request).await;
        let applied = applied.unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()));
        applied.into_inner().generation.unwrap().revision
    }

    /// Waits until the controller, too, says that all that are connected have all that is wanted.
    pub async fn wait_converged(&self) {
        let request = v1::WatchConvergenceRequest { generation: None };
        let mut changes = self.client().await.watch_convergence(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(change) = changes.message().await.unwrap() {
            // The one more node of the mesh has no agent.
            if change.converged + 1 >= change.nodes {
                return;
            }
            last = Some(change);
        }
        assert!(last.is_none_or(|last| last.converged + 1 >= last.nodes), "the watch ended early");
    }

    /// What its process has used so far.
    pub fn usage(&self) -> Usage {
        /// `USER_HZ` of the kernel's interface, the same everywhere that this runs.
        const TICK: Duration = Duration::from_millis(10);
        let proc = Path::new("/proc").join(self.process.id().to_string());
        let stat = fs::read_to_string(proc.join("stat")).unwrap();
        // The fields behind the name, which may have spaces: utime and stime are the 14th and 15th of all.
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u32 = fields[11..13].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        Usage { processor: TICK * ticks, memory: peak * 1024 }
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    async fn client(&self) -> MeshAdminClient<Channel> {
        let start = tokio::time::Instant::now();
        loop {
            match client::connect(&self.socket(), "controller", "controller serve").await {
                Ok(channel) => return MeshAdminClient::new(channel),
                Err(error) => assert!(start.elapsed() < START, "{error:#}\n{}", self.log()),
            }
            tokio::time::sleep(super::LOOK).await;
        }
    }

    /// Where operators reach it.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("controller.sock")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- the controller ---\n{}", self.log());
        }
    }
}

fn spawn(binary: &Path, address: SocketAddr, directory: &Path) -> Child {
    let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
    Command::new(binary)
        .arg("serve")
        .args(["--insecure", "127.0.0.0/8", "--listen", &address.to_string()])
        .arg("--socket")
        .arg(directory.join("controller.sock"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", binary.display()))
}
