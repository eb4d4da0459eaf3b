//! What each method of each service needs of whoever calls it.

use super::role::Role;
use crate::proto::model::NodeName;

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it is how an identity is had.
    Nothing,
    /// To be an agent.
    Agent,
    /// This role, or one that may do more.
    Role(Role),
}

const VIEWER: Need = Need::Role(Role::Viewer);
const OPERATOR: Need = Need::Role(Role::Operator);
const ADMIN: Need = Need::Role(Role::Admin);

/// All methods that are served. What is not here is refused.
pub const METHODS: [(&str, Need); 38] = [
    ("/tunmesh.v1.AgentControl/Session", Need::Agent),
    ("/tunmesh.v1.Enrolment/Enrol", Need::Nothing),
    ("/tunmesh.v1.Enrolment/Renew", Need::Nothing),
    ("/tunmesh.v1.MeshAdmin/Plan", OPERATOR),
    ("/tunmesh.v1.MeshAdmin/Apply", OPERATOR),
    ("/tunmesh.v1.MeshAdmin/DeleteMesh", OPERATOR),
    ("/tunmesh.v1.MeshAdmin/SetWireguardKey", OPERATOR),
    ("/tunmesh.v1.MeshAdmin/ExportWireguard", VIEWER),
    ("/tunmesh.v1.MeshAdmin/ListMeshes", VIEWER),
    ("/tunmesh.v1.MeshAdmin/GetControllerStatus", VIEWER),
    ("/tunmesh.v1.MeshAdmin/ListNodes", VIEWER),
    ("/tunmesh.v1.MeshAdmin/ListNodeTunnels", VIEWER),
    ("/tunmesh.v1.MeshAdmin/ListLinks", VIEWER),
    ("/tunmesh.v1.MeshAdmin/Diagnose", VIEWER),
    ("/tunmesh.v1.MeshAdmin/WatchEvents", VIEWER),
    ("/tunmesh.v1.MeshAdmin/WatchConvergence", VIEWER),
    ("/tunmesh.v1.MeshAdmin/CreateToken", ADMIN),
    ("/tunmesh.v1.MeshAdmin/ListTokens", ADMIN),
    ("/tunmesh.v1.MeshAdmin/RevokeToken", ADMIN),
    ("/tunmesh.v1.MeshAdmin/ApproveNode", ADMIN),
    ("/tunmesh.v1.MeshAdmin/RemoveNode", ADMIN),
    ("/tunmesh.v1.MeshAdmin/CreateOperator", ADMIN),
    ("/tunmesh.v1.MeshAdmin/ListOperators", ADMIN),
    ("/tunmesh.v1.MeshAdmin/RemoveOperator", ADMIN),
    ("/tunmesh.v1.MeshAdmin/ListAudit", ADMIN),
    ("/tunmesh.v1.MeshAdmin/GetAuthority", VIEWER),
    ("/tunmesh.v1.MeshAdmin/RotateRoot", ADMIN),
    ("/tunmesh.v1.TunnelService/AddTunnel", OPERATOR),
    ("/tunmesh.v1.TunnelService/DeleteTunnel", OPERATOR),
    ("/tunmesh.v1.TunnelService/Leave", ADMIN),
    ("/tunmesh.v1.TunnelService/GetStatus", VIEWER),
    ("/tunmesh.v1.TunnelService/GetTunnel", VIEWER),
    ("/tunmesh.v1.TunnelService/ListTunnels", VIEWER),
    ("/tunmesh.v1.TunnelService/WatchTunnels", VIEWER),
    ("/grpc.health.v1.Health/Check", VIEWER),
    ("/grpc.health.v1.Health/Watch", VIEWER),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", VIEWER),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", VIEWER),
];

/// What the method at a path needs; `None`: there is no rule, and nobody may call it.
pub fn need(path: &str) -> Option<Need> {
    METHODS.iter().find(|(known, _)| *known == path).map(|(_, need)| *need)
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody, of whom nothing is known for this reason, in words.
    Stranger(String),
    /// An agent that says who it is, in a network in which that is enough.
    Claimant,
    /// The agent of this node.
    Agent(NodeName),
    /// Someone with a role, and who, in words.
    Operator(Role, String),
}

impl Caller {
    /// Whether the caller may do what needs `need`.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, need: Option<Need>) -> Result<(), Refused> {
        let refused = |words: String| Err(Refused { is_known: !matches!(self, Self::Stranger(_)), words });
        match (need, self) {
            (None, _) => refused("nobody may call this method".to_owned()),
            (Some(Need::Nothing), _) | (Some(Need::Agent), Self::Agent(_) | Self::Claimant) => Ok(()),
            (Some(Need::Role(needed)), Self::Operator(role, _)) if *role >= needed => Ok(()),
            (Some(_), Self::Stranger(why)) => refused(why.clone()),
            (Some(Need::Role(needed)), Self::Operator(role, who)) => {
                refused(format!("{who} has the role {role}, and this needs the role {needed}"))
            }
            (Some(Need::Role(needed)), Self::Agent(node)) => {
                refused(format!("the agent of {node} is no operator, and this needs the role {needed}"))
            }
            (Some(Need::Role(needed)), Self::Claimant) => {
                refused(format!("nothing shows who calls, and this needs the role {needed}"))
            }
            (Some(Need::Agent), Self::Operator(_, who)) => refused(format!("{who} is no agent")),
        }
    }
}

/// Who asks for a change, and by which request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// Who, in words.
    pub who: String,
    /// Names the request, as its sender called it, or at random.
    pub request: String,
}

/// That a call is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whether it is known who calls.
    pub is_known: bool,
    /// Why.
    pub words: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers() -> Vec<Caller> {
        let operators = Role::ALL.map(|role| Caller::Operator(role, "anna".to_owned()));
        let others = [
            Caller::Stranger("no certificate was shown".to_owned()),
            Caller::Claimant,
            Caller::Agent("web-1".parse().unwrap()),
        ];
        others.into_iter().chain(operators).collect()
    }

    #[test]
    fn each_may_what_its_role_says_and_no_more() {
        let may =
            |need| callers().iter().map(|caller| u8::from(caller.check(need).is_ok())).collect::<Vec<_>>();
        assert_eq!(may(None), [0, 0, 0, 0, 0, 0]);
        assert_eq!(may(Some(Need::Nothing)), [1, 1, 1, 1, 1, 1]);
        assert_eq!(may(Some(Need::Agent)), [0, 1, 1, 0, 0, 0]);
        assert_eq!(may(Some(VIEWER)), [0, 0, 0, 1, 1, 1]);
        assert_eq!(may(Some(OPERATOR)), [0, 0, 0, 0, 1, 1]);
        assert_eq!(may(Some(ADMIN)), [0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn whoever_is_refused_is_told_why() {
        let words = |caller: &Caller, need| caller.check(Some(need)).unwrap_err().words;
        let viewer = Caller::Operator(Role::Viewer, "anna".to_owned());
        assert_eq!(words(&viewer, OPERATOR), "anna has the role viewer, and this needs the role operator");
        assert!(words(&callers()[0], Need::Agent).contains("no certificate"));
    }
}
