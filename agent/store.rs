//! The wanted state on disk, so that a restarted agent needs nobody to tell it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::proto::model::Desired;

/// The first word of the file, with the version of its format.
const FORMAT: &str = "tunmesh-agent-state 1";
const FILE: &str = "state";
const LOCK: &str = "lock";

/// A state directory that this process alone uses.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    predecessor: Option<u32>,
    _lock: File,
}

/// What was found at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// What was kept; nothing where nothing ever was.
    Kept(Desired),
    /// The file could not be read and was set aside, under this name, for this reason.
    SetAside(PathBuf, String),
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses it.
    #[error(
        "the state directory {0} is in use by another agent (pid {1}): give this one its own --state-dir"
    )]
    Taken(PathBuf, u32),
    /// The file system refuses.
    #[error("the state directory {0} cannot be used: {1}; give another with --state-dir")]
    Io(PathBuf, io::Error),
}

impl StoreError {
    /// The process that has it.
    pub fn holder(&self) -> Option<u32> {
        match self {
            Self::Taken(_, holder) => Some(*holder),
            Self::Io(..) => None,
        }
    }
}

impl Store {
    /// Opens `directory`, made where it is missing, for this process alone.
    ///
    /// # Errors
    /// Where another agent has it, or the file system refuses.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let io = |error| StoreError::Io(directory.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(LOCK))
            .map_err(io)?;
        let mut holder = String::new();
        // After a crash of the host it may be anything.
        let _ = lock.read_to_string(&mut holder);
        let holder = holder.trim().parse().ok();
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Taken(directory.to_owned(), holder.unwrap_or_default()));
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Only those that are refused read it: where the disk is full there are still tunnels to bring up.
        if let Err(error) = sign(&mut lock) {
            tracing::warn!(directory = %directory.display(), %error, "the state directory cannot be written to");
        }
        Ok(Self { directory: directory.to_owned(), predecessor: holder, _lock: lock })
    }

    /// The process that used the directory last.
    pub fn predecessor(&self) -> Option<u32> {
        self.predecessor
    }

    /// Reads what was kept. A file that cannot be read is set aside, never deleted.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let path = self.directory.join(FILE);
        let io = |error| StoreError::Io(self.directory.clone(), error);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Loaded::Kept(Desired::default()));
            }
            Err(error) => return Err(io(error)),
        };
        match decode(&content) {
            Ok(desired) => Ok(Loaded::Kept(desired)),
            Err(reason) => {
                let aside = (0..)
                    .map(|n| self.directory.join(format!("{FILE}.corrupt-{n}")))
                    .find(|aside| !aside.exists())
                    .unwrap_or_else(|| self.directory.join("corrupt"));
                fs::rename(&path, &aside).map_err(io)?;
                Ok(Loaded::SetAside(aside, reason))
            }
        }
    }

    /// Keeps `desired`: when this returns it survives a crash of the host.
    ///
    /// # Errors
    /// Where the file system refuses; what was kept before stands.
    pub fn save(&self, desired: &Desired) -> io::Result<()> {
        let path = self.directory.join(FILE);
        let temporary = self.directory.join(format!("{FILE}.new"));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&encode(desired)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        // The new name is kept only with its directory.
        File::open(&self.directory)?.sync_all()
    }
}

/// Writes this process's number into the lock.
fn sign(lock: &mut File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    lock.rewind()?;
    lock.write_all(pid.as_bytes())?;
    lock.set_len(pid.len() as u64)
}

/// A line with the format's version and the checksum of the rest, then JSON.
fn encode(desired: &Desired) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec_pretty(desired)?;
    let mut content = format!("{FORMAT} crc32 {:08x}\n", crc32fast::hash(&body)).into_bytes();
    content.extend_from_slice(&body);
    Ok(content)
}

fn decode(content: &[u8]) -> Result<Desired, String> {
    let split = content.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let (head, body) = content.split_at(split);
    let body = body.get(1..).unwrap_or_default();
    let head = str::from_utf8(head).map_err(|_| "its first line is not text")?;
    let sum = head
        .strip_prefix(FORMAT)
        .and_then(|rest| rest.strip_prefix(" crc32 "))
        .ok_or_else(|| format!("its first line is not that of {FORMAT:?}"))?;
    if u32::from_str_radix(sum, 16) != Ok(crc32fast::hash(body)) {
        return Err("its checksum is wrong".to_owned());
    }
    let desired: Desired = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if desired.is_consistent() { Ok(desired) } else { Err("its tunnels and devices do not match".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::model::{Device, Framing, Owner, Tunnel};

    fn sample() -> Desired {
        let mut desired = Desired::default();
        let tunnel = Tunnel {
            device: "udp2".parse().unwrap(),
            mtu: Some(1400.try_into().unwrap()),
            remote: "minion-2:5000".parse().unwrap(),
            framing: Framing::Pi,
            allowed_prefixes: Vec::new(),
            routes: vec!["192.168.2.0/24".parse().unwrap()],
            owner: Owner::Local,
        };
        let device = Device { addresses: vec!["10.0.1.1/30".parse().unwrap()], owner: Owner::Local };
        desired.set(&"udp2".parse().unwrap(), tunnel, device);
        desired
    }

    #[test]
    fn keeps_what_it_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.load().unwrap(), Loaded::Kept(Desired::default()));
        store.save(&sample()).unwrap();
        assert_eq!(store.load().unwrap(), Loaded::Kept(sample()));
    }

    #[test]
    fn sets_aside_what_any_flipped_bit_made_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&sample()).unwrap();
        let path = directory.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x04;
            fs::write(&path, &bad).unwrap();
            let Loaded::SetAside(aside, _) = store.load().unwrap() else {
                panic!("took a file with byte {position} changed");
            };
            assert_eq!(fs::read(&aside).unwrap(), bad);
            assert!(!path.exists());
            fs::remove_file(aside).unwrap();
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(matches!(store.load().unwrap(), Loaded::SetAside(..)), "took {length} bytes of it");
        }
    }

    #[test]
    fn a_second_user_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Store::open(directory.path()).unwrap();
        let second = Store::open(directory.path()).unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        assert!(second.contains("--state-dir"), "{second}");
    }

    #[test]
    fn takes_a_lock_of_any_content() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(LOCK), b"\xff\xfe and more than a number").unwrap();
        let _store = Store::open(directory.path()).unwrap();
        let signed = fs::read_to_string(directory.path().join(LOCK)).unwrap();
        assert_eq!(signed, format!("{}\n", std::process::id()));
    }
}
