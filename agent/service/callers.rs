//! Who calls TunnelService: on its socket by what the kernel says, on a loopback address anybody of this host, and from
//! elsewhere by the certificate that was shown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::codegen::http::Extensions;

use crate::agent::operators::Operators;
use crate::proto::host::accept::{Peer, TurnedAway};
use crate::proto::host::access::Callers;
use crate::proto::host::clock::{now, since_epoch};
use crate::proto::host::local_user;
use crate::proto::host::tls::{Shown, Unbelieved};
use crate::proto::rate::Seldom;
use crate::proto::trust::{Caller, Principal, Refused, Role, need};

/// How often one log line about refused calls is written.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where calls come in.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the Unix socket.
    Socket,
    /// On a loopback address, in plain text.
    Loopback,
    /// On another address, over TLS, where these are heeded.
    Network(Arc<Operators>),
}

/// Those who call in one place.
#[derive(Debug, Clone)]
pub struct Calling {
    place: Place,
    refused: Arc<Mutex<Seldom>>,
}

impl Calling {
    /// Those who call there.
    pub fn at(place: Place) -> Self {
        Self { place, refused: Arc::default() }
    }

    /// Whether they come from elsewhere.
    pub fn is_network(&self) -> bool {
        matches!(self.place, Place::Network(_))
    }
}

impl Callers for Calling {
    fn caller(&self, extensions: &Extensions) -> Caller {
        match &self.place {
            Place::Socket => local_user::caller(extensions),
            Place::Loopback => Caller::Operator(Role::Admin, "a user of this host".to_owned()),
            Place::Network(operators) => match extensions.get::<Peer>().map(|peer| &peer.shown) {
                Some(Some(Ok(shown))) => judge(shown, operators, since_epoch()),
                Some(Some(Err(unbelieved))) => Caller::Stranger(words(*unbelieved)),
                Some(None) | None => Caller::Stranger(words(Unbelieved::Nothing)),
            },
        }
    }

    fn refused(&self, extensions: &Extensions, _: &Caller, method: &str, refused: &Refused) {
        let mut seldom = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = seldom.take(LOG_EVERY, now()) {
            // What is no method of ours may be any words.
            let method = need(method).map_or("unknown", |_| method);
            let from = extensions.get::<Peer>().map(|peer| peer.source);
            tracing::warn!(method, ?from, why = refused.words, count, "a call was refused");
        }
    }
}

impl TurnedAway for Calling {
    /// There is a line in the log already.
    fn turned_away(&self, _: String) {}
}

/// Whom a certificate that is believed shows to call, by what the controller has said of it last.
fn judge(shown: &Shown, operators: &Operators, wall: Duration) -> Caller {
    if wall >= shown.not_after {
        return Caller::Stranger(words(Unbelieved::Expired));
    }
    match &shown.principal {
        Principal::Agent(node) => Caller::Agent(node.clone()),
        Principal::Operator(_, name) => match operators.rights(name).filter(|rights| rights.key == shown.key)
        {
            Some(rights) => Caller::Operator(rights.role, name.to_string()),
            None => Caller::Stranger(format!(
                "operator {name}: the controller of this agent knows none with this key, or has not said so yet; let an \
                 admin make one with `controller admin create`"
            )),
        },
    }
}

fn words(unbelieved: Unbelieved) -> String {
    let remedy = match unbelieved {
        Unbelieved::Nothing => "show that of an operator, which `controller admin create` makes",
        Unbelieved::Foreign => "this agent has joined another",
        Unbelieved::Expired => "let an admin make another with `controller admin create`",
        Unbelieved::Nobody => "show that of an operator of this mesh",
    };
    format!("{unbelieved}: {remedy}")
}
