use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;
use crate::proto::host::credential::PrivateKey;
use crate::proto::host::tls::{Clients, Shown, Unbelieved};

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn agent(name: &str) -> Principal {
    Principal::Agent(name.parse().unwrap())
}

fn request(key: &PrivateKey) -> SigningRequest {
    SigningRequest::parse(&key.request().unwrap()).unwrap()
}

fn signed(authority: &Authority, principal: &Principal, wall: Duration) -> Vec<CertificateDer<'static>> {
    let key = PrivateKey::generate().unwrap();
    authority.sign(&request(&key), principal, wall, wall + DAY * 7).unwrap()
}

fn judge(
    authority: &Authority,
    chain: &[CertificateDer<'static>],
    wall: Duration,
) -> Result<Principal, Unbelieved> {
    let clients = Clients::new(authority.roots()).unwrap();
    clients.judge(chain, wall).map(|Shown { principal, .. }| principal)
}

#[test]
fn keys_are_their_owners_alone_and_an_authority_stays_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pki");
    let first = Authority::open(&path, NOW).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    let again = Authority::open(&path, NOW + DAY).unwrap();
    assert_eq!(first.root_facts(), again.root_facts());
    assert!(judge(&again, &signed(&first, &agent("a"), NOW), NOW).is_ok());
    let key = path.join(ISSUER_FILE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let refusal = Authority::open(&path, NOW).unwrap_err().to_string();
    assert!(refusal.contains("chmod 600"), "{refusal}");
}

#[test]
fn a_certificate_is_believed_in_its_time_and_by_its_own_authority() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ours, foreign] = directories.each_ref().map(|one| Authority::open(one.path(), NOW).unwrap());
    let chain = signed(&ours, &agent("web-1"), NOW);
    let second = Duration::from_secs(1);
    assert_eq!(judge(&ours, &chain, NOW), Ok(agent("web-1")));
    assert_eq!(judge(&ours, &chain, NOW - DAY), Ok(agent("web-1")), "backdated");
    assert_eq!(judge(&ours, &chain, NOW - DAY - second), Err(Unbelieved::Expired));
    assert_eq!(judge(&ours, &chain, NOW + DAY * 7), Ok(agent("web-1")));
    assert_eq!(judge(&ours, &chain, NOW + DAY * 7 + second), Err(Unbelieved::Expired));
    assert_eq!(judge(&foreign, &chain, NOW), Err(Unbelieved::Foreign));
    assert_eq!(judge(&ours, &[], NOW), Err(Unbelieved::Nothing));
    assert_eq!(judge(&ours, &chain[..1], NOW), Err(Unbelieved::Foreign), "its issuer is missing");
}

#[test]
fn nothing_of_a_request_is_heeded_but_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let key = PrivateKey::generate().unwrap();
    let mut asked = rcgen::CertificateParams::new(vec!["controller.tunmesh".to_owned()]).unwrap();
    asked.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    asked.subject_alt_names.push(rcgen::SanType::URI(agent("other").uri().try_into().unwrap()));
    let der = asked.serialize_request(&key).unwrap().der().to_vec();
    let request = SigningRequest::parse(&der).unwrap();
    assert_eq!(request.key(), key.id());
    let chain = authority.sign(&request, &agent("web-1"), NOW, NOW + DAY).unwrap();
    let facts = Facts::of(&chain[0]).unwrap();
    assert_eq!((facts.principal, facts.key), (Some(agent("web-1")), key.id()));
    let text = String::from_utf8_lossy(&chain[0]).into_owned();
    assert!(!text.contains("controller.tunmesh") && !text.contains("other"), "{text}");
    for position in 0..der.len() {
        let mut bent = der.clone();
        bent[position] ^= 1;
        // A bit that says nothing may be anything.
        let read = SigningRequest::parse(&bent);
        assert!(read.is_err() || read.unwrap().key() == key.id(), "byte {position}");
    }
    assert!(SigningRequest::parse(&vec![0x30; LONGEST + 1]).is_err());
}

