//! Who may join and who may steer: tokens, the nodes that have joined, operators. Pure: asked for something at a time,
//! it says what is to be stored, or why not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::audit::Deed;
use crate::proto::model::{NodeName, OperatorName};
use crate::proto::trust::{KeyId, NamePattern, Role, Secret, SecretHash, TokenId};

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// How long an agent's certificate holds. It is renewed when half of it is over.
pub const CERTIFICATE: Duration = DAY.saturating_mul(7);
/// How long after its certificate has expired a node may still renew it: so long can a controller be away.
pub const GRACE: Duration = DAY.saturating_mul(30);
/// How long an expired or used token is listed.
const LISTED: Duration = DAY.saturating_mul(30);
/// How many tokens there are at most.
const TOKENS: usize = 10_000;
/// How many nodes may join with one token at most.
pub const USES: u32 = 100_000;
/// How many nodes join at most.
const IDENTITIES: usize = 20_000;
/// How many operators there are at most.
const OPERATORS: usize = 10_000;

/// A join token, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Of its secret.
    pub hash: SecretHash,
    /// Which nodes it is for.
    pub names: NamePattern,
    /// What nodes get that join with it.
    pub labels: BTreeMap<String, String>,
    /// Until when it may be used, as time since the Unix epoch.
    pub expires: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
    /// How many have.
    pub used: u32,
    /// Who made it.
    pub made_by: String,
}

/// How a node came to be one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// With this token.
    Token(TokenId),
    /// This operator approved it.
    Approval(String),
    /// It came from a network of `--approve-any`.
    Network,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "with the token {id}"),
            Self::Approval(by) => write!(f, "approved by {by}"),
            Self::Network => f.write_str("from a network of --approve-any"),
        }
    }
}

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its agent's key.
    pub key: KeyId,
    /// What it is known to be; absent: what it says of itself.
    pub labels: Option<BTreeMap<String, String>>,
    /// How it joined.
    pub via: Via,
    /// When, as time since the Unix epoch.
    pub since: Duration,
    /// Until when its latest certificate holds.
    pub expires: Duration,
    /// What only its own host has shown, where an operator typed that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<[u8; 5]>,
}

/// Someone who may steer from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// What they may do.
    pub role: Role,
    /// Their key.
    pub key: KeyId,
    /// Until when their certificate holds, as time since the Unix epoch.
    pub expires: Duration,
    /// Who made them one.
    pub made_by: String,
}

/// All that is stored of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The tokens.
    pub tokens: BTreeMap<TokenId, Token>,
    /// The nodes that have joined.
    pub identities: BTreeMap<NodeName, Identity>,
    /// The operators.
    pub operators: BTreeMap<OperatorName, Operator>,
    /// Nodes that were removed, and have not joined again.
    pub removed: BTreeSet<NodeName>,
    /// Nodes that have joined, of which what is stored cannot be read: nobody else is one of them.
    pub damaged: BTreeSet<NodeName>,
}

/// What shows that a node may join.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A token.
    Token(TokenId, Secret),
    /// An operator has compared the codes.
    Approval {
        /// Who.
        by: String,
        /// What only the agent's host has shown.
        word: [u8; 5],
        /// What the node is to be.
        labels: BTreeMap<String, String>,
    },
    /// Where it comes from.
    Network,
}

/// Why something is refused. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// There is no such token, or its secret is another.
    #[error(
        "token {0}: it is not known here: it was revoked, or another controller has made it; `controller token create` makes one"
    )]
    UnknownToken(TokenId),
    /// It has expired.
    #[error("token {0}: it has expired; `controller token create` makes another")]
    ExpiredToken(TokenId),
    /// As many as may have joined with it.
    #[error(
        "token {0}: as many nodes as it was for have joined with it, {1}; `controller token create` makes another"
    )]
    UsedToken(TokenId, u32),
    /// It is for others.
    #[error(
        "token {token}: it is for nodes named {names}, and this one is {node}; name the node so with --name, or take another token"
    )]
    OtherName {
        /// Which token.
        token: TokenId,
        /// For whom it is.
        names: NamePattern,
        /// Who came.
        node: NodeName,
    },
    /// The node has joined already, with another key.
    #[error(
        "node {0}: it has joined already, with another key; give this host a name of its own with --name, or run \
         `controller node remove {0}` first"
    )]
    TakenName(NodeName),
    /// Another node has it but for capitals, which certificates do not tell apart.
    #[error(
        "node {0}: {1} has joined, whose name differs in capitals alone; give this host another name with --name"
    )]
    AlikeName(NodeName, NodeName),
    /// It was removed, and comes from a network in which that is all that it shows.
    #[error("node {0}: it was removed, and joins again only with a token or by approval")]
    RemovedName(NodeName),
    /// The node has not joined, or was removed.
    #[error(
        "node {0}: it has not joined, or was removed; start its agent with a token, or without one and approve it"
    )]
    UnknownNode(NodeName),
    /// Its certificate has expired for longer than [`GRACE`].
    #[error(
        "node {0}: its certificate has expired more than 30 days ago; run `agent leave` on it, then let it join again"
    )]
    TooLate(NodeName),
    /// No host that waits shows this code.
    #[error(
        "node {0}: no host that asks to be it shows this code; type what its agent prints on its own host, and where that \
         begins otherwise than the code here, somebody is between them"
    )]
    UnknownCode(NodeName),
    /// There is no such operator.
    #[error("operator {0}: there is none of this name; `controller admin list` has them")]
    UnknownOperator(OperatorName),
    /// There is one already.
    #[error(
        "operator {0}: there is one of this name; run `controller admin remove {0}` first, or choose another name"
    )]
    TakenOperator(OperatorName),
    /// There are too many of them.
    #[error("{0}")]
    TooMany(&'static str),
}

