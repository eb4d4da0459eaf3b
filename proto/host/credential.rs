//! Credentials: a private key, the certificates for it, and the roots that its owner believes. One file of PEM (RFC
//! 7468) has all of it: the key, the owner's certificate and what leads from it to a root, then the roots. So the same
//! file does for `grpcurl -cert`, `-key` and `-cacert`.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pem::Pem;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
    SigningKey,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::file;
use crate::proto::trust::{KeyId, Principal};

const KEY: &str = "PRIVATE KEY";
const CERTIFICATE: &str = "CERTIFICATE";

/// Why a credential cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file holds something else.
    #[error("{0}")]
    Malformed(String),
    /// It is of no use for TLS.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// No key or request can be made.
    #[error("{0}")]
    Crypto(#[from] rcgen::Error),
}

/// A private key, ECDSA with P-256. It is never shown.
#[derive(Clone)]
pub struct PrivateKey(Arc<KeyPair>);

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// Where this host has no random numbers.
    pub fn generate() -> Result<Self, CredentialError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.into()))
    }

    /// From PKCS #8 (RFC 5958).
    ///
    /// # Errors
    /// Where it is no key of this kind.
    pub fn from_der(der: &[u8]) -> Result<Self, CredentialError> {
        let der = PrivatePkcs8KeyDer::from(der);
        Ok(Self(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?.into()))
    }

    /// The name of its public key.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0.subject_public_key_info())
    }

    /// A request for a certificate (RFC 2986), signed by this key. It names nobody: who its owner is, the issuer
    /// knows.
    ///
    /// # Errors
    /// Where it cannot be signed.
    pub fn request(&self) -> Result<Vec<u8>, CredentialError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(self)?.der().to_vec())
    }

    /// In PKCS #8.
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// To show in a handshake that one has it.
    pub fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// As it is kept in a file.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(KEY, &self.to_der()))
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.id())
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whom it names; absent: nobody of ours.
    pub principal: Option<Principal>,
    /// Whose key it is for.
    pub key: KeyId,
    /// From when it holds, as time since the Unix epoch.
    pub not_before: Duration,
    /// Until when.
    pub not_after: Duration,
    /// Whether it names its own issuer, as roots do.
    pub is_root: bool,
}

impl Facts {
    /// What is in a certificate; `None`: it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let mut principals = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
            let GeneralName::URI(uri) = name else { return None };
            Principal::from_uri(uri)
        });
        // One that names two is none of ours.
        let principal = principals.next().filter(|_| principals.next().is_none());
        let seconds = |at: i64| Duration::from_secs(u64::try_from(at).unwrap_or_default());
        Some(Self {
            principal,
            key: KeyId::of(certificate.public_key().raw),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            is_root: certificate.issuer() == certificate.subject(),
        })
    }
}

/// A private key with what shows whose it is.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The key.
    pub key: PrivateKey,
    /// The owner's certificate, then those that lead from it to a root; empty: there is none yet.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that the owner believes.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Credential {
    /// Reads a file; `None`: there is none.
    ///
    /// # Errors
    /// Where others may read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Option<Self>, CredentialError> {
        let Some(text) = file::read_secret(path)?.map(Zeroizing::new) else { return Ok(None) };
        let malformed = |why: &str| CredentialError::Malformed(format!("{}: {why}", path.display()));
        let blocks = pem::parse_many(text.as_bytes()).map_err(|_| malformed("it is no PEM"))?;
        let mut key = None;
        let (mut chain, mut roots) = (Vec::new(), Vec::new());
        for block in blocks {
            let tag = block.tag().to_owned();
            let content = Zeroizing::new(block.into_contents());
            match tag.as_str() {
                KEY if key.is_none() => {
                    let read = PrivateKey::from_der(&content);
                    key = Some(read.map_err(|_| malformed("its private key is none of ours"))?);
                }
                CERTIFICATE => {
                    let certificate = CertificateDer::from(content.to_vec());
                    let facts = Facts::of(&certificate);
                    match facts.ok_or_else(|| malformed("one of its certificates cannot be read"))?.is_root {
                        true => roots.push(certificate),
                        false => chain.push(certificate),
                    }
                }
                _ => return Err(malformed("it holds more than one key and its certificates")),
            }
        }
        let key = key.ok_or_else(|| malformed("it has no private key"))?;
        let credential = Self { key, chain, roots };
        match credential.facts() {
            Some(facts) if facts.key != credential.key.id() => {
                Err(malformed("its certificate is for another key"))
            }
            Some(_) | None => Ok(Some(credential)),
        }
    }

    /// Keeps it in a file that its owner alone may read.
    ///
    /// # Errors
    /// Where the file system refuses; what was there before stands.
    pub fn write(&self, path: &Path) -> Result<(), CredentialError> {
        let mut text = self.key.to_pem();
        for certificate in self.chain.iter().chain(&self.roots) {
            text.push_str(&certificate_pem(certificate));
        }
        Ok(file::replace(path, text.as_bytes())?)
    }

    /// What the owner's certificate says; `None`: there is none yet.
    pub fn facts(&self) -> Option<Facts> {
        self.chain.first().and_then(Facts::of)
    }
}

/// A certificate as text.
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    encode(CERTIFICATE, certificate)
}

fn encode(tag: &str, content: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&Pem::new(tag, content), config)
}