#[test]
fn no_agent_or_operator_is_taken_for_a_controller_or_signs_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let key = PrivateKey::generate().unwrap();
    let operator = Principal::Operator(crate::proto::trust::Role::Admin, "anna".parse().unwrap());
    for principal in [agent("controller"), operator] {
        let chain = authority.sign(&request(&key), &principal, NOW, NOW + DAY).unwrap();
        assert!(!is_controller(&chain, authority.roots(), NOW), "{principal}");
        let owner = Credential { key: key.clone(), chain: chain.clone(), roots: Vec::new() };
        let victim = PrivateKey::generate().unwrap();
        let forged = certificates::leaf(&agent("victim"), &victim, &owner, NOW, NOW + DAY).unwrap();
        let forged: Vec<_> = [forged].into_iter().chain(chain).collect();
        assert_eq!(judge(&authority, &forged, NOW), Err(Unbelieved::Foreign), "{principal}");
    }
    let (server, _) = authority.server(NOW).unwrap();
    assert!(is_controller(&server.chain, authority.roots(), NOW));
    assert!(judge(&authority, &server.chain, NOW).is_err(), "a controller is no client");
}

/// Whether whoever believes `roots` takes one who shows `chain` for a controller.
fn is_controller(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    wall: Duration,
) -> bool {
    let mut store = rustls::RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).unwrap());
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(store.into(), provider).build().unwrap();
    let name = ServerName::try_from(crate::proto::host::tls::CONTROLLER).unwrap();
    let time = UnixTime::since_unix_epoch(wall);
    rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &*verifier,
        &chain[0],
        &chain[1..],
        &name,
        &[],
        time,
    )
    .is_ok()
}

#[test]
fn certificates_of_one_key_have_numbers_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::open(directory.path(), NOW).unwrap();
    let key = PrivateKey::generate().unwrap();
    let serial = |_| {
        let chain = authority.sign(&request(&key), &agent("a"), NOW, NOW + DAY).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        certificate.serial.clone()
    };
    assert_eq!((0..50).map(serial).collect::<BTreeSet<_>>().len(), 50);
}

#[test]
fn the_roots_key_can_be_kept_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let (path, target) = (directory.path().join("pki"), directory.path().join("usb.pem"));
    let mut authority = Authority::open(&path, NOW).unwrap();
    authority.export(&target).unwrap();
    assert!(!authority.has_root_key());
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(authority.export(&directory.path().join("again")), Err(PkiError::NoRootKey)));
    assert!(matches!(authority.rotate(NOW), Err(PkiError::NoRootKey)));
    // What needs only the issuer goes on, also after a start.
    let mut authority = Authority::open(&path, NOW).unwrap();
    assert!(judge(&authority, &signed(&authority, &agent("a"), NOW), NOW).is_ok());
    let late = NOW + ISSUER - DAY;
    assert!(authority.is_due(late) && !authority.maintain(late).unwrap());
    let stranger = tempfile::tempdir().unwrap();
    Authority::open(stranger.path(), NOW).unwrap();
    let other = stranger.path().join(ROOT_FILE);
    assert!(matches!(authority.import(&other), Err(PkiError::OtherRoot(..))));
    authority.import(&target).unwrap();
    assert!(authority.maintain(late).unwrap());
    assert!(!authority.is_due(late));
    assert!(judge(&authority, &signed(&authority, &agent("a"), late), late).is_ok());
}

#[test]
fn what_is_there_already_is_not_written_over_by_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("letter");
    fs::write(&target, "dear").unwrap();
    let mut authority = Authority::open(&directory.path().join("pki"), NOW).unwrap();
    assert!(matches!(authority.export(&target), Err(PkiError::Exists(_))));
    assert_eq!(fs::read_to_string(&target).unwrap(), "dear");
    assert!(authority.has_root_key());
}

#[test]
fn whoever_knows_one_root_meets_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let mut authority = Authority::open(directory.path(), NOW).unwrap();
    let first = authority.roots().to_vec();
    let old = signed(&authority, &agent("old"), NOW);
    authority.rotate(NOW + DAY).unwrap();
    let second = authority.roots()[..1].to_vec();
    authority.rotate(NOW + DAY * 2).unwrap();
    let newest = authority.roots()[..1].to_vec();
    let now = NOW + DAY * 3;
    let (server, _) = authority.server(now).unwrap();
    for (place, roots) in [&first, &second, &newest].into_iter().enumerate() {
        assert!(is_controller(&server.chain, roots, now), "who knows root {place} alone");
    }
    assert_eq!(judge(&authority, &old, now), Ok(agent("old")));
    // In time the old ones are believed no more.
    let late = NOW + DAY * 2 + OVERLAP;
    assert!(!authority.maintain(late - DAY).unwrap());
    assert!(authority.maintain(late).unwrap());
    assert_eq!(authority.roots(), newest);
    let (server, _) = authority.server(late).unwrap();
    assert!(is_controller(&server.chain, &newest, late) && !is_controller(&server.chain, &first, late));
    assert_eq!(judge(&authority, &old, now), Err(Unbelieved::Foreign));
    assert_eq!(Authority::open(directory.path(), late).unwrap().roots(), newest);
}

