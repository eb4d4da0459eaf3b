//! `controller ca`.

use std::path::PathBuf;

use super::token::until;
use super::{AskArgs, Error};
use crate::controller::credentials::DIRECTORY;
use crate::controller::pki::Authority;
use crate::proto::host::output::{columns, print};
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the roots that agents believe
    Show(ShowArgs),
    /// Make the next root; both are believed for 45 days, in which agents come to know it; operators elsewhere need
    /// another identity by then
    Rotate(RotateArgs),
    /// Take the root's key away from this host, to a file that is then kept elsewhere
    Export(KeyArgs),
    /// Bring the root's key back, for the next root or issuer
    Import(KeyArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct KeyArgs {
    /// The file with the key
    file: PathBuf,
    /// State directory of the controller, on this host; it may be running
    #[arg(
        long,
        env = "TUNMESH_CONTROLLER_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/tunmesh-controller"
    )]
    state_dir: PathBuf,
}

impl Command {
    pub(super) async fn run(&self) -> Result<(), Error> {
        match self {
            Self::Show(ShowArgs { ask }) => {
                let answer =
                    ask.connect().await?.get_authority(v1::GetAuthorityRequest {}).await?.into_inner();
                ask.write(&answer, table)
            }
            Self::Rotate(RotateArgs { ask }) => {
                let answer = ask.connect().await?.rotate_root(v1::RotateRootRequest {}).await?.into_inner();
                ask.write(&answer, |answer| table(&answer.authority.clone().unwrap_or_default()))
            }
            Self::Export(KeyArgs { file, state_dir }) => {
                let authority = Authority::existing(&state_dir.join(DIRECTORY));
                authority.and_then(|mut authority| authority.export(file)).map_err(anyhow::Error::from)?;
                let file = file.display();
                print(&format!(
                    "the root's key is in {file} alone: keep it elsewhere, for `controller ca import`"
                ))?;
                Ok(())
            }
            Self::Import(KeyArgs { file, state_dir }) => {
                let authority = Authority::existing(&state_dir.join(DIRECTORY));
                authority.and_then(|mut authority| authority.import(file)).map_err(anyhow::Error::from)?;
                print("the root's key is here again")?;
                Ok(())
            }
        }
    }
}

fn table(authority: &v1::GetAuthorityResponse) -> String {
    let expires = |time: &Option<pbjson_types::Timestamp>| time.as_ref().map_or_else(String::new, until);
    let roots = authority.roots.iter().map(|root| vec![root.pin.clone(), expires(&root.expires)]);
    let place = match authority.root_key_is_here {
        true => "is on the controller's host: `controller ca export FILE` takes it away",
        false => "is elsewhere: `controller ca import FILE` brings it back",
    };
    let facts = [
        vec!["issuer".to_owned(), format!("expires {}", expires(&authority.issuer_expires))],
        vec!["root's key".to_owned(), place.to_owned()],
    ];
    format!("{}\n\n{}", columns(&["root", "expires"], roots), columns(&[], facts))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::convert::timestamp;
    use crate::proto::host::clock::since_epoch;

    #[test]
    fn roots_are_rows_and_it_is_said_where_the_key_is() {
        let root = |pin: &str| v1::Root {
            pin: pin.to_owned(),
            since: None,
            expires: Some(timestamp(since_epoch() + Duration::from_secs(7_205))),
        };
        let mut authority = v1::GetAuthorityResponse {
            roots: vec![root("pin-2"), root("pin-1")],
            issuer_expires: Some(timestamp(Duration::ZERO)),
            root_key_is_here: true,
        };
        let text = table(&authority);
        for words in ["pin-2", "pin-1", "in 2 h 0 min", " ago", "ca export"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        authority.root_key_is_here = false;
        assert!(table(&authority).contains("ca import"));
    }
}
