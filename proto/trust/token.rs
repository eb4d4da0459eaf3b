//! Join tokens: `tm1.<id>.<secret>.<root pin>`.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::key::KeyId;
use crate::proto::model::{Invalid, NodeName};

/// What a token begins with: the form of what follows.
const FORM: &str = "tm1";
const REMEDY: &str = "give all of what `controller token create` has printed: tm1.<id>.<secret>.<pin>";

/// Names a token. No secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TokenId {
    /// One made of 50 of these random bits.
    pub fn random(mut bits: u64) -> Self {
        const CHARACTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let characters = (0..10).map(|_| {
            let character = CHARACTERS[(bits % 32) as usize];
            bits /= 32;
            char::from(character)
        });
        Self(characters.collect())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let is_id = text.len() == 10 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        is_id.then(|| Self(text.to_owned())).ok_or_else(|| {
            Invalid::new("is no token's id", "use one of those that `controller token list` prints")
        })
    }
}

impl TryFrom<String> for TokenId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.0
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What whoever has a token knows: 128 random bits. It is shown nowhere but in the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// One made of these random bits.
    pub fn random(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    /// What is kept of it. A hash as fast as this one will do: nobody tries 2^128 secrets.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }

    /// For the wire.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// From the wire; `None`: it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What is kept of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// Whether it is the hash of `secret`, in a time that does not depend on either.
    pub fn is_of(&self, secret: &Secret) -> bool {
        self.0.ct_eq(&secret.hash().0).into()
    }
}

/// Lets a host join, and tells it which controller is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token it is.
    pub id: TokenId,
    /// What shows that one has it.
    pub secret: Secret,
    /// The key of the root to which the controller's certificate leads.
    pub pin: KeyId,
}

impl JoinToken {
    /// All of it, to be given to a host. Whoever reads it can join.
    pub fn reveal(&self) -> String {
        format!("{FORM}.{}.{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret.0), self.pin)
    }
}

impl FromStr for JoinToken {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The words never have a part of it.
        let invalid = |problem: &str| Invalid::new(problem, REMEDY);
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [form, id, secret, pin] = parts[..] else { return Err(invalid("is no token")) };
        if form != FORM {
            return Err(invalid("is no token of a form that this release knows"));
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|bytes| Secret::from_bytes(&bytes));
        Ok(Self {
            id: id.parse().map_err(|_| invalid("has no id"))?,
            secret: secret.ok_or_else(|| invalid("has no secret"))?,
            pin: pin.parse().map_err(|_| invalid("has no pin"))?,
        })
    }
}

/// Which nodes a token is for: a name in which each `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

impl NamePattern {
    /// One for all nodes.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is for this node.
    pub fn matches(&self, node: &NodeName) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = node.as_str().strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            // The earliest place leaves the most for those that follow.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for NamePattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Each `*` may stand for nothing, and a name that begins with one for a letter.
        let sample = text.replace('*', "a");
        let checked = sample.parse::<NodeName>().map(|_| Self(text.to_owned()));
        checked.map_err(|Invalid { problem, .. }| {
            Invalid::new(problem, "give a node's name, with * for any characters, as web-*")
        })
    }
}

impl TryFrom<String> for NamePattern {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(id: u64, secret: u128) -> JoinToken {
        JoinToken { id: TokenId::random(id), secret: Secret::random(secret), pin: KeyId::of(b"root") }
    }

    proptest! {
        #[test]
        fn a_token_is_read_as_it_is_written(id: u64, secret: u128) {
            let token = token(id, secret);
            prop_assert_eq!(token.reveal().parse::<JoinToken>(), Ok(token.clone()));
            prop_assert_eq!(format!(" {}\n", token.reveal()).parse::<JoinToken>(), Ok(token));
        }

        #[test]
        fn what_is_no_token_is_refused_without_being_shown(text in "[ -~]{0,200}") {
            let Err(refusal) = text.parse::<JoinToken>() else { return Ok(()) };
            prop_assert!(text.len() < 8 || !refusal.to_string().contains(&text));
        }

        /// The pattern by trying every way.
        #[test]
        fn patterns_match_as_the_naive_matcher_says(pattern in "[ab*]{1,6}", name in "[ab]{1,6}") {
            fn naive(pattern: &[u8], name: &[u8]) -> bool {
                match pattern.split_first() {
                    None => name.is_empty(),
                    Some((b'*', rest)) => (0..=name.len()).any(|at| naive(rest, &name[at..])),
                    Some((c, rest)) => name.first() == Some(c) && naive(rest, &name[1..]),
                }
            }
            let matches = pattern.parse::<NamePattern>().unwrap().matches(&name.parse().unwrap());
            prop_assert_eq!(matches, naive(pattern.as_bytes(), name.as_bytes()));
        }
    }

    #[test]
    fn parts_of_a_token_are_no_token() {
        let whole = token(7, 8).reveal();
        for text in [
            "",
            "tm1",
            "tm1...",
            &whole[1..],
            &whole[..whole.len() - 1],
            &whole.replacen("tm1", "tm2", 1),
            &format!("{whole}.more"),
            &whole.replacen('.', "", 1),
        ] {
            assert!(text.parse::<JoinToken>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_known_by_its_hash_and_never_shown() {
        let (one, other) = (Secret::random(1), Secret::random(2));
        assert!(one.hash().is_of(&one) && !one.hash().is_of(&other));
        let token = JoinToken { id: TokenId::random(1), secret: one, pin: KeyId::of(b"root") };
        let secret = token.reveal().split('.').nth(2).unwrap().to_owned();
        assert!(!format!("{token:?}").contains(&secret), "{token:?}");
    }

    #[test]
    fn patterns_are_names() {
        for text in ["", "-a", "a b", "a/b", "ä*"] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
        assert!(NamePattern::any().matches(&"x".parse().unwrap()));
    }
}
