//! Who calls the controller: over TCP by what the connection has shown, on its socket by what the kernel says.

use std::time::Duration;

use tonic::codegen::http::Extensions;

use crate::controller::runtime::ControllerHandle;
use crate::controller::trust::Trust;
use crate::proto::host::accept::{Peer, TurnedAway};
use crate::proto::host::access::Callers;
use crate::proto::host::clock::{now, since_epoch};
use crate::proto::host::local_user;
use crate::proto::host::tls::{Shown, Unbelieved};
use crate::proto::model::NodeName;
use crate::proto::trust::{Caller, Principal, Refused, need};

/// Those who have dialled.
#[derive(Debug, Clone)]
pub struct Dialled(pub ControllerHandle);

impl Callers for Dialled {
    fn caller(&self, extensions: &Extensions) -> Caller {
        match extensions.get::<Peer>().map(|peer| &peer.shown) {
            Some(None) => Caller::Claimant,
            Some(Some(Ok(shown))) => judge(shown, &self.0.trust(), since_epoch()),
            Some(Some(Err(unbelieved))) => Caller::Stranger(words(*unbelieved)),
            None => Caller::Stranger("the connection has no address".to_owned()),
        }
    }

    fn refused(&self, extensions: &Extensions, caller: &Caller, method: &str, refused: &Refused) {
        // Whoever goes on on one connection is told each time, and operators now and then.
        let Some(peer) = extensions.get::<Peer>().filter(|peer| peer.begin(now()).is_ok()) else { return };
        tell(&self.0, &format!("from {}", peer.source), caller, method, refused);
    }
}

impl TurnedAway for Dialled {
    fn turned_away(&self, words: String) {
        self.0.refused(None, words);
    }
}

/// Those who use the socket.
#[derive(Debug, Clone)]
pub struct Local(pub ControllerHandle);

impl Callers for Local {
    fn caller(&self, extensions: &Extensions) -> Caller {
        local_user::caller(extensions)
    }

    fn refused(&self, _: &Extensions, caller: &Caller, method: &str, refused: &Refused) {
        tell(&self.0, "on the socket", caller, method, refused);
    }
}

/// Whom a certificate that is believed shows to call, by what is stored of it now.
fn judge(shown: &Shown, trust: &Trust, wall: Duration) -> Caller {
    match &shown.principal {
        Principal::Agent(node) => match trust.identities.get(node) {
            // What counts is the latest certificate of the key: a connection outlives the one that it began with.
            Some(known) if known.key == shown.key && wall < known.expires => Caller::Agent(node.clone()),
            Some(known) if known.key == shown.key => Caller::Stranger(words(Unbelieved::Expired)),
            Some(_) | None => Caller::Stranger(format!(
                "node {node}: it has not joined here with this key, or was removed; run `agent leave` on it, then let it \
                 join with a token or by approval"
            )),
        },
        Principal::Operator(_, name) => match trust.operators.get(name) {
            Some(known) if known.key == shown.key && wall < shown.not_after => {
                Caller::Operator(known.role, name.to_string())
            }
            Some(known) if known.key == shown.key => Caller::Stranger(words(Unbelieved::Expired)),
            Some(_) | None => Caller::Stranger(format!(
                "operator {name}: there is none with this key, or no more; let an admin make one with `controller admin \
                 create`"
            )),
        },
    }
}

fn words(unbelieved: Unbelieved) -> String {
    let remedy = match unbelieved {
        Unbelieved::Nothing => "join with a token or by approval, or give --identity FILE",
        Unbelieved::Foreign => "this controller did not make it",
        Unbelieved::Expired => "an agent renews its own; an operator needs another from an admin",
        Unbelieved::Nobody => "use one that this controller made",
    };
    format!("{unbelieved}: {remedy}")
}

fn tell(controller: &ControllerHandle, place: &str, caller: &Caller, method: &str, refused: &Refused) {
    let node: Option<NodeName> = match caller {
        Caller::Agent(node) => Some(node.clone()),
        Caller::Stranger(_) | Caller::Claimant | Caller::Operator(..) => None,
    };
    // What is no method of ours may be any words.
    let known = need(method).and_then(|_| method.rsplit('/').next());
    let method = known.unwrap_or("an unknown method");
    controller.refused(node, format!("{method} {place}: {}", refused.words));
}
