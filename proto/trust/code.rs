//! Approval codes: by which an operator who sees both ends knows that nobody is between them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::key::KeyId;
use crate::proto::model::Invalid;

/// The characters of codes: Crockford's base 32, without I, L, O and U.
const CHARACTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// How many characters a group has.
const GROUP: usize = 4;
/// How many bytes of the hash a head has: 80 bits, so that nobody finds a key of a false root by trying that gives the
/// same one as the true root's.
const HEAD: usize = 10;
/// How many bytes a word has.
const WORD: usize = 5;

/// What agent and controller both print: a hash of the agent's key and of the root's, as each sees it. Where somebody
/// is between them they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CodeHead([u8; HEAD]);

impl CodeHead {
    /// Of an agent's key and the root's to which the controller's certificate leads.
    pub fn of(agent: &KeyId, root: &KeyId) -> Self {
        let hash = Sha256::new()
            .chain_update(b"tunmesh approval 1")
            .chain_update(agent.as_bytes())
            .chain_update(root.as_bytes())
            .finalize();
        let mut head = [0; HEAD];
        head.iter_mut().zip(hash).for_each(|(byte, of)| *byte = of);
        Self(head)
    }
}

/// What only the agent's own screen shows, and whoever is told by an operator: a controller that knows it has been told
/// by someone who sees the agent.
#[derive(Clone, Copy)]
pub struct Word([u8; WORD]);

impl Word {
    /// The word of whoever has this secret, for those who see this root: one that was told to one controller is none to
    /// another. Nobody finds the secret from it.
    pub fn of(secret: &[u8], root: &KeyId) -> Self {
        let hash = Sha256::new()
            .chain_update(b"tunmesh word 1")
            .chain_update(root.as_bytes())
            .chain_update(secret)
            .finalize();
        let mut word = [0; WORD];
        word.iter_mut().zip(hash).for_each(|(byte, of)| *byte = of);
        Self(word)
    }

    /// For the wire.
    pub fn as_bytes(&self) -> &[u8; WORD] {
        &self.0
    }

    /// From the wire; `None`: it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Whether both are the same, in a time that does not depend on them.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Word(…)")
    }
}

/// All of an approval code, as the agent prints it.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// What the controller prints, too.
    pub head: CodeHead,
    /// The rest.
    pub word: Word,
}

impl Code {
    /// All of it, for the agent's own screen.
    pub fn reveal(&self) -> String {
        format!("{}-{}", self.head, groups(&self.word.0))
    }
}

impl fmt::Display for CodeHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&groups(&self.0))
    }
}

/// Bytes, five at a time, in groups with a dash between.
fn groups(bytes: &[u8]) -> String {
    let mut text = String::new();
    for five in bytes.chunks(5) {
        let bits = five.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for place in (0..8).rev() {
            if place % GROUP == GROUP - 1 && !text.is_empty() {
                text.push('-');
            }
            text.push(char::from(CHARACTERS[(bits >> (5 * place) & 31) as usize]));
        }
    }
    text
}

/// The bytes of a text in groups, whatever marks are between; `None`: a character is none of a code's. As Crockford
/// reads them, small letters are large ones, and I, L and O are the digits that they look like.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u64, 0);
    for c in text.chars().filter(|c| *c != '-' && !c.is_whitespace()) {
        let c = match c.to_ascii_uppercase() {
            'I' | 'L' => '1',
            'O' => '0',
            c => c,
        };
        let value = CHARACTERS.iter().position(|known| char::from(*known) == c)?;
        bits = bits << 5 | value as u64;
        count += 1;
        if count == 8 {
            bytes.extend_from_slice(&bits.to_be_bytes()[3..]);
            (bits, count) = (0, 0);
        }
    }
    (count == 0).then_some(bytes)
}

impl FromStr for Code {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let remedy = "give the 24 characters that the agent prints on its own host";
        let invalid = |problem: &str| Invalid::new(problem, remedy);
        let bytes = bytes(text).ok_or_else(|| invalid("is no approval code"))?;
        let Some((head, word)) = bytes.split_at_checked(HEAD) else { return Err(invalid("is too short")) };
        match (head.try_into(), Word::from_bytes(word)) {
            (Ok(head), Some(word)) => Ok(Self { head: CodeHead(head), word }),
            (Ok(_) | Err(_), _) if word.is_empty() => {
                Err(invalid("is what the controller shows, not all of it"))
            }
            (Ok(_) | Err(_), _) => Err(invalid("has another length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(agent: &[u8], root: &[u8]) -> CodeHead {
        CodeHead::of(&KeyId::of(agent), &KeyId::of(root))
    }

    #[test]
    fn another_key_on_either_side_is_another_code() {
        let heads = [head(b"a", b"r"), head(b"b", b"r"), head(b"a", b"s"), head(b"r", b"a")];
        for (place, one) in heads.iter().enumerate() {
            assert!(heads[place + 1..].iter().all(|other| one != other));
        }
        assert_eq!(head(b"a", b"r"), head(b"a", b"r"));
    }

    proptest! {
        #[test]
        fn a_code_is_read_as_it_is_written_and_as_it_is_typed(agent: [u8; 4], bits: u64) {
            let code = Code { head: head(&agent, b"root"), word: Word::of(&bits.to_be_bytes(), &KeyId::of(b"root")) };
            let written = code.reveal();
            prop_assert_eq!(written.len(), 29);
            let typed = [
                written.clone(),
                written.to_lowercase(),
                written.replace('-', ""),
                written.replace('-', " "),
                written.replace('0', "o").replace('1', "l"),
            ];
            for text in typed {
                let read: Code = text.parse().unwrap();
                prop_assert!(read.head == code.head && read.word.is(&code.word));
            }
        }

        #[test]
        fn another_word_is_another(one: u64, other: u64) {
            let word = |secret: u64| Word::of(&secret.to_be_bytes(), &KeyId::of(b"root"));
            let elsewhere = Word::of(&one.to_be_bytes(), &KeyId::of(b"false root"));
            prop_assert!(!word(one).is(&elsewhere));
            prop_assert_eq!(word(one).is(&word(other)), one == other);
            prop_assert!(word(one).is(&word(one)));
        }
    }

    #[test]
    fn what_is_no_code_is_refused_in_words() {
        let shown = head(b"a", b"r").to_string();
        for (text, word) in [
            ("", "too short"),
            ("7K3M", "no approval code"),
            ("UUUU-UUUU", "no approval code"),
            (shown.as_str(), "what the controller shows"),
            (&format!("{shown}-0000-0000-0000-0000"), "another length"),
        ] {
            let refusal = text.parse::<Code>().unwrap_err().to_string();
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_word_is_not_shown() {
        let code = Code { head: head(b"a", b"r"), word: Word::of(b"secret", &KeyId::of(b"r")) };
        let (all, head) = (code.reveal(), code.head.to_string());
        let shown = format!("{code:?}");
        assert!(all.starts_with(&head) && !shown.contains(&all[head.len() + 1..]), "{shown}");
        assert!(shown.contains("Word(…)"), "{shown}");
    }
}
