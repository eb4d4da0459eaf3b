//! The key by which the peers of encrypted tunnels know this host. It never leaves the host.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use crate::agent::wireguard::key::PrivateKey;
use crate::proto::host::file;

/// The file in the state directory.
const FILE: &str = "wireguard.key";

/// The key of this host.
pub struct HostKey {
    /// The key.
    pub private: PrivateKey,
    /// Why it is not the one that was kept, or is not kept, in words with the remedy.
    pub fault: Option<String>,
}

/// The key in a state directory; where there is none, a new one that is kept from now on. One that cannot be read is not
/// written over, and holds up nothing but encrypted tunnels.
///
/// # Errors
/// Where this host has no random numbers.
pub fn open(directory: &Path) -> io::Result<HostKey> {
    let path = directory.join(FILE);
    let failed = |private, what: &str, error: &dyn std::fmt::Display| {
        let fault = format!(
            "the key of encrypted tunnels {what} ({}: {error}): until that is mended and the agent is started anew their \
             peers take it for another host",
            path.display()
        );
        tracing::error!("{fault}");
        Ok(HostKey { private, fault: Some(fault) })
    };
    match file::read_secret(&path).map(|text| text.map(Zeroizing::new)) {
        Ok(Some(text)) => match text.trim_end().parse() {
            Ok(private) => Ok(HostKey { private, fault: None }),
            Err(error) => failed(PrivateKey::generate()?, "cannot be read", &error),
        },
        Ok(None) => {
            let private = PrivateKey::generate()?;
            let mut text = private.to_text();
            text.push('\n');
            match file::replace(&path, text.as_bytes()) {
                Ok(()) => Ok(HostKey { private, fault: None }),
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
        let first = open(directory.path()).unwrap();
        assert_eq!(first.fault, None);
        let path = directory.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = open(directory.path()).unwrap();
        assert_eq!((again.private.public(), again.fault), (first.private.public(), None));
        assert_ne!(
            open(tempfile::tempdir().unwrap().path()).unwrap().private.public(),
            first.private.public()
        );
    }

    #[test]
    fn one_that_cannot_be_used_is_told_of_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let known = open(directory.path()).unwrap().private.public();
        let path = directory.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = open(directory.path()).unwrap();
        assert!(exposed.fault.unwrap().contains("chmod 600"));
        assert_ne!(exposed.private.public(), known);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(open(directory.path()).unwrap().private.public(), known);
        fs::write(&path, "nonsense").unwrap();
        let broken = open(directory.path()).unwrap().fault.unwrap();
        assert!(broken.contains("wireguard.key") && !broken.contains("nonsense"), "{broken}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
    }
}
