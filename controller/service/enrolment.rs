//! Enrolment: hosts get their identity, and renew it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::controller::audit::Deed;
use crate::controller::credentials::Credentials;
use crate::controller::pki::{PkiError, SigningRequest};
use crate::controller::runtime::{ChangeError, ControllerHandle};
use crate::controller::trust::{Denial, Identity, Proof};
use crate::proto::host::accept::Peer;
use crate::proto::host::access::RequestId;
use crate::proto::host::clock::{now, since_epoch};
use crate::proto::model::{Invalid, NodeName};
use crate::proto::trust::Asker;
use crate::proto::trust::{CodeHead, KeyId, Principal, Secret, TokenId};
use crate::proto::v1;
use crate::proto::v1::enrol_response::Outcome;
use crate::proto::v1::enrolment_server::Enrolment;

/// The service that a host calls which has no identity, or an old one.
#[derive(Debug, Clone)]
pub struct Enroller {
    controller: ControllerHandle,
    credentials: Arc<Credentials>,
    /// The networks in which every host that asks may join.
    approve_any: Arc<[IpNet]>,
}

impl Enroller {
    /// A service for `controller`, which is known by `credentials`.
    pub fn new(controller: ControllerHandle, credentials: Arc<Credentials>, approve_any: &[IpNet]) -> Self {
        Self { controller, credentials, approve_any: approve_any.into() }
    }

    /// A certificate for a node that has joined.
    fn certificate(
        &self,
        node: NodeName,
        request: &SigningRequest,
        identity: &Identity,
    ) -> Result<v1::Certificate, Status> {
        let authority = self.credentials.authority();
        let chain = authority.sign(request, &Principal::Agent(node), since_epoch(), identity.expires);
        let chain = chain.map_err(|error| unsigned(&error))?;
        let word = identity.word.map(Vec::from).unwrap_or_default();
        Ok(v1::Certificate { word, ..wire_certificate(&chain, authority.roots()) })
    }

    /// What an operator compares.
    fn code(&self, key: &KeyId) -> Result<CodeHead, Status> {
        let root = self.credentials.authority().root_facts().first().map(|root| root.pin);
        Ok(CodeHead::of(key, &root.ok_or_else(|| Status::internal("the authority has no root"))?))
    }

    /// Has a host wait for an operator.
    async fn petition(
        &self,
        node: NodeName,
        key: KeyId,
        source: IpAddr,
    ) -> Result<v1::EnrolResponse, Status> {
        let after =
            self.controller.petition(node, key, source, self.code(&key)?).await.map_err(not_changed)?;
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Ok(v1::EnrolResponse { outcome: Some(Outcome::Waiting(v1::Waiting { after_ms })) })
    }

    /// Says that somebody was refused, and how.
    fn refused(&self, node: &NodeName, source: IpAddr, error: ChangeError) -> Status {
        if let ChangeError::Refused(denial) = &error {
            self.controller.refused(Some(node.clone()), format!("Enrolment from {source}: {denial}"));
        }
        not_changed(error)
    }
}

#[tonic::async_trait]
impl Enrolment for Enroller {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let source = source(&request)?;
        let id = request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone()).unwrap_or_default();
        let v1::EnrolRequest { node, request, token } = request.into_inner();
        let node = parsed_node(&node)?;
        let request = SigningRequest::parse(&request).map_err(|error| unsigned(&error))?;
        let key = request.key();
        let proof = match token {
            Some(token) => Some(parsed_token(&token)?),
            None => {
                self.approve_any.iter().any(|network| network.contains(&source)).then_some(Proof::Network)
            }
        };
        // What is nothing now needs no turn of the one task that owns all sessions.
        let trust = self.controller.trust();
        let is_known = trust.identity(&node, &key).is_ok();
        match &proof {
            None if !is_known => return self.petition(node, key, source).await.map(Response::new),
            Some(Proof::Token(id, secret)) if !is_known => {
                let token = trust.token(id, secret);
                token.map_err(|denial| self.refused(&node, source, ChangeError::Refused(denial)))?;
            }
            Some(_) | None => {}
        }
        let enrolled = {
            let node = node.clone();
            let asker = Asker { who: format!("host at {source}"), request: id };
            let how = match &proof {
                Some(Proof::Token(id, _)) => format!("with the token {id}"),
                Some(Proof::Network | Proof::Approval { .. }) | None => "by its network".to_owned(),
            };
            let deed = Deed { asker, method: "Enrol", what: format!("node {node} {how}") };
            // One that only renews changes nothing that anybody decided.
            let deed = Some(deed).filter(|_| !is_known);
            let enrol = self.controller.change(deed, move |draft, wall| match &proof {
                Some(proof) => draft.enrol(&node, key, proof.clone(), wall),
                None => draft.renew(&node, key, wall),
            });
            enrol.await
        };
        let identity = enrolled.map_err(|error| self.refused(&node, source, error))?;
        let certificate = self.certificate(node, &request, &identity)?;
        Ok(Response::new(v1::EnrolResponse { outcome: Some(Outcome::Certificate(certificate)) }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let source = source(&request)?;
        let v1::RenewRequest { request, node } = request.into_inner();
        let node = parsed_node(&node)?;
        let request = SigningRequest::parse(&request).map_err(|error| unsigned(&error))?;
        let key = request.key();
        let known = self.controller.trust().identity(&node, &key).map(drop);
        known.map_err(|denial| self.refused(&node, source, ChangeError::Refused(denial)))?;
        let renewed = {
            let node = node.clone();
            self.controller.change(None, move |draft, wall| draft.renew(&node, key, wall)).await
        };
        let identity = renewed.map_err(|error| self.refused(&node, source, error))?;
        let certificate = self.certificate(node, &request, &identity)?;
        Ok(Response::new(v1::RenewResponse { certificate: Some(certificate) }))
    }
}

