//! Who asks, and what they may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::key::KeyId;
use crate::proto::model::{Invalid, NodeName, OperatorName};

/// What an operator may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at everything.
    Viewer,
    /// Say which meshes are wanted.
    Operator,
    /// Say who may join and who may steer.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| Invalid::new("is no role", "use viewer, operator or admin"))
    }
}

/// What belongs to somebody who may steer from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Their key.
    pub key: KeyId,
    /// What they may do.
    pub role: Role,
}

/// Whom a certificate names. It stands in the certificate as a URI (RFC 5280 section 4.2.1.6), of the form of a SPIFFE
/// ID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// An agent.
    Agent(NodeName),
    /// Someone who operates the mesh, and as what.
    Operator(Role, OperatorName),
}

const AGENT: &str = "spiffe://tunmesh/agent/";
const OPERATOR: &str = "spiffe://tunmesh/operator/";

impl Principal {
    /// The URI.
    pub fn uri(&self) -> String {
        match self {
            Self::Agent(node) => format!("{AGENT}{node}"),
            Self::Operator(role, name) => format!("{OPERATOR}{role}/{name}"),
        }
    }

    /// Whom a URI names; `None`: nobody of ours.
    pub fn from_uri(uri: &str) -> Option<Self> {
        if let Some(node) = uri.strip_prefix(AGENT) {
            return Some(Self::Agent(node.parse().ok()?));
        }
        let (role, name) = uri.strip_prefix(OPERATOR)?.split_once('/')?;
        Some(Self::Operator(role.parse().ok()?, name.parse().ok()?))
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent {node}"),
            Self::Operator(role, name) => write!(f, "{role} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_are_read_as_they_are_written() {
        let agent = Principal::Agent("web-1.example".parse().unwrap());
        assert_eq!(Principal::from_uri(&agent.uri()), Some(agent));
        for role in Role::ALL {
            let operator = Principal::Operator(role, "anna".parse().unwrap());
            assert_eq!(Principal::from_uri(&operator.uri()), Some(operator));
        }
    }

    #[test]
    fn other_uris_name_nobody() {
        for uri in [
            "",
            "spiffe://tunmesh/agent/",
            "spiffe://tunmesh/agent/a/b",
            "spiffe://other/agent/a",
            "spiffe://tunmesh/operator/anna",
            "spiffe://tunmesh/operator/root/anna",
            "spiffe://tunmesh/operator/admin/",
            "spiffe://tunmesh/operator/admin/a/b",
            "SPIFFE://tunmesh/agent/a",
        ] {
            assert_eq!(Principal::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn each_role_may_what_those_before_it_may() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        assert!("root".parse::<Role>().is_err());
    }
}
