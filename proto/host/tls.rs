//! TLS 1.3 (RFC 8446) between agents, controllers and operators: who is believed, and who one is.
//!
//! Names on the network mean nothing here: a controller is one because its certificate leads to a root that is
//! believed and has the name [`CONTROLLER`], whatever address was dialled.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::credential::{Credential, Facts};
use crate::proto::model::NodeName;
use crate::proto::trust::{KeyId, Principal};
use crate::proto::words::span;

/// The name in every controller's certificate.
pub const CONTROLLER: &str = "controller.tunmesh";
/// The name in an agent's certificate, by which operators dial it.
pub fn agent_name(node: &NodeName) -> String {
    format!("{}.agent.tunmesh", node.as_str().to_lowercase())
}

/// The protocol in the handshake (RFC 7301): HTTP/2.
const H2: &[u8] = b"h2";

/// Who is believed to be a controller.
#[derive(Debug, Clone)]
pub enum Belief {
    /// Whose certificate leads to one of these roots.
    Roots(Vec<CertificateDer<'static>>),
    /// Whose certificate leads to the root with this key.
    Pin(KeyId),
    /// Whoever answers, for as long as nothing is given away; what it leads to is noted.
    Anyone,
}

/// What a handshake has shown of a controller.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Option<KeyId>>>);

impl Seen {
    /// The key of the root to which its certificate leads; `None`: there was none yet, or more than one is believed.
    pub fn root(&self) -> Option<KeyId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, root: KeyId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// How a controller is dialled by one who has `credential`, if anything; what it shows comes into `seen`.
///
/// # Errors
/// Where the credential is none.
pub fn client(belief: Belief, credential: Option<&Credential>, seen: Seen) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier =
        ControllerVerifier { belief, seen, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credential.filter(|credential| !credential.chain.is_empty()) {
        Some(credential) => {
            builder.with_client_auth_cert(credential.chain.clone(), credential.key.to_rustls())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

/// How a server with `credential` is dialled. Clients may have a certificate or none; which of them is believed,
/// [`Clients`] says after the handshake.
///
/// # Errors
/// Where the credential is none.
pub fn server(credential: &Credential) -> Result<ServerConfig, Error> {
    let provider = provider();
    let verifier = AnyClient(provider.signature_verification_algorithms);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(credential.chain.clone(), credential.key.to_rustls())?;
    config.alpn_protocols = vec![H2.to_vec()];
    // A certificate is shown and judged anew on every connection.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Whether a handshake failed for the time of this host, and in words how: the certificate of the other side does not
/// hold by its clock.
pub fn clock_fault(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(fault) = error else { return None };
    let between = |from: &UnixTime, to: &UnixTime| {
        span(Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())))
    };
    if let CertificateError::ExpiredContext { time, not_after } = fault {
        return Some(format!("has expired {} ago by this host's clock", between(not_after, time)));
    }
    if let CertificateError::NotValidYetContext { time, not_before } = fault {
        return Some(format!("holds only in {} by this host's clock", between(time, not_before)));
    }
    None
}

/// Judges controllers.
struct ControllerVerifier {
    belief: Belief,
    seen: Seen,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ControllerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerVerifier").field("belief", &self.belief).finish_non_exhaustive()
    }
}

impl ControllerVerifier {
    /// The roots to one of which the certificate must lead.
    fn anchors(&self, shown: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
        let shown_roots = || {
            let roots = shown.iter().filter_map(|one| Some((one, Facts::of(one)?)));
            roots.filter(|(_, facts)| facts.is_root)
        };
        match &self.belief {
            Belief::Roots(roots) => roots.clone(),
            Belief::Pin(pin) => {
                let pinned = shown_roots().filter(|(_, facts)| facts.key == *pin);
                pinned.map(|(root, _)| root.clone().into_owned()).collect()
            }
            Belief::Anyone => shown_roots().take(1).map(|(root, _)| root.clone().into_owned()).collect(),
        }
    }
}

impl ServerCertVerifier for ControllerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let anchors = self.anchors(intermediates);
        let Some(first) = anchors.first().and_then(Facts::of) else { return Err(unknown) };
        let is_only = anchors.len() == 1;
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let name = ServerName::try_from(CONTROLLER).map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, &name, ocsp, now)?;
        if is_only {
            self.seen.note(first.key);
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Lets every client finish its handshake that has the key of the certificate it shows, so that it can be told in
/// words why it is not believed.
#[derive(Debug)]
struct AnyClient(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Whom a client's certificate shows it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Whom it names.
    pub principal: Principal,
    /// Whose key it is for; the client has shown that it has it.
    pub key: KeyId,
    /// Until when it holds, as time since the Unix epoch.
    pub not_after: Duration,
}

/// Why a client's certificate shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unbelieved {
    /// There is none.
    #[error("no certificate was shown")]
    Nothing,
    /// It leads to none of the roots.
    #[error("the certificate is of another authority")]
    Foreign,
    /// It does not hold yet, or no more.
    #[error("the certificate does not hold at this time")]
    Expired,
    /// It cannot be read, or names nobody of ours.
    #[error("the certificate names nobody")]
    Nobody,
}

/// Judges clients by the certificates that they have shown.
#[derive(Debug)]
pub struct Clients(Arc<dyn ClientCertVerifier>);

impl Clients {
    /// One that believes certificates which lead to one of `roots`.
    ///
    /// # Errors
    /// Where a root is none.
    pub fn new(roots: &[CertificateDer<'static>]) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self(verifier))
    }

    /// Whom `certificates`, of a finished handshake, show a client to be at the time `now` since the Unix epoch.
    ///
    /// # Errors
    /// Why they show nothing.
    pub fn judge(&self, certificates: &[CertificateDer<'_>], now: Duration) -> Result<Shown, Unbelieved> {
        let (own, others) = certificates.split_first().ok_or(Unbelieved::Nothing)?;
        let now = UnixTime::since_unix_epoch(now);
        if let Err(error) = self.0.verify_client_cert(own, others, now) {
            return Err(match clock_fault(&error) {
                Some(_) => Unbelieved::Expired,
                None => Unbelieved::Foreign,
            });
        }
        let facts = Facts::of(own).ok_or(Unbelieved::Nobody)?;
        let principal = facts.principal.ok_or(Unbelieved::Nobody)?;
        Ok(Shown { principal, key: facts.key, not_after: facts.not_after })
    }
}
