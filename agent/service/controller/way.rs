//! How this agent and a controller come to believe each other.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use super::End;
use crate::agent::credentials::{Credentials, renewal};
use crate::agent::session::TroubleKind;
use crate::proto::host::client::over;
use crate::proto::host::clock;
use crate::proto::host::tls::{self, Belief, Seen};
use crate::proto::model::NodeName;
use crate::proto::trust::{Code, CodeHead, JoinToken, KeyId, Word};
use crate::proto::v1;
use crate::proto::v1::enrol_response::Outcome;
use crate::proto::v1::enrolment_client::EnrolmentClient;

/// How soon a certificate that could not be renewed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(3_600);

/// What an agent knows of its controller before it has joined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Introduction {
    /// With what it joins.
    pub token: Option<JoinToken>,
    /// The root of the controller, where no token names it.
    pub pin: Option<KeyId>,
    /// The networks in which a controller is believed without anything that shows which it is.
    pub approve_any: Vec<IpNet>,
}

/// How a controller is dialled.
#[derive(Debug)]
pub struct Way {
    /// The node that this agent is.
    pub node: NodeName,
    /// What shows that it is.
    pub credentials: Arc<Credentials>,
    /// What it knows before it has joined.
    pub introduction: Introduction,
    /// The networks in which the controller is dialled without encryption, as long as this agent has not joined.
    pub insecure: Vec<IpNet>,
    /// A share of the time in which certificates are renewed, of 1 in 65,536: not all agents come at once.
    pub share: u16,
}

impl Way {
    /// Whether a connection is plain text. An agent that has joined shows who it is, and asks that of its controller.
    pub(super) fn is_plain(&self, stream: &TcpStream) -> bool {
        !self.credentials.has_joined() && is_in(stream, &self.insecure)
    }

    /// Whom this agent believes to be its controller.
    fn belief(&self) -> Belief {
        let roots = self.credentials.current().roots.clone();
        let Introduction { token, pin, .. } = &self.introduction;
        match token.as_ref().map(|token| token.pin).or(*pin) {
            _ if !roots.is_empty() => Belief::Roots(roots),
            Some(pin) => Belief::Pin(pin),
            None => Belief::Anyone,
        }
    }

    /// Shakes hands, and has the certificate shown if there is one. Returns the root that the controller has shown.
    pub(super) async fn open(&self, stream: TcpStream) -> Result<(Channel, Option<KeyId>), End> {
        let seen = Seen::default();
        let credential = self.credentials.current();
        let fault = |error: rustls::Error| End::new(TroubleKind::Unjoined, error.to_string());
        let config = tls::client(self.belief(), Some(&credential), seen.clone()).map_err(fault)?;
        let name = ServerName::try_from(tls::CONTROLLER);
        let name = name.map_err(|error| End::new(TroubleKind::Unjoined, error.to_string()))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.map_err(|error| self.unbelieved(&error))?;
        let channel = over(stream).await;
        let channel = channel.map_err(|error| End::new(TroubleKind::Unanswered, super::innermost(&error)))?;
        Ok((channel, seen.root()))
    }

