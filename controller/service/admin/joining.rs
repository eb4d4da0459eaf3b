//! Who may join: tokens, approval, and the end of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::{Code, Request, Response, Status};

use super::{Admin, Stopping, not_changed, parsed, wire};
use crate::controller::audit::Deed;
use crate::controller::registry::petitions::Petition;
use crate::controller::state::{ApplyError, ControllerState};
use crate::controller::trust::{Draft, Token, Trust, USES};
use crate::proto::convert::room::{MESSAGE, Room};
use crate::proto::convert::{duration, timestamp};
use crate::proto::host::access::asker;
use crate::proto::host::{clock, random};
use crate::proto::model::{NodeName, check_label};
use crate::proto::trust::{Code as ApprovalCode, JoinToken, NamePattern, Secret, TokenId};
use crate::proto::v1;

/// How long a token may be used unless it says otherwise.
const LIFETIME: Duration = Duration::from_secs(3_600);
/// How many hosts that wait are told at most.
const WAITING: usize = 1_000;
/// How long at most.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);

impl Admin {
    pub(super) async fn make_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let asker = asker(&request);
        let made_by = asker.who.clone();
        let v1::CreateTokenRequest { names, labels, lifetime: asked, uses } = request.into_inner();
        let names = match names.as_str() {
            "" => NamePattern::any(),
            names => parsed("names", names)?,
        };
        check_labels(&labels)?;
        let lifetime = asked.map_or(Ok(LIFETIME), |asked| lifetime(&asked))?;
        if uses > USES {
            return Err(fault("uses", format!("{uses} is more than {USES}; make more than one token")));
        }
        let no_random =
            |error: std::io::Error| Status::internal(format!("this host has no random numbers: {error}"));
        let secret = Secret::random(random::bits().map_err(no_random)?);
        let id = TokenId::random(random::bits().map_err(no_random)? as u64);
        let wall = clock::since_epoch();
        let token = Token {
            hash: secret.hash(),
            names,
            labels,
            expires: Duration::from_secs((wall + lifetime).as_secs()),
            uses: uses.max(1),
            used: 0,
            made_by,
        };
        let root = self.credentials.authority().root_facts().first().map(|root| root.pin);
        let pin = root.ok_or_else(|| Status::internal("the authority has no root"))?;
        let kept = {
            let (id, token) = (id.clone(), token.clone());
            let what = format!("token {id} for {} nodes named {}", token.uses, token.names);
            let deed = Deed { asker, method: "CreateToken", what };
            let create = move |draft: &mut Draft, wall| draft.create_token(id.clone(), token.clone(), wall);
            self.controller.change(Some(deed), create).await
        };
        kept.map_err(not_changed)?;
        let shown = self::token(&id, &token);
        let secret_token = JoinToken { id, secret, pin }.reveal();
        Ok(Response::new(v1::CreateTokenResponse { secret_token, token: Some(shown) }))
    }

    pub(super) async fn let_in(
        &self,
        request: Request<v1::ApproveNodeRequest>,
    ) -> Result<Response<v1::ApproveNodeResponse>, Status> {
        let asker = asker(&request);
        let v1::ApproveNodeRequest { node, code, labels } = request.into_inner();
        let node: NodeName = parsed("node", &node)?;
        let code: ApprovalCode = parsed("code", &code)?;
        check_labels(&labels)?;
        let root = self.credentials.authority().root_facts().first().map(|root| root.pin);
        let root = root.ok_or_else(|| Status::internal("the authority has no root"))?;
        self.controller.approve(node, code, root, labels, asker).await.map_err(not_changed)?;
        Ok(Response::new(v1::ApproveNodeResponse {}))
    }

    pub(super) async fn take_out(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let asker = asker(&request);
        let v1::RemoveNodeRequest { node, allow_removals } = request.into_inner();
        let node: NodeName = parsed("node", &node)?;
        let deed = Deed { asker, method: "RemoveNode", what: format!("node {node}") };
        let (basis, later, wireguard) = {
            let node = node.clone();
            let look = move |state: &ControllerState, _, _| {
                let wireguard = state.stored().wanted.wireguard_peers(&node).into_iter().cloned();
                (state.basis(), state.absent_peers(&node), wireguard.collect::<Vec<_>>())
            };
            self.controller.look(look).await?
        };
        let keepers = basis.keepers_of(&node);
        let mut losers = {
            let node = node.clone();
            tokio::task::spawn_blocking(move || basis.losers_of(&node)).await.map_err(|_| Stopping)?
        };
        if !allow_removals && !losers.is_empty() {
            return Err(wire::not_applied(ApplyError::NeedsConsent(losers)));
        }
        let removals_held = !keepers.is_empty();
        losers.extend(keepers);
        let removed =
            self.controller.change(Some(deed), move |draft, _| draft.remove_node(&node, &losers)).await;
        removed.map_err(not_changed)?;
        let generation = self.controller.look(|state, _, _| state.stored().generation()).await?;
        let later = later.into_iter().map(String::from).collect::<Vec<_>>().into_iter();
        let (later, more_later) = Room(MESSAGE / 2).fill(later, String::len);
        let (wireguard, more_wireguard) =
            Room(MESSAGE / 2).fill(wireguard.into_iter().map(String::from), String::len);
        Ok(Response::new(v1::RemoveNodeResponse {
            generation: Some(generation.into()),
            later,
            more_later,
            wireguard,
            more_wireguard,
            removals_held,
        }))
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Status> {
    for (key, value) in labels {
        check_label(key, value)
            .map_err(|invalid| fault("labels", invalid.describe("labels", &format!("{key}={value}"))))?;
    }
    Ok(())
}

/// A lifetime that may be.
pub(super) fn lifetime(asked: &pbjson_types::Duration) -> Result<Duration, Status> {
    let seconds = u64::try_from(asked.seconds).ok().filter(|seconds| *seconds > 0);
    let asked = seconds.map(Duration::from_secs).filter(|asked| *asked <= LONGEST);
    asked.ok_or_else(|| {
        fault("lifetime", "lifetime is to be from a second to a year; give another".to_owned())
    })
}

pub(super) fn fault(field: &str, words: String) -> Status {
    wire::refused(Code::InvalidArgument, vec![(field.to_owned(), words)])
}

/// A token without what makes it useful.
pub(super) fn token(id: &TokenId, token: &Token) -> v1::Token {
    v1::Token {
        id: id.to_string(),
        names: token.names.to_string(),
        labels: token.labels.clone(),
        expires: Some(timestamp(token.expires)),
        uses: token.uses,
        used: token.used,
        made_by: token.made_by.clone(),
    }
}

/// The hosts that wait for approval, and how many more there are than are told.
pub(super) fn waiting(petitions: &[Petition], trust: &Trust, now: Instant) -> (Vec<v1::WaitingHost>, u32) {
    let waiting = petitions.iter().take(WAITING).map(|petition| v1::WaitingHost {
        node: petition.node.to_string(),
        source: petition.source.to_string(),
        code: petition.code.to_string(),
        waits: Some(duration(now.saturating_duration_since(petition.since))),
        has_joined: trust.identities.contains_key(&petition.node),
    });
    (waiting.collect(), u32::try_from(petitions.len().saturating_sub(WAITING)).unwrap_or(u32::MAX))
}
