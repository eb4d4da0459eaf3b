//! Where a peer is, of which more than one place may be known.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Host, Invalid, Remote};

/// Where a peer is reached: one place or more, each once, the preferred first. In words they stand behind each other
/// with commas. One alone is kept as a text, several as a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct Remotes {
    first: Remote,
    others: Vec<Remote>,
}

impl Remotes {
    /// The most places of one peer: each takes its time until it is known whether it answers.
    pub const MOST: usize = 4;

    /// Of places in the order of preference; which of them is at fault first is said with its position.
    ///
    /// # Errors
    /// The first of [`Self::faults`], or that there is none.
    pub fn new(remotes: Vec<Remote>) -> Result<Self, (usize, Invalid)> {
        if let Some(fault) = Self::faults(&remotes).into_iter().next() {
            return Err(fault);
        }
        let mut remotes = remotes.into_iter();
        match remotes.next() {
            Some(first) => Ok(Self { first, others: remotes.collect() }),
            None => Err((
                0,
                Invalid::new("is empty", "leave it out, or give an address or a host name, as 172.100.1.2"),
            )),
        }
    }

    /// What is wrong with places beside each other, by position: what is no host, what stands twice, and the first of those
    /// that are more than [`Self::MOST`].
    pub fn faults(remotes: &[Remote]) -> Vec<(usize, Invalid)> {
        let mut faults = Vec::new();
        for (position, remote) in remotes.iter().enumerate() {
            if position >= Self::MOST {
                faults.push((
                    position,
                    Invalid::new("is one too many", format!("give at most {}", Self::MOST)),
                ));
                break;
            }
            if matches!(&remote.host, Host::Name(name) if name == "none") {
                let remedy =
                    "leave it out; an agent that is reached nowhere is started with --endpoint none alone";
                faults.push((position, Invalid::new("is no host", remedy)));
            } else if remotes.iter().take(position).any(|other| other == remote) {
                faults.push((position, Invalid::new("stands twice", "give it once")));
            }
        }
        faults
    }

    /// The preferred one.
    pub fn first(&self) -> &Remote {
        &self.first
    }

    /// The others, in the order of preference.
    pub fn others(&self) -> &[Remote] {
        &self.others
    }

    /// All, the preferred first.
    pub fn iter(&self) -> impl Iterator<Item = &Remote> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// The same with a port where they name none. Of those that are the same then, the first stays.
    pub fn with_port(&self, port: u16) -> Self {
        let with_port =
            |remote: &Remote| Remote { host: remote.host.clone(), port: remote.port.or(Some(port)) };
        let mut all = Self::from(with_port(&self.first));
        for other in self.others.iter().map(with_port) {
            if all.iter().all(|known| *known != other) {
                all.others.push(other);
            }
        }
        all
    }
}

impl From<Remote> for Remotes {
    fn from(remote: Remote) -> Self {
        Self { first: remote, others: Vec::new() }
    }
}

impl FromStr for Remotes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let remotes = text.split(',').map(|remote| remote.trim().parse()).collect::<Result<_, Invalid>>()?;
        Self::new(remotes).map_err(|(_, fault)| fault)
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first().fmt(f)?;
        self.others().iter().try_for_each(|other| write!(f, ", {other}"))
    }
}

/// One alone as a text, several as a list.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    One(Remote),
    More(Vec<Remote>),
}

impl TryFrom<Form> for Remotes {
    type Error = Invalid;

    fn try_from(form: Form) -> Result<Self, Invalid> {
        match form {
            Form::One(remote) => Ok(remote.into()),
            Form::More(remotes) => Self::new(remotes).map_err(|(_, fault)| fault),
        }
    }
}

impl From<Remotes> for Form {
    fn from(Remotes { first, mut others }: Remotes) -> Self {
        if others.is_empty() {
            return Self::One(first);
        }
        others.insert(0, first);
        Self::More(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remotes(text: &str) -> Remotes {
        text.parse().unwrap()
    }

    #[test]
    fn one_is_kept_as_it_was_before_there_could_be_more() {
        for text in ["172.100.1.2", "[fd00::2]:5000", "minion-2:6000"] {
            let json = format!("{text:?}");
            assert_eq!(serde_json::to_string(&remotes(text)).unwrap(), json);
            assert_eq!(serde_json::from_str::<Remotes>(&json).unwrap(), remotes(text));
            assert_eq!(remotes(text).to_string(), text);
        }
    }

    #[test]
    fn several_keep_their_order() {
        let several = remotes("172.100.2.2, minion-2:6000,172.100.1.2");
        assert_eq!(several.to_string(), "172.100.2.2, minion-2:6000, 172.100.1.2");
        assert_eq!(several.first(), &"172.100.2.2".parse().unwrap());
        assert_eq!(several.others().len(), 2);
        let json = serde_json::to_string(&several).unwrap();
        assert_eq!(json, r#"["172.100.2.2","minion-2:6000","172.100.1.2"]"#);
        assert_eq!(serde_json::from_str::<Remotes>(&json).unwrap(), several);
    }

    #[test]
    fn those_that_cannot_be_are_refused() {
        for (text, words) in [
            ("", "is neither an address nor a host name"),
            ("a,", "is neither an address nor a host name"),
            ("a,b,A", "stands twice; give it once"),
            ("a,b,c,d,e", "is one too many; give at most 4"),
            ("a,0.0.0.0", "is no host's address"),
            ("none", "is no host; leave it out"),
            ("none,172.100.1.2", "is no host; leave it out"),
        ] {
            let fault = text.parse::<Remotes>().unwrap_err().to_string();
            assert!(fault.contains(words), "{text}: {fault}");
        }
        assert!(serde_json::from_str::<Remotes>("[]").is_err());
    }

    #[test]
    fn a_port_that_is_not_named_makes_two_into_one() {
        assert_eq!(remotes("a, b:6000, a:5000").with_port(5000), remotes("a:5000, b:6000"));
    }
}
