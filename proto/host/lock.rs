//! A directory that one process alone uses.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// Keeps others out of a directory as long as it lives.
#[derive(Debug)]
pub struct Lock {
    predecessor: Option<u32>,
    _file: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process uses it.
    #[error("the state directory {0} is in use by another {2} (pid {1}): give this one its own --state-dir")]
    Taken(PathBuf, u32, &'static str),
    /// The file system refuses.
    #[error("the state directory {0} cannot be used: {1}; {remedy}", remedy = remedy(.1))]
    Io(PathBuf, io::Error),
}

impl DirectoryError {
    /// The process that has it.
    pub fn holder(&self) -> Option<u32> {
        match self {
            Self::Taken(_, holder, _) => Some(*holder),
            Self::Io(..) => None,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    // Another directory would be another state: that is no remedy where one is there and cannot be written.
    if error.kind() == io::ErrorKind::StorageFull {
        "make room on its disk"
    } else if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        "mount its file system for writing"
    } else {
        "give another with --state-dir"
    }
}

impl Lock {
    /// Takes `directory`, made where it is missing, for this process, which is a `what`.
    ///
    /// # Errors
    /// Where another process has it, or the file system refuses.
    pub fn take(directory: &Path, what: &'static str) -> Result<Self, DirectoryError> {
        let io = |error| DirectoryError::Io(directory.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let (mut lock, unwritable) = open(&directory.join(LOCK)).map_err(io)?;
        let mut holder = String::new();
        // After a crash of the host it may be anything.
        let _ = lock.read_to_string(&mut holder);
        let holder = holder.trim().parse().ok();
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DirectoryError::Taken(directory.to_owned(), holder.unwrap_or_default(), what));
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Only those that are refused read it: where nothing can be written there are still tunnels to bring up.
        if let Err(error) = unwritable.map_or_else(|| sign(&mut lock), Err) {
            tracing::warn!(directory = %directory.display(), %error, "the state directory cannot be written to");
        }
        Ok(Self { predecessor: holder, _file: lock })
    }

    /// The process that used the directory last.
    pub fn predecessor(&self) -> Option<u32> {
        self.predecessor
    }
}

/// Opens a lock file; where its file system cannot be written for reading alone, with the reason: it can be locked all
/// the same.
fn open(path: &Path) -> io::Result<(File, Option<io::Error>)> {
    let mut options = OpenOptions::new();
    match options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path) {
        Ok(file) => Ok((file, None)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => match File::open(path) {
            Ok(file) => Ok((file, Some(error))),
            // There is none yet, and none can be made.
            Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Writes this process's number into the lock.
fn sign(lock: &mut File) -> io::Result<()> {
    let pid = format!("{}\n", std::process::id());
    lock.rewind()?;
    lock.write_all(pid.as_bytes())?;
    lock.set_len(pid.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_second_user_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Lock::take(directory.path(), "agent").unwrap();
        let second = Lock::take(directory.path(), "agent").unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        assert!(second.contains("--state-dir"), "{second}");
    }

    #[test]
    fn a_directory_that_it_makes_is_its_users_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("state");
        let _lock = Lock::take(&made, "agent").unwrap();
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn takes_a_lock_of_any_content() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(LOCK), b"\xff\xfe and more than a number").unwrap();
        let _lock = Lock::take(directory.path(), "agent").unwrap();
        let signed = fs::read_to_string(directory.path().join(LOCK)).unwrap();
        assert_eq!(signed, format!("{}\n", std::process::id()));
    }
}
