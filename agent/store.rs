//! The wanted state on disk, so that a restarted agent needs nobody to tell it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::agent::state::Wanted;
use crate::proto::host::file;
use crate::proto::host::lock::{DirectoryError, Lock};

/// The first word of the file, with the version of its format.
const FORMAT: &str = "tunmesh-agent-state 1";
const FILE: &str = "state";

/// A state directory that this process alone uses.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    lock: Lock,
}

/// What was found at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// What was kept; nothing where nothing ever was.
    Kept(Wanted),
    /// The file could not be read and was set aside, under this name, for this reason.
    SetAside(PathBuf, String),
}

impl Store {
    /// Opens `directory`, made where it is missing, for this process alone.
    ///
    /// # Errors
    /// Where another agent has it, or the file system refuses.
    pub fn open(directory: &Path) -> Result<Self, DirectoryError> {
        Ok(Self { directory: directory.to_owned(), lock: Lock::take(directory, "agent")? })
    }

    /// The process that used the directory last.
    pub fn predecessor(&self) -> Option<u32> {
        self.lock.predecessor()
    }

    /// Reads what was kept. A file that cannot be read is set aside, never deleted.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn load(&self) -> Result<Loaded, DirectoryError> {
        let path = self.directory.join(FILE);
        let io = |error| DirectoryError::Io(self.directory.clone(), error);
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Loaded::Kept(Wanted::default()));
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

    /// Keeps `wanted`: when this returns it survives a crash of the host.
    ///
    /// # Errors
    /// Where the file system refuses; what was kept before stands.
    pub fn save(&self, wanted: &Wanted) -> io::Result<()> {
        file::replace(&self.directory.join(FILE), &encode(wanted)?)
    }
}

/// A line with the format's version and the checksum of the rest, then JSON.
fn encode(wanted: &Wanted) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec_pretty(wanted)?;
    let mut content = format!("{FORMAT} crc32 {:08x}\n", crc32fast::hash(&body)).into_bytes();
    content.extend_from_slice(&body);
    Ok(content)
}

fn decode(content: &[u8]) -> Result<Wanted, String> {
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
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if wanted.desired.is_consistent() {
        Ok(wanted)
    } else {
        Err("its tunnels and devices do not match".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::agent::session::Base;
    use crate::proto::model::{Desired, Device, Framing, Offloads, Owner, Tunnel};
    use crate::proto::session::{Generation, Item, Items, Tag};

    fn sample() -> Wanted {
        let mut desired = Desired::default();
        let tunnel = Tunnel {
            device: "udp2".parse().unwrap(),
            mtu: Some(1400.try_into().unwrap()),
            remote: Some("minion-2:5000".parse().unwrap()),
            framing: Framing::Pi,
            keepalive: None,
            also_plain: false,
            probed: false,
            echo: None,
            allowed_prefixes: Vec::new(),
            without: Offloads::new(),
            routes: vec!["192.168.2.0/24".parse().unwrap()],
            owner: Owner::Local,
        };
        let device =
            Device { addresses: vec!["10.0.1.1/30".parse().unwrap()], key: None, owner: Owner::Local };
        desired.set(&"udp2".parse().unwrap(), tunnel, device);
        let content = vec![0x0a, 0xff];
        let item = Item { id: "tunnel m.n1".parse().unwrap(), tag: Tag::of(&content), content };
        let base = Base {
            store_id: "s1".to_owned(),
            generation: Generation { incarnation: 1, revision: u64::MAX },
            timeline: "t1".to_owned(),
            items: Items::new([item.into()]),
            consents_after: None,
            held: Items::default(),
        };
        Wanted { desired, controller: Some(base) }
    }

    #[test]
    fn keeps_what_it_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.load().unwrap(), Loaded::Kept(Wanted::default()));
        store.save(&sample()).unwrap();
        assert_eq!(store.load().unwrap(), Loaded::Kept(sample()));
    }

    #[test]
    fn reads_what_a_release_without_controllers_wrote() {
        let Wanted { desired, controller: _ } = sample();
        let body = serde_json::to_vec_pretty(&desired).unwrap();
        let mut content = format!("{FORMAT} crc32 {:08x}\n", crc32fast::hash(&body)).into_bytes();
        content.extend_from_slice(&body);
        assert_eq!(decode(&content).unwrap(), Wanted::from(desired));
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

    /// An operator may want to look at each of them.
    #[test]
    fn what_was_set_aside_before_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut all = Vec::new();
        for content in ["one", "two", "three"] {
            fs::write(directory.path().join(FILE), content).unwrap();
            let Loaded::SetAside(aside, _) = store.load().unwrap() else { panic!("took {content}") };
            all.push((aside, content));
        }
        for (aside, content) in all {
            assert_eq!(fs::read_to_string(&aside).unwrap(), content, "{aside:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut wanted = sample();
        wanted.desired.devices.clear();
        store.save(&wanted).unwrap();
        let loaded = store.load().unwrap();
        let Loaded::SetAside(_, reason) = &loaded else { panic!("{loaded:?}") };
        assert!(reason.contains("do not match"), "{reason}");
    }

    #[test]
    fn nobody_else_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&sample()).unwrap();
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A crash amid writing costs what is being written, and not what was kept.
    #[test]
    fn what_cannot_be_kept_leaves_what_was() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&sample()).unwrap();
        let before = fs::metadata(directory.path().join(FILE)).unwrap().ino();
        store.save(&Wanted::default()).unwrap();
        let after = fs::metadata(directory.path().join(FILE)).unwrap().ino();
        assert_ne!(before, after, "what was kept is written over");
        // The new content has no place.
        fs::create_dir(directory.path().join(format!("{FILE}.new"))).unwrap();
        store.save(&sample()).unwrap_err();
        assert_eq!(store.load().unwrap(), Loaded::Kept(Wanted::default()));
    }
}
