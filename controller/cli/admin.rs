//! `controller admin`.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::apply::duration;
use super::token::until;
use super::{AskArgs, Error};
use crate::proto::convert;
use crate::proto::host::client::pages;
use crate::proto::host::credential::{Credential, PrivateKey};
use crate::proto::host::output::columns;
use crate::proto::model::OperatorName;
use crate::proto::trust::Role;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Let somebody steer from elsewhere: makes a key here and has the controller certify it
    Create(CreateArgs),
    /// List those who may steer from elsewhere
    List(ListArgs),
    /// Take somebody's rights, at once
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Who it is
    name: OperatorName,
    /// What they may do: viewer (look), operator (apply meshes, too), admin (say who joins and steers, too)
    #[arg(long)]
    role: Role,
    /// Where the key and certificate are written, for --identity; NAME.pem unless given
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// How long the certificate holds
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RemoveArgs {
    /// Who it is
    name: String,
    #[command(flatten)]
    ask: AskArgs,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::Create(args) => args.run().await,
            Self::List(args) => args.run().await,
            Self::Remove(args) => args.run().await,
        }
    }
}

impl CreateArgs {
    async fn run(&self) -> Result<(), Error> {
        let path = self.file.clone().unwrap_or_else(|| format!("{}.pem", self.name).into());
        if path.exists() {
            return Err(Error::Failed(format!(
                "{}: it is there already: give another --file",
                path.display()
            )));
        }
        let key = PrivateKey::generate().map_err(anyhow::Error::from)?;
        let role = match self.role {
            Role::Viewer => v1::operator::Role::Viewer,
            Role::Operator => v1::operator::Role::Operator,
            Role::Admin => v1::operator::Role::Admin,
        };
        let request = v1::CreateOperatorRequest {
            name: self.name.to_string(),
            role: role.into(),
            request: key.request().map_err(anyhow::Error::from)?,
            lifetime: Some(convert::duration(self.ttl)),
        };
        let answer = self.ask.connect().await?.create_operator(request).await?.into_inner();
        let v1::Certificate { chain, roots, .. } = answer.certificate.clone().unwrap_or_default();
        let ders = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect();
        let credential = Credential { key, chain: ders(chain), roots: ders(roots) };
        credential.write(&path).map_err(anyhow::Error::from)?;
        self.ask.write(&answer, |_| {
            let file = path.display();
            format!("{} is {}: give --server ADDR --identity {file} to each command", self.name, self.role)
        })
    }
}

impl ListArgs {
    async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        let page = async |after| {
            let answer = controller.list_operators(v1::ListOperatorsRequest { after }).await?.into_inner();
            Ok::<_, Error>((answer.operators, answer.more))
        };
        let operators = pages(page, |operator| &operator.name).await?;
        self.ask.write(&v1::ListOperatorsResponse { operators, more: 0 }, table)
    }
}

impl RemoveArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::RemoveOperatorRequest { name: self.name.clone() };
        let answer = self.ask.connect().await?.remove_operator(request).await?.into_inner();
        self.ask.write(&answer, |_| format!("{} may steer no more", self.name))
    }
}

fn table(answer: &v1::ListOperatorsResponse) -> String {
    if answer.operators.is_empty() {
        return "nobody steers from elsewhere: `controller admin create` lets somebody".to_owned();
    }
    let rows = answer.operators.iter().map(|operator| {
        vec![
            operator.name.clone(),
            operator.role().as_str_name().to_lowercase(),
            operator.expires.as_ref().map_or_else(String::new, until),
            operator.made_by.clone(),
        ]
    });
    columns(&["name", "role", "expires", "made by"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_rows() {
        let anna = v1::Operator {
            name: "anna".to_owned(),
            role: v1::operator::Role::Viewer.into(),
            expires: Some(convert::timestamp(Duration::ZERO)),
            made_by: "root".to_owned(),
        };
        let text = table(&v1::ListOperatorsResponse { operators: vec![anna], more: 0 });
        let words: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(words[..2], ["anna", "viewer"]);
        assert!(text.contains(" ago") && words.last() == Some(&"root"), "{text}");
        assert!(table(&v1::ListOperatorsResponse::default()).contains("admin create"));
    }
}
