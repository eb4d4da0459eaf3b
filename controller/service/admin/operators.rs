//! Who may steer from elsewhere.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::joining::{fault, lifetime};
use super::{Admin, not_changed, parsed, unsigned, wire_certificate};
use crate::controller::audit::Deed;
use crate::controller::pki::SigningRequest;
use crate::controller::trust::{Draft, Operator};
use crate::proto::convert::timestamp;
use crate::proto::host::access::asker;
use crate::proto::host::clock;
use crate::proto::model::OperatorName;
use crate::proto::trust::{Principal, Role};
use crate::proto::v1;

/// How long an operator's certificate holds unless it is asked for otherwise.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3_600);

impl Admin {
    pub(super) async fn make_operator(
        &self,
        request: Request<v1::CreateOperatorRequest>,
    ) -> Result<Response<v1::CreateOperatorResponse>, Status> {
        let asker = asker(&request);
        let made_by = asker.who.clone();
        let asked = request.into_inner();
        let role = match asked.role() {
            v1::operator::Role::Viewer => Role::Viewer,
            v1::operator::Role::Operator => Role::Operator,
            v1::operator::Role::Admin => Role::Admin,
            v1::operator::Role::Unspecified => {
                return Err(fault("role", "role is missing; give VIEWER, OPERATOR or ADMIN".to_owned()));
            }
        };
        let name: OperatorName = parsed("name", &asked.name)?;
        let request = SigningRequest::parse(&asked.request).map_err(|error| unsigned(&error))?;
        let lifetime = asked.lifetime.as_ref().map_or(Ok(LIFETIME), lifetime)?;
        let wall = clock::since_epoch();
        let expires = Duration::from_secs((wall + lifetime).as_secs());
        let operator = Operator { role, key: request.key(), expires, made_by };
        let kept = {
            let (name, operator) = (name.clone(), operator.clone());
            let deed = Deed { asker, method: "CreateOperator", what: format!("{role} {name}") };
            let create = move |draft: &mut Draft, _| draft.create_operator(&name, operator.clone());
            self.controller.change(Some(deed), create).await
        };
        kept.map_err(not_changed)?;
        let authority = self.credentials.authority();
        let principal = Principal::Operator(role, name.clone());
        let chain = authority.sign(&request, &principal, wall, expires).map_err(|error| unsigned(&error))?;
        Ok(Response::new(v1::CreateOperatorResponse {
            certificate: Some(wire_certificate(&chain, authority.roots())),
            operator: Some(self::operator(&name, &operator)),
        }))
    }
}

/// An operator as operators see one.
pub(super) fn operator(name: &OperatorName, operator: &Operator) -> v1::Operator {
    let role = match operator.role {
        Role::Viewer => v1::operator::Role::Viewer,
        Role::Operator => v1::operator::Role::Operator,
        Role::Admin => v1::operator::Role::Admin,
    };
    v1::Operator {
        name: name.to_string(),
        role: role.into(),
        expires: Some(timestamp(operator.expires)),
        made_by: operator.made_by.clone(),
    }
}
