//! The controller's own authority: a root, an issuer that the root has signed, and what the issuer signs.
//!
//! The root's key is needed once a year, for the next issuer, and can be kept elsewhere. Keys are files that their
//! owner alone may read, in a directory that nobody else may enter; none is in the store.

mod certificates;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::proto::host::credential::{Credential, CredentialError, Facts};
use crate::proto::trust::{KeyId, Principal};

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// By how much certificates hold before they are made: hosts whose clocks are late by less can use them at once.
const BACKDATED: Duration = DAY;
/// How long a root holds.
const ROOT: Duration = DAY.saturating_mul(3_650);
/// How long an issuer holds; the next one is made when half of it is over.
const ISSUER: Duration = DAY.saturating_mul(730);
/// How long a controller's own certificate holds; the next one is made when half of it is over.
const SERVER: Duration = DAY.saturating_mul(30);
/// How long a root is believed after the next one has been made: whoever was away for no longer than a certificate and
/// its grace last has met the next one.
const OVERLAP: Duration = DAY.saturating_mul(45);
/// The longest request for a certificate in bytes.
const LONGEST: usize = 4 << 10;

/// The issuer with its key, and the roots.
const ISSUER_FILE: &str = "issuer.pem";
/// The latest root with its key, unless that was taken away.
const ROOT_FILE: &str = "root.pem";
/// What whoever changes any of them holds.
const LOCK_FILE: &str = "lock";
/// The root that is about to be the latest.
const NEXT_ROOT_FILE: &str = "root.pem.next";

/// Why the authority cannot be had, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file of it cannot be read or written.
    #[error("{path}: {1}", path = .0.display())]
    File(PathBuf, CredentialError),
    /// A request for a certificate is none.
    #[error("request: {0}; let the agent make it")]
    Request(String),
    /// The root's key is elsewhere.
    #[error(
        "the root's key is not here, it was taken away by `controller ca export`: bring it back with `controller ca import FILE`"
    )]
    NoRootKey,
    /// The key is not the root's.
    #[error(
        "{path}: it is not the file with the key of the latest root{pin}",
        path = .0.display(),
        pin = .1.map(|pin| format!(", {pin}")).unwrap_or_default()
    )]
    OtherRoot(PathBuf, Option<KeyId>),
    /// Something is where the root's key was to go.
    #[error("{path}: it is there already: give another path", path = .0.display())]
    Exists(PathBuf),
    /// What was made is none of what it should be.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// It cannot be signed.
    #[error("{0}")]
    Crypto(#[from] CredentialError),
}

/// A request for a certificate whose sender has shown that it has the key.
#[derive(Debug)]
pub struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// Reads a request (RFC 2986). Of what it asks for nothing is heeded but its key.
    ///
    /// # Errors
    /// Where it is none, or its signature is not of its key.
    pub fn parse(der: &[u8]) -> Result<Self, PkiError> {
        if der.len() > LONGEST {
            return Err(PkiError::Request(format!("has {} bytes, more than {LONGEST}", der.len())));
        }
        let der = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&der);
        request.map(Self).map_err(|error| PkiError::Request(format!("is none ({error})")))
    }

    /// The name of its key.
    pub fn key(&self) -> KeyId {
        KeyId::of(&self.0.public_key.subject_public_key_info())
    }
}

/// An authority, as it is on disk.
#[derive(Debug, Clone)]
pub struct Authority {
    directory: PathBuf,
    /// The issuer's key; its certificate, and those by which each root vouches for the next; the roots, the latest
    /// first.
    issuer: Credential,
}

/// What is known of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Names its key. Tokens pin it.
    pub pin: KeyId,
    /// When it was made, as time since the Unix epoch.
    pub since: Duration,
    /// Until when it holds.
    pub expires: Duration,
}

