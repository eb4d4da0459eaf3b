//! The keys by which the peers of encrypted tunnels know this host. They never leave it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::proto::host::file;
use crate::proto::host::wireguard::PrivateKey;
use crate::proto::model::MeshName;

/// The file of the host's own key in the state directory.
const OWN: &str = "wireguard.key";
/// The directory of the meshes' keys in the state directory.
const MESHES: &str = "wireguard";
/// How the file of a mesh's key ends, behind the mesh's name.
const ENDING: &str = ".key";

/// A key of this host.
pub struct Key {
    /// The key.
    pub private: PrivateKey,
    /// Why it is not the one that was kept, or is not kept, in words with the remedy.
    pub fault: Option<String>,
}

/// The keys in a state directory.
#[derive(Debug, Clone)]
pub struct Keys {
    directory: PathBuf,
}

impl Keys {
    /// Those in a state directory, which is there.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The host's own key, for tunnels that belong to no mesh.
    ///
    /// # Errors
    /// Where this host has no random numbers.
    pub fn own(&self) -> io::Result<Key> {
        open(&self.directory.join(OWN))
    }

    /// The key of a mesh.
    ///
    /// # Errors
    /// Where this host has no random numbers.
    pub fn of(&self, mesh: &MeshName) -> io::Result<Key> {
        let path = self.path(mesh);
        // Where it cannot be made, the key cannot be kept, which is told.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(self.directory.join(MESHES));
        open(&path)
    }

    /// The meshes of which a key is kept.
    pub fn meshes(&self) -> Vec<MeshName> {
        let Ok(entries) = fs::read_dir(self.directory.join(MESHES)) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(ENDING)?.parse().ok()).collect()
    }

    /// Removes the key of a mesh.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn remove(&self, mesh: &MeshName) -> io::Result<()> {
        match fs::remove_file(self.path(mesh)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, mesh: &MeshName) -> PathBuf {
        self.directory.join(MESHES).join(format!("{mesh}{ENDING}"))
    }
}

/// The key in a file; where there is none, a new one that is kept from now on. One that cannot be read is not written over,
/// and holds up nothing but encrypted tunnels.
fn open(path: &Path) -> io::Result<Key> {
    let failed = |private, what: &str, error: &dyn std::fmt::Display| {
        let fault = format!(
            "a key of encrypted tunnels {what} ({}: {error}): it is another one, and again with each start until that is \
             mended: their peers are to be told of it",
            path.display()
        );
        tracing::error!("{fault}");
        Ok(Key { private, fault: Some(fault) })
    };
    match file::read_secret(path).map(|text| text.map(Zeroizing::new)) {
        Ok(Some(text)) => match text.trim_end().parse() {
            Ok(private) => Ok(Key { private, fault: None }),
            Err(error) => failed(PrivateKey::generate()?, "cannot be read", &error),
        },
        Ok(None) => {
            let private = PrivateKey::generate()?;
            let mut text = private.to_text();
            text.push('\n');
            match file::replace(path, text.as_bytes()) {
                Ok(()) => Ok(Key { private, fault: None }),
                Err(error) => failed(private, "cannot be kept", &error),
            }
        }
        Err(error) => failed(PrivateKey::generate()?, "cannot be read", &error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Keys::new(directory.path()).own().unwrap();
        assert_eq!(first.fault, None);
        let path = directory.path().join(OWN);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Keys::new(directory.path()).own().unwrap();
        assert_eq!((again.private.public(), again.fault), (first.private.public(), None));
        assert_ne!(
            Keys::new(tempfile::tempdir().unwrap().path()).own().unwrap().private.public(),
            first.private.public()
        );
    }

    #[test]
    fn one_that_cannot_be_used_is_told_of_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let known = Keys::new(directory.path()).own().unwrap().private.public();
        let path = directory.path().join(OWN);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = Keys::new(directory.path()).own().unwrap();
        assert!(exposed.fault.unwrap().contains("chmod 600"));
        assert_ne!(exposed.private.public(), known);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Keys::new(directory.path()).own().unwrap().private.public(), known);
        fs::write(&path, "nonsense").unwrap();
        let broken = Keys::new(directory.path()).own().unwrap().fault.unwrap();
        assert!(broken.contains("wireguard.key") && !broken.contains("nonsense"), "{broken}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
    }

    #[test]
    fn each_mesh_has_its_own_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::new(directory.path());
        let [prod, test] = ["prod", "test.1"].map(|name| name.parse::<MeshName>().unwrap());
        assert_eq!(keys.meshes(), []);
        let of = |mesh: &MeshName| keys.of(mesh).unwrap().private.public();
        let first = of(&prod);
        assert_ne!(first, of(&test));
        assert_ne!(first, keys.own().unwrap().private.public());
        let file = directory.path().join("wireguard/prod.key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let mut kept = keys.meshes();
        kept.sort();
        assert_eq!(kept, [prod.clone(), test]);
        assert_eq!(of(&prod), first);
        keys.remove(&prod).unwrap();
        keys.remove(&prod).unwrap();
        assert_eq!(keys.meshes().len(), 1);
        assert_ne!(of(&prod), first);
    }
}
