//! The key by which the peers of encrypted tunnels know a host.

use std::fmt;
use std::io;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519;
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use crate::proto::model::{Invalid, PublicKey};

/// A Curve25519 private key (RFC 7748). Its memory is wiped when it goes.
pub struct PrivateKey {
    /// Where it is stays the same for as long as it is there: what is moved leaves a copy behind.
    secret: Box<Zeroizing<[u8; 32]>>,
    /// What it takes a multiplication to know.
    point: x25519::PublicKey,
}

impl PrivateKey {
    /// A new one.
    ///
    /// # Errors
    /// Where the kernel has no randomness, `getrandom(2)`.
    pub fn generate() -> io::Result<Self> {
        let mut secret = Box::new(Zeroizing::new([0; 32]));
        // A read of up to 256 bytes is whole.
        getrandom(&mut secret[..], GetRandomFlags::empty())?;
        Ok(Self::from(secret))
    }

    /// What others know of it.
    pub fn public(&self) -> PublicKey {
        self.point.to_bytes().into()
    }

    /// The key as `wg genkey` prints it: 44 characters of base64 (RFC 4648 section 4).
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&self.secret[..]))
    }

    /// To work with, and to be let go of soon.
    pub fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(**self.secret)
    }

    /// [`Self::public`], as the library has it.
    pub fn point(&self) -> &x25519::PublicKey {
        &self.point
    }
}

impl From<Box<Zeroizing<[u8; 32]>>> for PrivateKey {
    fn from(secret: Box<Zeroizing<[u8; 32]>>) -> Self {
        Self { point: x25519::PublicKey::from(&x25519::StaticSecret::from(**secret)), secret }
    }
}

impl FromStr for PrivateKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = STANDARD.decode(text).ok().map(Zeroizing::new);
        let bytes = bytes.filter(|bytes| bytes.len() == 32).ok_or_else(|| {
            Invalid::new("is no private key: not 32 bytes in base64", "give what `wg genkey` prints")
        })?;
        let mut secret = Box::new(Zeroizing::new([0; 32]));
        secret.copy_from_slice(&bytes);
        Ok(Self::from(secret))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alice's of RFC 7748 section 6.1.
    #[test]
    fn the_public_key_is_what_the_standard_says() {
        let bytes = |hex: &str| -> [u8; 32] {
            std::array::from_fn(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap())
        };
        let private = bytes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let public = bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        let key: PrivateKey = STANDARD.encode(private).parse().unwrap();
        assert_eq!(key.public(), PublicKey::from(public));
    }

    #[test]
    fn is_read_as_it_is_written_and_never_shown() {
        let key = PrivateKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!(text.len(), 44);
        assert_eq!(text.parse::<PrivateKey>().unwrap().public(), key.public());
        assert_ne!(PrivateKey::generate().unwrap().public(), key.public());
        assert!(!format!("{key:?}").contains(text.as_str()));
        for text in ["", "AAAA", &text[1..], &format!("{}A", *text)] {
            assert!(text.parse::<PrivateKey>().is_err(), "{text}");
        }
    }
}
