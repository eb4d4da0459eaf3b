//! Real processes: one of the built binaries on a host, with a directory of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::{fmt, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Host, SOON, holds_within, secrets};

/// Lines of a log that a failure shows.
const TAIL: usize = 40;

/// A running process with a directory of its own for socket, state and log. Dropping it ends it.
pub struct Daemon {
    what: &'static str,
    host: Host,
    command: Vec<String>,
    directory: TempDir,
    process: Child,
}

impl Daemon {
    /// Starts a `what` on `host` by `command`, to which socket and state directory are added, and waits until its
    /// socket answers.
    pub fn try_start(host: &Host, what: &'static str, command: &[&str]) -> Result<Self, StartError> {
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        Self::start_in(directory(), host, what, command)
    }

    /// Starts the same on another host, with a copy of its state.
    pub fn copy_to(&self, host: &Host) -> Result<Self, StartError> {
        let directory = directory();
        copy_files(&self.state_dir(), &state(directory.path()));
        Self::start_in(directory, host, self.what, self.command.clone())
    }

    /// Starts a `what` by another command, with a copy of the state in `from`.
    pub fn start_copy(
        host: &Host,
        what: &'static str,
        command: &[&str],
        from: &Path,
    ) -> Result<Self, StartError> {
        let directory = directory();
        copy_files(from, &state(directory.path()));
        let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
        Self::start_in(directory, host, what, command)
    }

    fn start_in(
        directory: TempDir,
        host: &Host,
        what: &'static str,
        command: Vec<String>,
    ) -> Result<Self, StartError> {
        let process = spawn(host, &command, directory.path());
        let mut daemon = Self { what, host: host.clone(), command, directory, process };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Ends the process, unless it has ended, and starts it with the same arguments, socket and state.
    pub fn restart(&mut self) {
        if let Err(error) = self.try_restart() {
            panic!("on {}: {error}", self.host.role());
        }
    }

    /// The same, where it may be that it does not start.
    pub fn try_restart(&mut self) -> Result<(), StartError> {
        if self.alive() {
            self.terminate();
        }
        self.process = spawn(&self.host, &self.command, self.directory.path());
        self.wait_ready()
    }

    /// Asks the process to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// Ends the process without a chance to clean up.
    pub fn kill9(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Ends the process without a chance to clean up, and starts the next before the kernel has cleaned up for it.
    pub fn replace9(&mut self) {
        self.process.kill().unwrap();
        let next = spawn(&self.host, &self.command, self.directory.path());
        std::mem::replace(&mut self.process, next).wait().unwrap();
    }

    /// Waits until the process has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = holds_within(SOON, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "on {}: the {} goes on\n{}", self.host.role(), self.what, self.tail());
        status.unwrap()
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
        state(self.directory.path())
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

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
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
            secrets::learn_keys(&self.state_dir());
            return Ok(());
        }
        Err(StartError { what: self.what, status, log: self.tail() })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let (what, role) = (self.what, self.host.role());
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGTERM);
            if !holds_within(SOON, || self.process.try_wait().is_ok_and(|status| status.is_some())) {
                eprintln!("the {what} on {role} does not heed SIGTERM");
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
        if thread::panicking() {
            eprintln!("--- the {what} on {role} ---\n{}", self.tail());
        } else {
            secrets::learn_keys(&self.state_dir());
            secrets::look(&self.log(), &format!("the log of the {what} on {role}"));
        }
    }
}

/// A process that did not get as far as its socket.
#[derive(Debug)]
pub struct StartError {
    /// What it is.
    pub what: &'static str,
    /// How it ended; absent: it was still running when its time was over.
    pub status: Option<ExitStatus>,
    /// The end of its log.
    pub log: String,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, status, log } = self;
        match status {
            Some(status) => write!(f, "the {what} ended with {status}\n{log}"),
            None => write!(f, "the {what}'s socket does not answer\n{log}"),
        }
    }
}

/// Whether a gRPC server speaks on `socket`. One that only listens does not yet: its process is still starting.
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

/// Makes `to` a directory with copies of the files in `from`, and no others.
pub fn copy_files(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_files(&from, &to),
            false => _ = fs::copy(from, to).unwrap(),
        }
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("tunmesh-").tempdir().unwrap()
}

fn state(directory: &Path) -> PathBuf {
    directory.join("state")
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("sock")
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log")
}

fn spawn(host: &Host, command: &[String], directory: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log(directory)).unwrap();
    host.command(&command[0])
        .args(&command[1..])
        .arg("--socket")
        .arg(socket(directory))
        .arg("--state-dir")
        .arg(state(directory))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("ip: {error}; run scripts/test"))
}
