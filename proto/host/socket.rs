//! Unix sockets in the file system: who may use them, and whose they are.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// The group whose members may steer agent and controller.
pub(super) const GROUP: &str = "tunmesh";
/// How the socket's directory is made.
const DIRECTORY_MODE: u32 = 0o750;

/// A socket of ours in the file system, removed with this value.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    listener: Option<UnixListener>,
}

/// Why the Unix socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Someone answers on it.
    #[error("the socket {0} is in use by another process: give this one its own --socket")]
    Taken(PathBuf),
    /// Something else is there, which is not ours to remove.
    #[error("{0} is there and is no socket: give another path with --socket")]
    NoSocket(PathBuf),
    /// The file system refuses.
    #[error("the socket {0} cannot be made: {1}; give another path with --socket")]
    Io(PathBuf, io::Error),
}

impl SocketFile {
    /// Binds `path`: root's, and the group's where the host has it, 0660 in a directory of 0750.
    ///
    /// # Errors
    /// Where another process has it, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io(path.to_owned(), error);
        let group = group_id(GROUP);
        // A path without a directory is in the current one, which is not ours.
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            if !directory.exists() {
                DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(io)?;
            }
            // Also one that was made before the host had the group; others' directories have other modes.
            let metadata = directory.metadata().map_err(io)?;
            if metadata.mode() & 0o7777 == DIRECTORY_MODE {
                give_to(group, directory);
            }
        }
        if let Ok(metadata) = path.symlink_metadata() {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            match UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::Taken(path.to_owned())),
                // Whoever made it was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(io)?;
                }
                Err(error) => return Err(io(error)),
            }
        }
        // Born closed to others: a permission that is set afterwards leaves a moment.
        let before = umask(Mode::from_raw_mode(0o117));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(io)?;
        give_to(group, path);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(io)?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    /// The listener, once.
    pub fn take(&mut self) -> Option<UnixListenerStream> {
        self.listener.take().map(UnixListenerStream::new)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Lets the group in. Where this user may not, it stays outside.
fn give_to(group: Option<u32>, path: &Path) {
    if let Err(error) = chown(path, None, group) {
        tracing::warn!(
            path = %path.display(),
            %error,
            "members of the group {GROUP} may not use it: run this as root or as a member"
        );
    }
}

/// The number of a group in `/etc/group`, `group(5)`.
pub(super) fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn takes_the_place_of_a_dead_socket_and_of_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        std::fs::write(&path, "a letter").unwrap();
        assert!(matches!(SocketFile::bind(&path), Err(SocketError::NoSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
        std::fs::remove_file(&path).unwrap();

        drop(UnixListener::bind(&path).unwrap());
        let _first = SocketFile::bind(&path).unwrap();
        assert!(matches!(SocketFile::bind(&path), Err(SocketError::Taken(_))));
    }
}
