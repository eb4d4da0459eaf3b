//! The name of a plan, by which it is applied.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::Operations;
use crate::controller::mesh::Mesh;
use crate::proto::model::Invalid;

/// Names a plan: when it was made, and all that it does. In words `4-25e281cac04d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlanHash {
    /// The store's revision by which it was made.
    pub revision: u64,
    content: [u8; 6],
}

impl PlanHash {
    /// The hash of all that a plan made at `revision` rests on: the versions of its mesh, and what happens on the nodes.
    pub(super) fn of(revision: u64, versions: [Option<&Mesh>; 2], operations: &Operations) -> Self {
        let mut hash = Sha256::new();
        for mesh in versions {
            // Its keys are texts, and so it has a JSON form.
            hash.update(serde_json::to_string(&mesh).unwrap_or_default());
            hash.update([0]);
        }
        operations.hash(&mut hash);
        let mut content = [0; 6];
        content.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self { revision, content }
    }

    /// Whether two plans for a mesh say the same, whenever they were made.
    pub fn is_same_plan(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.revision)?;
        self.content.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for PlanHash {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let (revision, hash) = text.split_once('-')?;
            let is_hash = hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            let bits = is_hash.then(|| u64::from_str_radix(hash, 16).ok())??;
            let [_, _, content @ ..] = bits.to_be_bytes();
            Some(Self { revision: revision.parse().ok()?, content })
        };
        let remedy = "give what `controller plan` says behind \"plan\" in its last line, as 4-25e281cac04d";
        parse().ok_or_else(|| Invalid::new("is no hash of a plan", remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_hash_are_read_as_it() {
        let hash = PlanHash { revision: 4, content: [0, 0x25, 0xe2, 0x81, 0xca, 0xff] };
        assert_eq!(hash.to_string(), "4-0025e281caff");
        assert_eq!("4-0025e281caff".parse(), Ok(hash));
        for text in [
            "",
            "xyz",
            "4",
            "4-",
            "-0025e281caff",
            "4-0025e281caf",
            "4-0025e281caff0",
            "4-+025e281caff",
            "4-0025e281cafg",
        ] {
            assert!(text.parse::<PlanHash>().is_err(), "{text}");
        }
    }
}