    /// Why the other end of a handshake is not taken for the controller.
    fn unbelieved(&self, error: &std::io::Error) -> End {
        let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            let words = format!("the controller closed the connection amid the handshake ({error})");
            return End::new(TroubleKind::Unanswered, words);
        };
        let words = match (tls::clock_fault(fault), fault) {
            (Some(clock), _) => {
                format!("the controller's certificate {clock}: set the clock of this host, or of the controller's")
            }
            (None, rustls::Error::InvalidCertificate(_)) => match self.belief() {
                Belief::Roots(_) => "whoever answers there is not the controller that this agent has joined: its \
                                     certificate is of another authority; to change to it run `agent leave`, then start \
                                     the agent again"
                    .to_owned(),
                Belief::Pin(_) => "whoever answers there is not the controller that the token or --pin is of: its \
                                   certificate is of another authority; nothing was sent to it"
                    .to_owned(),
                Belief::Anyone => format!("whoever answers there shows no certificate of a controller ({fault})"),
            },
            (None, _) => format!("whoever answers there speaks no TLS as a controller does ({fault})"),
        };
        End::new(TroubleKind::Unbelieved, words)
    }

    /// Gets a certificate for this agent.
    pub(super) async fn join(&self, stream: TcpStream) -> Result<(), End> {
        let is_near = is_in(&stream, &self.introduction.approve_any);
        let (channel, root) = self.open(stream).await?;
        let credential = self.credentials.current();
        let request = credential.key.request().map_err(|error| unjoined(&error))?;
        let token = self.introduction.token.as_ref().map(|token| v1::JoinToken {
            id: token.id.to_string(),
            secret: token.secret.as_bytes().to_vec(),
        });
        let request = v1::EnrolRequest { node: self.node.to_string(), request, token };
        let answer = EnrolmentClient::new(channel).enrol(request).await?.into_inner();
        match answer.outcome {
            Some(Outcome::Certificate(certificate)) => {
                if self.is_uncertain() && !is_near {
                    self.check_word(&certificate.word, root)?;
                }
                self.take_in(certificate)?;
                tracing::info!(node = %self.node, "this host has joined");
                Ok(())
            }
            Some(Outcome::Waiting(v1::Waiting { after_ms })) => {
                Err(End { retry_after: Some(Duration::from_millis(after_ms)), ..self.unapproved(root) })
            }
            None => Err(End::new(
                TroubleKind::Unintelligible,
                "the controller neither lets this host in nor refuses it",
            )),
        }
    }

    /// Whether nothing has shown that the controller is the one that is meant.
    fn is_uncertain(&self) -> bool {
        matches!(self.belief(), Belief::Anyone)
    }

    /// A controller that this host's operator has told shows that it was.
    fn check_word(&self, word: &[u8], root: Option<KeyId>) -> Result<(), End> {
        let is_told = |root: &KeyId| Word::from_bytes(word).is_some_and(|word| word.is(&self.word(root)));
        match root.as_ref().is_some_and(is_told) {
            true => Ok(()),
            false => Err(self.unapproved(root)),
        }
    }

    /// What only this host shows, of a controller with this root. It stays the same for as long as the keys do, also
    /// where this host is started again.
    fn word(&self, root: &KeyId) -> Word {
        Word::of(&self.credentials.current().key.to_der(), root)
    }

    fn unapproved(&self, root: Option<KeyId>) -> End {
        let Some(root) = root else {
            return End::new(
                TroubleKind::Unapproved,
                "an operator is to approve this host on the controller",
            );
        };
        let head = CodeHead::of(&self.credentials.current().key.id(), &root);
        let code = Code { head, word: self.word(&root) };
        End::new(
            TroubleKind::Unapproved,
            format!(
                "this host waits for approval; on the controller: controller node approve {} {}",
                self.node,
                code.reveal()
            ),
        )
    }

    /// Renews the certificate of a connection in time, for as long as it is polled; never where it is plain text.
    pub(super) async fn keep_renewed(&self, channel: Channel, is_plain: bool) {
        loop {
            let due = self.credentials.current().facts().map(|facts| renewal(&facts, self.share));
            let Some(due) = due.filter(|_| !is_plain) else { return std::future::pending().await };
            tokio::time::sleep(due.saturating_sub(clock::since_epoch())).await;
            if let Err(End { why, .. }) = self.renew(channel.clone()).await {
                tracing::warn!(reason = why.words, "the certificate cannot be renewed; it is tried again");
            }
            // By a clock that is wrong it is due at once.
            tokio::time::sleep(RENEW_AGAIN).await;
        }
    }

    /// What becomes of a session that ended with `end` because the certificate has expired.
    pub(super) async fn renewed(&self, channel: Channel, end: End) -> End {
        match self.renew(channel).await {
            Ok(()) => End::new(TroubleKind::Ended, "the certificate had expired, and is renewed"),
            // What is wrong with the agent, the controller says when it is asked for a new one.
            Err(refusal) if refusal.is_refusal() => refusal,
            Err(_) => end,
        }
    }

    async fn renew(&self, channel: Channel) -> Result<(), End> {
        let credential = self.credentials.current();
        let request = credential.key.request().map_err(|error| unjoined(&error))?;
        let request = v1::RenewRequest { request, node: self.node.to_string() };
        let answer = EnrolmentClient::new(channel).renew(request).await?.into_inner();
        let certificate = answer.certificate.ok_or_else(|| {
            End::new(TroubleKind::Unintelligible, "the controller sent no certificate, and no reason")
        })?;
        self.take_in(certificate)
    }

    fn take_in(&self, certificate: v1::Certificate) -> Result<(), End> {
        let ders = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect();
        let v1::Certificate { chain, roots, word: _ } = certificate;
        let taken = self.credentials.take_in(&self.node, ders(chain), ders(roots));
        taken.map_err(|error| unjoined(&error))
    }
}

fn is_in(stream: &TcpStream, networks: &[IpNet]) -> bool {
    let peer: Option<IpAddr> = stream.peer_addr().ok().map(|peer| peer.ip().to_canonical());
    peer.is_some_and(|peer| networks.iter().any(|network| network.contains(&peer)))
}

fn unjoined(error: &dyn std::error::Error) -> End {
    End::new(TroubleKind::Unjoined, format!("this host's certificate cannot be had or kept: {error}"))
}