/// Where a request comes from. One in plain text shows a token to everybody.
fn source<T>(request: &Request<T>) -> Result<IpAddr, Status> {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.ok_or_else(|| Status::internal("the connection has no address"))?;
    // Each takes a signature.
    peer.begin(now()).map_err(|again| {
        let details = ErrorDetails::with_retry_info(Some(again));
        Status::with_error_details(
            tonic::Code::ResourceExhausted,
            "too many requests on one connection",
            details,
        )
    })?;
    match peer.shown {
        Some(_) => Ok(peer.source),
        None => {
            Err(Status::failed_precondition("nobody joins in plain text: start the agent without --insecure"))
        }
    }
}

fn parsed_node(node: &str) -> Result<NodeName, Status> {
    node.parse().map_err(|fault: Invalid| Status::invalid_argument(fault.describe("node", node)))
}

fn parsed_token(token: &v1::JoinToken) -> Result<Proof, Status> {
    let id = token.id.parse::<TokenId>();
    let id = id.map_err(|fault| Status::invalid_argument(fault.describe("token.id", &token.id)))?;
    let secret = Secret::from_bytes(&token.secret);
    let secret = secret.ok_or_else(|| Status::invalid_argument("token.secret: has another length"))?;
    Ok(Proof::Token(id, secret))
}

/// A certificate with what leads to a root, and the roots.
pub(super) fn wire_certificate(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> v1::Certificate {
    let ders = |all: &[CertificateDer<'static>]| all.iter().map(|one| one.to_vec()).collect();
    v1::Certificate { chain: ders(chain), roots: ders(roots), word: Vec::new() }
}

/// How it is told that nothing was signed.
pub(super) fn unsigned(error: &PkiError) -> Status {
    match error {
        PkiError::Request(_) => Status::invalid_argument(error.to_string()),
        PkiError::NoRootKey => Status::failed_precondition(error.to_string()),
        PkiError::File(..)
        | PkiError::OtherRoot(..)
        | PkiError::Exists(_)
        | PkiError::Tls(_)
        | PkiError::Crypto(_) => Status::internal(error.to_string()),
    }
}

/// How a change that was not made is told.
pub(super) fn not_changed(error: ChangeError) -> Status {
    let denial = match error {
        ChangeError::Refused(denial) => denial,
        ChangeError::Store(reason) => {
            return Status::unavailable(format!("the store cannot be written: {reason}"));
        }
        ChangeError::Busy => {
            return Status::resource_exhausted("many ask at once; try again in a moment");
        }
        ChangeError::Stopping => {
            return Status::unavailable("the controller is ending; try again when it is back");
        }
    };
    let words = denial.to_string();
    match denial {
        Denial::UnknownToken(_)
        | Denial::ExpiredToken(_)
        | Denial::UsedToken(..)
        | Denial::OtherName { .. } => Status::permission_denied(words),
        Denial::UnknownNode(_) | Denial::UnknownOperator(_) | Denial::UnknownCode(_) => {
            Status::not_found(words)
        }
        Denial::RemovedName(_) => Status::permission_denied(words),
        Denial::TakenName(_) | Denial::AlikeName(..) | Denial::TakenOperator(_) => {
            Status::already_exists(words)
        }
        Denial::TooLate(_) => Status::failed_precondition(words),
        Denial::TooMany(_) => Status::resource_exhausted(words),
    }
}