/// A crash at any moment of a rotation leaves an authority that signs, and has its root's key.
#[test]
fn a_rotation_that_is_cut_short_has_happened_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut authority = Authority::open(directory.path(), NOW).unwrap();
    let before = fs::read(directory.path().join(ISSUER_FILE)).unwrap();
    let root = fs::read(directory.path().join(ROOT_FILE)).unwrap();
    authority.rotate(NOW).unwrap();
    let after = fs::read(directory.path().join(ISSUER_FILE)).unwrap();
    let next = fs::read(directory.path().join(ROOT_FILE)).unwrap();
    for (issuer, happened) in [(before, false), (after, true)] {
        file(&directory.path().join(ISSUER_FILE), &issuer);
        file(&directory.path().join(ROOT_FILE), &root);
        file(&directory.path().join(NEXT_ROOT_FILE), &next);
        let mut authority = Authority::open(directory.path(), NOW).unwrap();
        assert_eq!(authority.roots().len(), if happened { 2 } else { 1 });
        assert!(!directory.path().join(NEXT_ROOT_FILE).exists());
        authority.rotate(NOW).unwrap();
    }
}

fn file(path: &Path, content: &[u8]) {
    crate::proto::host::file::replace(path, content).unwrap();
}

#[test]
fn a_key_that_is_not_the_latest_roots_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let mut authority = Authority::open(directory.path(), NOW).unwrap();
    let old = fs::read(directory.path().join(ROOT_FILE)).unwrap();
    authority.rotate(NOW).unwrap();
    file(&directory.path().join(ROOT_FILE), &old);
    assert!(matches!(authority.rotate(NOW), Err(PkiError::OtherRoot(..))));
    let target = directory.path().join("away");
    assert!(matches!(authority.export(&target), Err(PkiError::OtherRoot(..))));
    assert!(!target.exists());
}

/// Another process sees what this one has made of it.
#[test]
fn two_processes_change_it_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Authority::open(directory.path(), NOW).unwrap();
    let mut command = Authority::existing(directory.path()).unwrap();
    server.rotate(NOW).unwrap();
    let target = directory.path().join("away");
    command.export(&target).unwrap();
    assert_eq!(Credential::read(&target).unwrap().unwrap().roots[0], server.roots()[0]);
    assert!(matches!(server.rotate(NOW), Err(PkiError::NoRootKey)));
    command.import(&target).unwrap();
    server.rotate(NOW).unwrap();
    assert!(matches!(Authority::existing(&directory.path().join("none")), Err(PkiError::File(..))));
}

#[test]
fn a_damaged_file_is_refused_in_words_that_show_nothing_of_it() {
    let directory = tempfile::tempdir().unwrap();
    Authority::open(directory.path(), NOW).unwrap();
    let path = directory.path().join(ISSUER_FILE);
    let whole = fs::read_to_string(&path).unwrap();
    let secret = whole.lines().nth(1).unwrap().to_owned();
    let no_certificate = whole[..whole.find("-----BEGIN CERTIFICATE").unwrap()].to_owned();
    let no_key = whole[whole.find("-----BEGIN CERTIFICATE").unwrap()..].to_owned();
    let twice = format!("{whole}{whole}");
    for content in [&whole[..whole.len() / 3], &no_certificate, &no_key, &twice, "", "-----BEGIN"] {
        file(&path, content.as_bytes());
        let refusal = Authority::open(directory.path(), NOW).unwrap_err().to_string();
        assert!(refusal.contains(ISSUER_FILE) && !refusal.contains(&secret), "{refusal}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn what_is_no_request_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(SigningRequest::parse(&bytes).is_err());
    }
}