impl Authority {
    /// Opens the authority in `directory`, where there is one.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn existing(directory: &Path) -> Result<Self, PkiError> {
        let file = directory.join(ISSUER_FILE);
        let words = "there is no such file; give the controller's --state-dir".to_owned();
        let issuer = read(&file)?.ok_or(PkiError::File(file, CredentialError::Malformed(words)))?;
        Ok(Self { directory: directory.to_owned(), issuer })
    }

    /// Opens the authority in `directory`, made where there is none, at the time `wall` since the Unix epoch.
    ///
    /// # Errors
    /// Where a file of it cannot be read or written.
    pub fn open(directory: &Path, wall: Duration) -> Result<Self, PkiError> {
        let io = |error: io::Error| PkiError::File(directory.to_owned(), error.into());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let _lock = lock(directory)?;
        let issuer = match read(&directory.join(ISSUER_FILE))? {
            Some(issuer) => issuer,
            None => begin(directory, wall)?,
        };
        let authority = Self { directory: directory.to_owned(), issuer };
        let is_whole = authority.issuer.facts().is_some() && !authority.issuer.roots.is_empty();
        if !is_whole {
            let words = "it has no certificate of an issuer, or no root".to_owned();
            return Err(PkiError::File(directory.join(ISSUER_FILE), CredentialError::Malformed(words)));
        }
        authority.settle_rotation()?;
        Ok(authority)
    }

    /// The roots that are believed, the latest first.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.issuer.roots
    }

    /// What is known of them, in the same order.
    pub fn root_facts(&self) -> Vec<Root> {
        let root = |facts: Facts| Root {
            pin: facts.key,
            since: facts.not_before + BACKDATED,
            expires: facts.not_after,
        };
        self.issuer.roots.iter().filter_map(Facts::of).map(root).collect()
    }

    /// Until when the issuer signs, as time since the Unix epoch.
    pub fn issuer_expires(&self) -> Duration {
        self.issuer.facts().map_or(Duration::ZERO, |facts| facts.not_after)
    }

    /// Whether the latest root's key is here.
    pub fn has_root_key(&self) -> bool {
        self.directory.join(ROOT_FILE).exists()
    }

    /// A certificate for `principal`, and what leads from it to a root.
    ///
    /// # Errors
    /// Where it cannot be signed.
    pub fn sign(
        &self,
        request: &SigningRequest,
        principal: &Principal,
        wall: Duration,
        expires: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        let own = certificates::leaf(principal, &request.0.public_key, &self.issuer, wall, expires)?;
        Ok([own].into_iter().chain(self.issuer.chain.iter().cloned()).collect())
    }

    /// What the controller shows to those who dial it, with a new key, and when to make the next. The roots come with
    /// it, for those who know no more of one than its key's name.
    ///
    /// # Errors
    /// Where it cannot be signed.
    pub fn server(&self, wall: Duration) -> Result<(Credential, Duration), PkiError> {
        let (key, own) = certificates::server(&self.issuer, wall)?;
        let chain = [own].into_iter().chain(self.issuer.chain.iter().chain(self.roots()).cloned()).collect();
        Ok((Credential { key, chain, roots: self.roots().to_vec() }, wall + SERVER / 2))
    }

    /// Whether half of the issuer's time is over.
    pub fn is_due(&self, wall: Duration) -> bool {
        wall + ISSUER / 2 >= self.issuer_expires()
    }

    /// Makes the next issuer where this one is due and the root's key is here, and believes no root any more whose
    /// successor everybody has met. Returns whether anything changed.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn maintain(&mut self, wall: Duration) -> Result<bool, PkiError> {
        let _lock = lock(&self.directory)?;
        let mut issuer = self.issuer.clone();
        let roots = self.root_facts();
        let has_retired =
            roots.len() > 1 && roots.first().is_some_and(|latest| wall >= latest.since + OVERLAP);
        if has_retired {
            issuer.roots.truncate(1);
            issuer.chain.truncate(1);
        }
        let is_due = self.is_due(wall) && self.has_root_key();
        if is_due {
            let vouchers = issuer.chain.split_off(1);
            issuer = certificates::issuer(&self.root()?, vouchers, issuer.roots, wall)?;
        }
        if has_retired || is_due {
            write(&issuer, &self.directory.join(ISSUER_FILE))?;
            self.issuer = issuer;
        }
        Ok(has_retired || is_due)
    }

    /// Makes the next root, for which the last one vouches, and an issuer of it. Both roots are believed until everybody
    /// has met the next.
    ///
    /// # Errors
    /// Where the last root's key is not here, or a file cannot be written.
    pub fn rotate(&mut self, wall: Duration) -> Result<(), PkiError> {
        let _lock = lock(&self.directory)?;
        let last = self.root()?;
        let (root, voucher) = certificates::next_root(&last, wall)?;
        let vouchers = [voucher].into_iter().chain(self.issuer.chain.iter().skip(1).cloned()).collect();
        let roots = root.roots.iter().chain(self.roots()).cloned().collect();
        let issuer = certificates::issuer(&root, vouchers, roots, wall)?;
        write(&root, &self.directory.join(NEXT_ROOT_FILE))?;
        write(&issuer, &self.directory.join(ISSUER_FILE))?;
        self.issuer = issuer;
        self.settle_rotation()
    }

    /// Takes the latest root's key away, to `target`. Until it is brought back nobody can make another issuer or root.
    ///
    /// # Errors
    /// Where it is not here, or something is at `target`; then nothing changed.
    pub fn export(&mut self, target: &Path) -> Result<(), PkiError> {
        let _lock = lock(&self.directory)?;
        self.refresh()?;
        let root = self.root()?;
        if target.exists() {
            return Err(PkiError::Exists(target.to_owned()));
        }
        write(&root, target)?;
        let path = self.directory.join(ROOT_FILE);
        fs::remove_file(&path).map_err(|error| PkiError::File(path, error.into()))
    }

    /// Brings the latest root's key back.
    ///
    /// # Errors
    /// Where `source` is another key's file.
    pub fn import(&mut self, source: &Path) -> Result<(), PkiError> {
        let _lock = lock(&self.directory)?;
        self.refresh()?;
        let latest = self.root_facts().first().map(|root| root.pin);
        let root = read(source)?.filter(|root| Some(root.key.id()) == latest);
        let root = root.ok_or_else(|| PkiError::OtherRoot(source.to_owned(), latest))?;
        write(&root, &self.directory.join(ROOT_FILE))
    }

    /// Takes in what another process has made of it.
    fn refresh(&mut self) -> Result<(), PkiError> {
        if let Some(issuer) = read(&self.directory.join(ISSUER_FILE))? {
            self.issuer = issuer;
        }
        Ok(())
    }

    fn root(&self) -> Result<Credential, PkiError> {
        let path = self.directory.join(ROOT_FILE);
        let root = read(&path)?.ok_or(PkiError::NoRootKey)?;
        let latest = self.root_facts().first().map(|root| root.pin);
        match Some(root.key.id()) == latest {
            true => Ok(root),
            false => Err(PkiError::OtherRoot(path, latest)),
        }
    }

    /// Of a rotation that was cut short, either all has happened or nothing.
    fn settle_rotation(&self) -> Result<(), PkiError> {
        let next = self.directory.join(NEXT_ROOT_FILE);
        let Some(root) = read(&next)? else { return Ok(()) };
        let is_latest = self.root_facts().first().is_some_and(|latest| latest.pin == root.key.id());
        let settled = match is_latest {
            true => fs::rename(&next, self.directory.join(ROOT_FILE)),
            false => fs::remove_file(&next),
        };
        settled.map_err(|error| PkiError::File(next, error.into()))
    }
}

/// Excludes other processes from changing the authority, for as long as the file is open.
fn lock(directory: &Path) -> Result<File, PkiError> {
    let path = directory.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let locked = file.and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| PkiError::File(path, error.into()))
}

/// Makes what an authority begins with. The root is there first: an issuer without it could not be replaced.
fn begin(directory: &Path, wall: Duration) -> Result<Credential, PkiError> {
    let path = directory.join(ROOT_FILE);
    let root = match read(&path)? {
        Some(root) => root,
        None => {
            let root = certificates::root(wall)?;
            write(&root, &path)?;
            root
        }
    };
    let issuer = certificates::issuer(&root, Vec::new(), root.roots.clone(), wall)?;
    write(&issuer, &directory.join(ISSUER_FILE))?;
    Ok(issuer)
}

fn read(path: &Path) -> Result<Option<Credential>, PkiError> {
    Credential::read(path).map_err(|error| PkiError::File(path.to_owned(), error))
}

fn write(credential: &Credential, path: &Path) -> Result<(), PkiError> {
    credential.write(path).map_err(|error| PkiError::File(path.to_owned(), error))
}

#[cfg(test)]
mod tests;
