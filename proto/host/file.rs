//! Files that are there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Puts `content` in the place of a file that its owner alone may read. When this returns it survives a crash of the
/// host.
///
/// # Errors
/// Where the file system refuses; what was there before stands.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = beside(path, ".new");
    // What was left behind may be somebody else's, or lead elsewhere.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The new name is kept only with its directory.
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file with a secret; `None`: there is none.
///
/// # Errors
/// Where others than its owner may read it, or the file system refuses.
pub fn read_secret(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Err(io::Error::other(format!(
            "{} may be read by others: it holds a private key, which may be known; `chmod 600` it if it is not",
            path.display()
        ))),
        Ok(_) => fs::read_to_string(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The path of a file beside another.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_its_owners_alone_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        assert_eq!(read_secret(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        replace(&path, b"other").unwrap();
        assert_ne!(before.ino(), fs::metadata(&path).unwrap().ino(), "it is written over");
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("other"));
        // The new content has no place.
        fs::create_dir(directory.path().join("key.pem.new")).unwrap();
        replace(&path, b"third").unwrap_err();
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("other"));
    }

    #[test]
    fn what_others_have_left_there_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("key.pem"), directory.path().join("theirs"));
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("key.pem.new")).unwrap();
        replace(&path, b"secret").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "theirs");
        fs::write(directory.path().join("key.pem.new"), "").unwrap();
        fs::set_permissions(directory.path().join("key.pem.new"), fs::Permissions::from_mode(0o666)).unwrap();
        replace(&path, b"secret").unwrap();
        assert_eq!(read_secret(&path).unwrap().as_deref(), Some("secret"));
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        replace(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refusal = read_secret(&path).unwrap_err().to_string();
            assert!(refusal.contains("chmod 600") && !refusal.contains("secret\n"), "{refusal}");
        }
    }
}
