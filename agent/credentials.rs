//! What shows who this agent is: its key, made when it is first needed, and the certificate that a controller gives it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::operators::Operators;
use crate::proto::host::accept::{Handshakes, Next};
use crate::proto::host::credential::{Credential, CredentialError, Facts, PrivateKey};
use crate::proto::model::NodeName;
use crate::proto::trust::Principal;

/// The file in the state directory.
const FILE: &str = "identity.pem";
/// By how much certificates hold before they are made.
const BACKDATED: Duration = Duration::from_secs(24 * 3_600);

/// An agent's credential, as it is on disk.
#[derive(Debug)]
pub struct Credentials {
    path: PathBuf,
    current: Mutex<Arc<Credential>>,
    /// What shows it to those who dial this agent.
    handshakes: Arc<Handshakes>,
    operators: Arc<Operators>,
    /// Why what is on disk is not used, and not written over.
    fault: Option<String>,
}

impl Credentials {
    /// The credential in a state directory; where there is none, a new key that is kept from now on. One that cannot be
    /// read or kept holds up nothing but the session with a controller: the agent has tunnels to bring up.
    ///
    /// # Errors
    /// Where this host has no random numbers.
    pub fn open(directory: &Path) -> Result<Self, CredentialError> {
        let path = directory.join(FILE);
        let (current, fault) = match Credential::read(&path) {
            Ok(Some(known)) => (known, None),
            Ok(None) => {
                let fresh = fresh()?;
                if let Err(error) = fresh.write(&path) {
                    tracing::warn!(path = %path.display(), %error, "the agent's key is not kept, and is another after a restart");
                }
                (fresh, None)
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the agent cannot show who it is; its tunnels stay as they are");
                (fresh()?, Some(error.to_string()))
            }
        };
        let handshakes = Arc::new(Handshakes::default());
        if !current.chain.is_empty()
            && let Err(error) = handshakes.change(&current, &current.roots)
        {
            tracing::error!(path = %path.display(), %error, "the agent cannot show who it is to those who dial it");
        }
        let operators = Arc::new(Operators::open(directory));
        Ok(Self { path, current: Mutex::new(Arc::new(current)), handshakes, operators, fault })
    }

    /// Why this agent cannot show who it is, where it has joined and its credential cannot be read.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The credential as it is now.
    pub fn current(&self) -> Arc<Credential> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The agent's part of handshakes; there are none before it has joined.
    pub fn handshakes(&self) -> Arc<Handshakes> {
        Arc::clone(&self.handshakes)
    }

    /// Who may steer this agent from elsewhere, as its controller said last.
    pub fn operators(&self) -> &Arc<Operators> {
        &self.operators
    }

    /// Whether a controller has given this agent a certificate.
    pub fn has_joined(&self) -> bool {
        !self.current().chain.is_empty()
    }

    /// Keeps a certificate for this agent's key, and the roots to believe from now on.
    ///
    /// # Errors
    /// Where it is another's, or cannot be kept; then all stays as it is.
    pub fn take_in(
        &self,
        node: &NodeName,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<(), CredentialError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let credential = Credential { key: current.key.clone(), chain, roots };
        let is_ours = credential.facts().is_some_and(|facts| {
            facts.key == credential.key.id() && facts.principal == Some(Principal::Agent(node.clone()))
        });
        let are_roots =
            credential.roots.iter().all(|root| Facts::of(root).is_some_and(|facts| facts.is_root));
        if !is_ours || !are_roots || credential.roots.is_empty() {
            let words = "the controller has given this agent a certificate of somebody else".to_owned();
            return Err(CredentialError::Malformed(words));
        }
        let next = Next::new(&credential, &credential.roots)?;
        credential.write(&self.path)?;
        self.handshakes.show(next);
        *current = Arc::new(credential);
        Ok(())
    }

    /// Forgets the certificate and whom it is of. Whoever comes next meets another key.
    ///
    /// # Errors
    /// Where that cannot be kept; then all stays as it is.
    pub fn forget(&self) -> Result<(), CredentialError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = fresh()?;
        fresh.write(&self.path)?;
        self.handshakes.stop();
        self.operators.replace(Arc::default());
        *current = Arc::new(fresh);
        Ok(())
    }
}

fn fresh() -> Result<Credential, CredentialError> {
    Ok(Credential { key: PrivateKey::generate()?, chain: Vec::new(), roots: Vec::new() })
}

/// When a certificate is to be renewed, as time since the Unix epoch: at half of its time, a tenth of it sooner or later
/// by `share`, of 1 in 65,536.
pub fn renewal(facts: &Facts, share: u16) -> Duration {
    let begin = facts.not_before + BACKDATED;
    let whole = facts.not_after.saturating_sub(begin);
    begin + whole * 2 / 5 + whole / 5 * u32::from(share) / (1 << 16)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let first = Credentials::open(directory.path()).unwrap();
        let key = first.current().key.id();
        assert!(!first.has_joined());
        assert_eq!(Credentials::open(directory.path()).unwrap().current().key.id(), key);
        first.forget().unwrap();
        let other = first.current().key.id();
        assert_ne!(other, key);
        assert_eq!(Credentials::open(directory.path()).unwrap().current().key.id(), other);
    }

    #[test]
    fn a_damaged_key_is_not_replaced_by_another() {
        let directory = tempfile::tempdir().unwrap();
        Credentials::open(directory.path()).unwrap();
        let path = directory.path().join(FILE);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let damaged = Credentials::open(directory.path()).unwrap();
        assert!(damaged.fault().unwrap().contains(FILE) && !damaged.has_joined());
        assert_eq!(fs::read_to_string(&path).unwrap(), whole[..whole.len() / 2]);
    }

    #[test]
    fn a_key_that_cannot_be_kept_holds_nothing_up() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let credentials = Credentials::open(&missing).unwrap();
        assert_eq!(credentials.fault(), None);
        fs::create_dir(&missing).unwrap();
        assert_ne!(Credentials::open(&missing).unwrap().current().key.id(), credentials.current().key.id());
    }

    #[test]
    fn certificates_are_renewed_about_half_of_their_time() {
        let day = BACKDATED;
        let facts = Facts {
            principal: None,
            key: PrivateKey::generate().unwrap().id(),
            not_before: day * 99,
            not_after: day * 107,
            is_root: false,
        };
        let at = |share| renewal(&facts, share);
        assert_eq!(at(0), day * 100 + day * 7 * 2 / 5);
        assert!((day * 103..day * 104).contains(&at(1 << 15)));
        assert!(at(u16::MAX) > at(0) + day && at(u16::MAX) <= day * 100 + day * 7 * 3 / 5);
    }
}
