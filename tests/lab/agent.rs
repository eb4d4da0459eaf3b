//! Real agents: the built binary, one process on a host.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::{fmt, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Host, SOON, holds_within};

/// The agent's binary.
pub const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// The controller's binary, for `host.run([CONTROLLER, …])`.
pub const CONTROLLER: &str = env!("CARGO_BIN_EXE_controller");

/// Lines of a log that a failure shows.
const TAIL: usize = 40;

/// A running agent with a directory of its own for socket, state and log. Dropping it ends it.
pub struct Agent {
    host: Host,
    arguments: Vec<String>,
    directory: TempDir,
    process: Child,
}

impl Agent {
    /// Starts an agent on `host` with `arguments` more than socket and state directory, and waits until its
    /// socket answers.
    pub fn start(host: &Host, arguments: &[&str]) -> Self {
        Self::try_start(host, arguments).unwrap_or_else(|error| panic!("on {}: {error}", host.role()))
    }

    /// Starts an agent that may refuse to run.
    pub fn try_start(host: &Host, arguments: &[&str]) -> Result<Self, StartError> {
        let directory = tempfile::Builder::new().prefix("tunmesh-").tempdir().unwrap();
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let process = spawn(host, &arguments, directory.path());
        let mut agent = Self { host: host.clone(), arguments, directory, process };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Ends the agent, unless it has ended, and starts it with the same arguments, socket and state.
    pub fn restart(&mut self) {
        if self.alive() {
            self.terminate();
        }
        self.process = spawn(&self.host, &self.arguments, self.directory.path());
        if let Err(error) = self.wait_ready() {
            panic!("on {}: {error}", self.host.role());
        }
    }

    /// Asks the agent to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        let ended = holds_within(SOON, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "on {}: the agent does not heed SIGTERM\n{}", self.host.role(), self.tail());
        status.unwrap()
    }

    /// Ends the agent without a chance to clean up.
    pub fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends the agent without a chance to clean up, and starts the next before the kernel has cleaned up for it.
    pub fn replace9(&mut self) {
        self.process.kill().unwrap();
        let next = spawn(&self.host, &self.arguments, self.directory.path());
        std::mem::replace(&mut self.process, next).wait().unwrap();
    }

    /// Whether its process runs.
    pub fn alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// All that it has logged, over its restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(log(self.directory.path())).unwrap()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    fn wait_ready(&mut self) -> Result<(), StartError> {
        let socket = self.socket();
        let mut status = None;
        let answers = holds_within(SOON, || {
            status = self.process.try_wait().unwrap();
            status.is_some() || answers(&socket)
        });
        if answers && status.is_none() {
            return Ok(());
        }
        Err(StartError { status, log: self.tail() })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGTERM);
            if !holds_within(SOON, || self.process.try_wait().is_ok_and(|status| status.is_some())) {
                eprintln!("the agent on {} does not heed SIGTERM", self.host.role());
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
        if thread::panicking() {
            eprintln!("--- the agent on {} ---\n{}", self.host.role(), self.tail());
        }
    }
}

/// An agent that did not get as far as its socket.
#[derive(Debug)]
pub struct StartError {
    /// How it ended; absent: it was still running when its time was over.
    pub status: Option<ExitStatus>,
    /// The end of its log.
    pub log: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "the agent ended with {status}\n{}", self.log),
            None => write!(f, "the agent's socket does not answer\n{}", self.log),
        }
    }
}

/// Whether a gRPC server speaks on `socket`. One that only listens does not yet: its agent is bringing up what was
/// kept.
fn answers(socket: &Path) -> bool {
    /// A client's connection preface with an empty SETTINGS frame, RFC 9113 section 3.4.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    /// The length of a frame's header, RFC 9113 section 4.1; a server's first frame is SETTINGS.
    const HEADER: usize = 9;
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let mut header = [0; HEADER];
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(PREFACE).and_then(|()| stream.read_exact(&mut header)).is_ok()
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn spawn(host: &Host, arguments: &[String], directory: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log(directory)).unwrap();
    host.command(AGENT)
        .arg("--socket")
        .arg(socket(directory))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("ip: {error}; run scripts/test"))
}
