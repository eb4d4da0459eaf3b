//! Who is who: names of keys, join tokens, approval codes and roles.

mod access;
mod code;
mod key;
mod role;
mod token;

pub use access::{Asker, Caller, METHODS, Need, Refused, need};
pub use code::{Code, CodeHead, Word};
pub use key::KeyId;
pub use role::{Principal, Rights, Role};
pub use token::{JoinToken, NamePattern, Secret, SecretHash, TokenId};
