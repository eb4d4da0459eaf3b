//! `controller plan` and `controller apply`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::operations::{Tense, plan, summary};
use super::{AskArgs, Error, converge};
use crate::controller::plan::PlanHash;
use crate::proto::session::Generation;
use crate::proto::v1;
use crate::proto::v1::hazard::Severity;

/// `plan` where there are changes.
const CHANGES: u8 = 3;

/// The mesh file, and what is consented to.
#[derive(Debug, clap::Args)]
struct FileArgs {
    /// The mesh file, YAML or JSON; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Consent to the removal of more than half, and more than three, of a node's tunnels
    #[arg(long)]
    allow_removals: bool,
}

/// Show what applying a mesh file would do; changes nothing
///
/// Exit code: 0 nothing to change, 3 changes, 1 refused or failed, 2 wrong use.
#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    ask: AskArgs,
}

/// Make a mesh file the wanted state: all of it, or nothing
#[derive(Debug, clap::Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Do only what the plan of this hash showed
    #[arg(long, value_name = "HASH")]
    plan: Option<PlanHash>,
    /// Wait until every node has it, 30s or as long as given: 90s, 5m
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "30s", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "is no span of time; write a number and a unit, as 90s, 5m, 1h or 7d".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

impl FileArgs {
    fn read(&self) -> Result<v1::MeshFile, Error> {
        let (name, content) = if self.file == Path::new("-") {
            let mut bytes = Vec::new();
            ("stdin".to_owned(), io::stdin().read_to_end(&mut bytes).map(|_| bytes))
        } else {
            (self.file.display().to_string(), std::fs::read(&self.file))
        };
        let content = content.map_err(|error| {
            Error::Failed(format!("{name} cannot be read: {error}; give a mesh file with -f"))
        })?;
        let content = String::from_utf8(content)
            .map_err(|_| Error::Failed(format!("{name} is no text in UTF-8; give a mesh file with -f")))?;
        Ok(v1::MeshFile { name, content })
    }
}

impl PlanArgs {
    pub(super) async fn run(&self) -> Result<ExitCode, Error> {
        let request =
            v1::PlanRequest { file: Some(self.file.read()?), allow_removals: self.file.allow_removals };
        let answer = self.ask.connect().await?.plan(request).await?.into_inner();
        let is_refused = answer.hazards.iter().any(|hazard| hazard.severity() == Severity::Error);
        self.ask.write(&answer, |answer| match is_refused {
            true => plan(answer).trim_end().to_owned(),
            false => format!("{}{}; plan {}", plan(answer), summary(answer, Tense::Future), answer.hash),
        })?;
        if is_refused {
            return Err(Error::Failed("this plan would be refused: mend what is marked ERROR".to_owned()));
        }
        let nothing = answer.nodes.is_empty() && answer.differences.is_empty();
        Ok(if nothing { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
    }
}

impl ApplyArgs {
    pub(super) async fn run(&self) -> Result<(), Error> {
        let request = v1::ApplyRequest {
            file: Some(self.file.read()?),
            plan: self.plan.map(|hash| hash.to_string()).unwrap_or_default(),
            allow_removals: self.file.allow_removals,
        };
        let mut controller = self.ask.connect().await?;
        let answer = controller.apply(request).await?.into_inner();
        self.ask.write(&answer, |answer| {
            let done = answer.plan.clone().unwrap_or_default();
            format!("{}{}; {}", plan(&done), summary(&done, Tense::Past), generation(answer.generation))
        })?;
        let Some(limit) = self.wait else { return Ok(()) };
        converge::wait(&mut controller, answer.generation, limit).await
    }
}

/// "generation 1.5".
pub(super) fn generation(wire: Option<v1::Generation>) -> String {
    format!("generation {}", Generation::from(wire.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("2h", 7200)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in
            ["", "30", "s", "-1s", "1.5s", "0s", "1w", "99999999999999999999s", "9999999999999999999h"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