impl Trust {
    /// The token of this id and secret.
    ///
    /// # Errors
    /// Where there is none; whether the id or the secret is another's, is not told.
    pub fn token(&self, id: &TokenId, secret: &Secret) -> Result<&Token, Denial> {
        let token = self.tokens.get(id).filter(|token| token.hash.is_of(secret));
        token.ok_or_else(|| Denial::UnknownToken(id.clone()))
    }

    /// The node that has joined with this key.
    ///
    /// # Errors
    /// Where it has not.
    pub fn identity(&self, node: &NodeName, key: &KeyId) -> Result<&Identity, Denial> {
        let known = self.identities.get(node).filter(|known| known.key == *key);
        known.ok_or_else(|| Denial::UnknownNode(node.clone()))
    }
}

/// Something that is stored under a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A token.
    Token(TokenId),
    /// A node that has joined.
    Identity(NodeName),
    /// That a node was removed.
    Removed(NodeName),
    /// An operator.
    Operator(OperatorName),
}

/// What is stored, as it is to become.
#[derive(Debug, Clone)]
pub struct Draft {
    /// As it is to be.
    pub trust: Arc<Trust>,
    /// What of it differs from what is stored.
    pub touched: BTreeSet<Item>,
    /// The nodes that may lose most of their tunnels for it.
    pub consents: BTreeSet<NodeName>,
    /// What was done, in order.
    pub deeds: Vec<Deed>,
    /// How often anything was changed.
    edits: usize,
}

impl Draft {
    /// One in which all is as it is stored.
    pub fn new(stored: &Arc<Trust>) -> Self {
        Self {
            trust: Arc::clone(stored),
            touched: BTreeSet::new(),
            consents: BTreeSet::new(),
            deeds: Vec::new(),
            edits: 0,
        }
    }

    /// Lets a node join, whose agent has shown that it has `key`. A node that comes again with its key has joined
    /// already: where the answer was lost, it is given again.
    ///
    /// # Errors
    /// Why it may not.
    pub fn enrol(
        &mut self,
        node: &NodeName,
        key: KeyId,
        proof: Proof,
        wall: Duration,
    ) -> Result<Identity, Denial> {
        let known = self.trust.identities.get(node).map(|known| known.key);
        // Whoever has the key needs no proof again, unless it comes too late.
        if known == Some(key)
            && let Ok(mut identity) = self.renew(node, key, wall)
        {
            // The operator has typed it again, where it was wrong before, or wants other labels.
            if let Proof::Approval { by, word, labels } = proof {
                identity =
                    Identity { via: Via::Approval(by), word: Some(word), labels: Some(labels), ..identity };
                self.set_identity(node, identity.clone());
            }
            return Ok(identity);
        }
        let (via, labels, word) = match proof {
            Proof::Token(id, secret) => {
                let token = self.trust.token(&id, &secret)?;
                if !token.names.matches(node) {
                    let names = token.names.clone();
                    return Err(Denial::OtherName { token: id, names, node: node.clone() });
                }
                if wall >= token.expires {
                    return Err(Denial::ExpiredToken(id));
                }
                if token.used >= token.uses {
                    return Err(Denial::UsedToken(id, token.uses));
                }
                let labels = token.labels.clone();
                (Via::Token(id), Some(labels), None)
            }
            Proof::Approval { by, word, labels } => (Via::Approval(by), Some(labels), Some(word)),
            Proof::Network => (Via::Network, None, None),
        };
        if known.is_some_and(|known| known != key) || self.trust.damaged.contains(node) {
            return Err(Denial::TakenName(node.clone()));
        }
        let is_alike =
            |other: &&NodeName| *other != node && other.as_str().eq_ignore_ascii_case(node.as_str());
        if known.is_none()
            && let Some(other) = self.trust.identities.keys().find(is_alike)
        {
            return Err(Denial::AlikeName(node.clone(), other.clone()));
        }
        if matches!(via, Via::Network) && self.trust.removed.contains(node) {
            return Err(Denial::RemovedName(node.clone()));
        }
        if known.is_none() && self.trust.identities.len() >= IDENTITIES {
            return Err(Denial::TooMany(
                "20000 nodes have joined, and no more do; remove some with `controller node remove`",
            ));
        }
        if let Via::Token(id) = &via
            && let Some(token) = self.edit().tokens.get_mut(id)
        {
            token.used += 1;
            self.touched.insert(Item::Token(id.clone()));
        }
        let identity = Identity { key, labels, via, since: wall, expires: wall + CERTIFICATE, word };
        if self.trust.removed.contains(node) {
            self.edit().removed.remove(node);
            self.touched.insert(Item::Removed(node.clone()));
        }
        self.set_identity(node, identity.clone());
        Ok(identity)
    }

