//! `controller token`.

use std::time::Duration;

use super::apply::duration;
use super::{AskArgs, Error};
use crate::proto::convert;
use crate::proto::host::client::pages;
use crate::proto::host::clock;
use crate::proto::host::output::columns;
use crate::proto::host::words::age;
use crate::proto::model::parse_label;
use crate::proto::trust::NamePattern;
use crate::proto::v1;
use crate::proto::words::span;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a token with which hosts join, and print it: whoever has it can join
    Create(CreateArgs),
    /// List the tokens, without what makes them useful
    List(ListArgs),
    /// Make a token useless; the nodes that have joined with it stay
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct CreateArgs {
    /// Which nodes it is for: a name in which * stands for any characters
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    name: NamePattern,
    /// What nodes get that join with it, as role=web; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// How long it may be used: 90s, 5m, 1h, 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// The token's id: its part between the first two dots
    id: String,
    #[command(flatten)]
    ask: AskArgs,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::Create(args) => args.run().await,
            Self::List(args) => args.run().await,
            Self::Revoke(args) => args.run().await,
        }
    }
}

impl CreateArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::CreateTokenRequest {
            names: self.name.to_string(),
            labels: self.label.iter().cloned().collect(),
            lifetime: Some(convert::duration(self.ttl)),
            uses: self.uses,
        };
        let answer = self.ask.connect().await?.create_token(request).await?.into_inner();
        // Alone, so that a script has it as it is.
        self.ask.write(&answer, |answer| answer.secret_token.clone())
    }
}

impl ListArgs {
    async fn run(&self) -> Result<(), Error> {
        let mut controller = self.ask.connect().await?;
        let page = async |after| {
            let answer = controller.list_tokens(v1::ListTokensRequest { after }).await?.into_inner();
            Ok::<_, Error>((answer.tokens, answer.more))
        };
        let tokens = pages(page, |token| &token.id).await?;
        self.ask.write(&v1::ListTokensResponse { tokens, more: 0 }, table)
    }
}

impl RevokeArgs {
    async fn run(&self) -> Result<(), Error> {
        let request = v1::RevokeTokenRequest { id: self.id.clone() };
        let answer = self.ask.connect().await?.revoke_token(request).await?.into_inner();
        self.ask.write(&answer, |_| {
            format!("token {} is revoked; the nodes that have joined with it stay", self.id)
        })
    }
}

fn table(answer: &v1::ListTokensResponse) -> String {
    if answer.tokens.is_empty() {
        return "no tokens: `controller token create` makes one".to_owned();
    }
    let rows = answer.tokens.iter().map(|token| {
        let labels = token.labels.iter().map(|(key, value)| format!("{key}={value}"));
        vec![
            token.id.clone(),
            token.names.clone(),
            labels.collect::<Vec<_>>().join(" "),
            format!("{} of {}", token.used, token.uses),
            token.expires.as_ref().map_or_else(String::new, until),
            token.made_by.clone(),
        ]
    });
    columns(&["token", "for", "labels", "used", "expires", "made by"], rows)
}

/// How long it is until `time`.
pub(super) fn until(time: &pbjson_types::Timestamp) -> String {
    let at = Duration::from_secs(u64::try_from(time.seconds).unwrap_or_default());
    match at.checked_sub(clock::since_epoch()) {
        Some(left) => format!("in {}", span(left)),
        None => format!("{} ago", span(age(time))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_rows() {
        let expires = |seconds: u64| {
            let at = clock::since_epoch() + Duration::from_secs(7_205) - Duration::from_secs(seconds);
            Some(convert::timestamp(at))
        };
        let token = |expires| v1::Token {
            id: "a1b2c3d4e5".to_owned(),
            names: "web-*".to_owned(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            expires,
            uses: 5,
            used: 2,
            made_by: "root".to_owned(),
        };
        let tokens = vec![token(expires(0)), token(expires(9_000))];
        let text = table(&v1::ListTokensResponse { tokens, more: 0 });
        for words in ["a1b2c3d4e5", "web-*", "role=web", "2 of 5", "in 2 h 0 min", " ago", "root"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(table(&v1::ListTokensResponse::default()).contains("token create"));
    }
}
