//! Names of what a mesh has, and labels of nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Invalid;

const NAME_CHARACTERS: &str = "use letters, digits, '.', '_' and '-', and begin with a letter or digit";

fn check_name(text: &str, longest: usize) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("is empty", format!("give a name of 1 to {longest} bytes")));
    }
    if text.len() > longest {
        return Err(Invalid::new(
            format!("is {} bytes long", text.len()),
            format!("use at most {longest} bytes"),
        ));
    }
    if let Some(c) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        return Err(Invalid::new(format!("has the character {c:?}"), NAME_CHARACTERS));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(Invalid::new("begins with a mark", NAME_CHARACTERS));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $longest:expr, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The most bytes that a name of this kind has.
            pub const LONGEST: usize = $longest;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                check_name(text, Self::LONGEST)?;
                let reserved: &[&str] = &$reserved;
                if reserved.contains(&text) {
                    return Err(Invalid::new("is a name that the kernel keeps for itself", "use another"));
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A tunnel's name, unique on its agent. Long enough for a mesh and a node of it, with a dot between.
    TunnelName,
    MeshName::LONGEST + 1 + NodeName::LONGEST,
    []
);
name_type!(
    /// The name of a host of the mesh, by default its host name.
    NodeName,
    63,
    []
);
name_type!(
    /// The name of someone who operates the mesh.
    OperatorName,
    63,
    []
);
name_type!(
    /// The name of a mesh, and by default of its device on every node.
    MeshName,
    15,
    ["all", "default"]
);
name_type!(
    /// A network interface's name: `IFNAMSIZ` of `linux/if.h` is 16 with the closing zero. `all` and `default` mean
    /// every and any interface below `/proc/sys/net`.
    DeviceName,
    15,
    ["all", "default"]
);

/// Refuses what cannot be a node's label: a key and a value of at most 63 letters, digits, '.', '_', '-' and '/'; the
/// value may be empty.
pub fn check_label(key: &str, value: &str) -> Result<(), Invalid> {
    let is_word = |text: &str| {
        text.len() <= NodeName::LONGEST
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
    };
    if key.is_empty() || !is_word(key) || !is_word(value) { Err(no_label()) } else { Ok(()) }
}

/// Parses a label: `role=web`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_label(text: &str) -> Result<(String, String), Invalid> {
    let (key, value) = text.split_once('=').ok_or_else(no_label)?;
    check_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn no_label() -> Invalid {
    const FORM: &str =
        "write a label as role=web, in at most 63 letters, digits, '.', '_', '-' and '/' on each side";
    Invalid::new("is not a label", FORM)
}