    /// Gives a node that has joined a new certificate, for the key that it has.
    ///
    /// # Errors
    /// Where it has not joined, was removed, or comes too late.
    pub fn renew(&mut self, node: &NodeName, key: KeyId, wall: Duration) -> Result<Identity, Denial> {
        let mut identity = self.trust.identity(node, &key)?.clone();
        if wall >= identity.expires + GRACE {
            return Err(Denial::TooLate(node.clone()));
        }
        let expires = wall + CERTIFICATE;
        // One that comes at once for another, whose answer was lost perhaps, costs no write.
        if expires > identity.expires + CERTIFICATE / 100 {
            identity.expires = expires;
            self.set_identity(node, identity.clone());
        }
        Ok(identity)
    }

    /// Takes a node out, though `losers` lose most of their tunnels for it. It joins again only as any other host does.
    ///
    /// # Errors
    /// Where it has not joined.
    pub fn remove_node(&mut self, node: &NodeName, losers: &BTreeSet<NodeName>) -> Result<(), Denial> {
        if !self.trust.identities.contains_key(node) {
            return Err(Denial::UnknownNode(node.clone()));
        }
        self.edit().identities.remove(node);
        self.edit().removed.insert(node.clone());
        self.touched.extend([Item::Identity(node.clone()), Item::Removed(node.clone())]);
        self.consents.extend(losers.iter().cloned());
        Ok(())
    }

    /// Makes a token, and forgets those that nobody can use for long.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn create_token(&mut self, id: TokenId, token: Token, wall: Duration) -> Result<(), Denial> {
        let gone: Vec<_> =
            self.trust.tokens.iter().filter(|(_, token)| wall >= token.expires + LISTED).collect();
        let gone: Vec<TokenId> = gone.into_iter().map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.edit().tokens.remove(&id);
            self.touched.insert(Item::Token(id));
        }
        if self.trust.tokens.len() >= TOKENS {
            return Err(Denial::TooMany(
                "there are 10000 tokens; revoke some with `controller token revoke`",
            ));
        }
        self.edit().tokens.insert(id.clone(), token);
        self.touched.insert(Item::Token(id));
        Ok(())
    }

    /// Makes a token useless. Those who joined with it stay.
    ///
    /// # Errors
    /// Where there is none.
    pub fn revoke_token(&mut self, id: &TokenId) -> Result<(), Denial> {
        if !self.trust.tokens.contains_key(id) {
            return Err(Denial::UnknownToken(id.clone()));
        }
        self.edit().tokens.remove(id);
        self.touched.insert(Item::Token(id.clone()));
        Ok(())
    }

    /// Makes someone an operator. The same again, as after a lost answer, is no fault.
    ///
    /// # Errors
    /// Where there is another of the name, or there are too many.
    pub fn create_operator(&mut self, name: &OperatorName, operator: Operator) -> Result<(), Denial> {
        match self.trust.operators.get(name) {
            Some(known) if (known.key, known.role) != (operator.key, operator.role) => {
                return Err(Denial::TakenOperator(name.clone()));
            }
            Some(_) => {}
            None if self.trust.operators.len() >= OPERATORS => {
                return Err(Denial::TooMany(
                    "there are 10000 operators; remove some with `controller admin remove`",
                ));
            }
            None => {}
        }
        self.edit().operators.insert(name.clone(), operator);
        self.touched.insert(Item::Operator(name.clone()));
        Ok(())
    }

    /// Takes an operator's rights.
    ///
    /// # Errors
    /// Where there is none.
    pub fn remove_operator(&mut self, name: &OperatorName) -> Result<(), Denial> {
        if !self.trust.operators.contains_key(name) {
            return Err(Denial::UnknownOperator(name.clone()));
        }
        self.edit().operators.remove(name);
        self.touched.insert(Item::Operator(name.clone()));
        Ok(())
    }

    /// Does something that is told as `deed` where it changes anything.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn attempt<T>(
        &mut self,
        deed: Option<&Deed>,
        work: impl FnOnce(&mut Self) -> Result<T, Denial>,
    ) -> Result<T, Denial> {
        let before = self.edits;
        let done = work(self)?;
        if self.edits > before {
            self.deeds.extend(deed.cloned());
        }
        Ok(done)
    }

    /// Has something told that was done outside the store.
    pub fn tell(&mut self, deed: Deed) {
        self.deeds.push(deed);
    }

    fn edit(&mut self) -> &mut Trust {
        self.edits += 1;
        Arc::make_mut(&mut self.trust)
    }

    fn set_identity(&mut self, node: &NodeName, identity: Identity) {
        self.edit().identities.insert(node.clone(), identity);
        self.touched.insert(Item::Identity(node.clone()));
    }
}

#[cfg(test)]
mod tests;
