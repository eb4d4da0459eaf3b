//! The certificates of an authority: what stands in each kind (RFC 5280), and who signs it.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

use super::{BACKDATED, ISSUER, ROOT, SERVER};
use crate::proto::host::credential::{Credential, CredentialError, PrivateKey};
use crate::proto::host::{random, tls};
use crate::proto::trust::Principal;

/// The first root of an authority.
pub(super) fn root(wall: Duration) -> Result<Credential, CredentialError> {
    let key = PrivateKey::generate()?;
    let certificate = root_params(&key, wall)?.self_signed(&key)?;
    Ok(Credential { key, chain: Vec::new(), roots: vec![certificate.into()] })
}

/// The root after `last`, and a certificate by which `last` vouches for it.
pub(super) fn next_root(
    last: &Credential,
    wall: Duration,
) -> Result<(Credential, CertificateDer<'static>), CredentialError> {
    let key = PrivateKey::generate()?;
    let params = root_params(&key, wall)?;
    let voucher = params.signed_by(&key, &signer(last.roots.first(), last)?)?.into();
    let certificate = params.self_signed(&key)?;
    Ok((Credential { key, chain: Vec::new(), roots: vec![certificate.into()] }, voucher))
}

/// An issuer that `root` has signed, with the certificates by which roots vouch for the next, and all roots.
pub(super) fn issuer(
    root: &Credential,
    vouchers: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    wall: Duration,
) -> Result<Credential, CredentialError> {
    let key = PrivateKey::generate()?;
    let mut params = params(format!("tunmesh issuer {}", key.id()), wall, wall + ISSUER)?;
    // It signs for agents, operators and controllers alone.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.signed_by(&key, &signer(root.roots.first(), root)?)?;
    let chain = [certificate.into()].into_iter().chain(vouchers).collect();
    Ok(Credential { key, chain, roots })
}

/// A certificate for the key of an agent or operator.
pub(super) fn leaf(
    principal: &Principal,
    key: &impl PublicKeyData,
    issuer: &Credential,
    wall: Duration,
    expires: Duration,
) -> Result<CertificateDer<'static>, CredentialError> {
    let mut params = params(principal.to_string(), wall, expires)?;
    params.subject_alt_names = vec![SanType::URI(principal.uri().try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if let Principal::Agent(node) = principal {
        // Agents are dialled, too: by a name that is never a controller's.
        params.subject_alt_names.push(SanType::DnsName(tls::agent_name(node).try_into()?));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params.signed_by(key, &signer(issuer.chain.first(), issuer)?)?.into())
}

/// A new key of a controller, and its certificate.
pub(super) fn server(
    issuer: &Credential,
    wall: Duration,
) -> Result<(PrivateKey, CertificateDer<'static>), CredentialError> {
    let key = PrivateKey::generate()?;
    let mut params = params("tunmesh controller".to_owned(), wall, wall + SERVER)?;
    params.subject_alt_names = vec![SanType::DnsName(tls::CONTROLLER.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let certificate = params.signed_by(&key, &signer(issuer.chain.first(), issuer)?)?;
    Ok((key, certificate.into()))
}

fn root_params(key: &PrivateKey, wall: Duration) -> Result<CertificateParams, CredentialError> {
    let mut params = params(format!("tunmesh root {}", key.id()), wall, wall + ROOT)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// What all certificates have.
fn params(name: String, wall: Duration, expires: Duration) -> Result<CertificateParams, CredentialError> {
    let epoch = date_time_ymd(1970, 1, 1);
    let whole = |at: Duration| Duration::from_secs(at.as_secs());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + whole(wall.saturating_sub(BACKDATED));
    params.not_after = epoch + whole(expires);
    params.use_authority_key_identifier_extension = true;
    // At most 20 bytes, and positive: RFC 5280 section 4.1.2.2.
    let serial = random::bits()? >> 1 | 1 << 126;
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    Ok(params)
}

/// What signs with the key of `owner`, whose certificate it is.
fn signer(
    certificate: Option<&CertificateDer<'static>>,
    owner: &Credential,
) -> Result<Issuer<'static, PrivateKey>, CredentialError> {
    let none = || CredentialError::Malformed("there is no certificate for the key".to_owned());
    Ok(Issuer::from_ca_cert_der(certificate.ok_or_else(none)?, owner.key.clone())?)
}
