//! Why a command was not done, as an operator reads it.

use std::fmt;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Cli;
use crate::proto::host::output::printable;

/// A command that was not done.
#[derive(Debug)]
pub enum Error {
    /// The command line cannot be meant; nothing was sent.
    Usage(String),
    /// It failed, in words: one line a fault.
    Failed(String),
    /// What the operator wrote is at fault: a line each, which begins with the place.
    Faults(Vec<String>),
}

impl Error {
    /// 2 for wrong use, 1 for the rest.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) | Self::Faults(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As the parser says what it finds itself.
            Self::Usage(words) => {
                let error = Cli::command().error(ErrorKind::ValueValidation, printable(words));
                f.write_str(error.to_string().trim_end())
            }
            Self::Failed(words) => {
                let lines: Vec<_> =
                    words.lines().map(|line| format!("controller: {}", printable(line))).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Faults(faults) => {
                let lines: Vec<_> = faults.iter().map(|fault| printable(fault)).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map(|request| request.field_violations.as_slice());
        let faults: Vec<String> =
            violations.unwrap_or_default().iter().map(|fault| fault.description.clone()).collect();
        if faults.is_empty() {
            return Self::Failed(words(&status));
        }
        if status.code() == Code::InvalidArgument {
            return Self::Faults(faults);
        }
        Self::Failed(faults.join("\n"))
    }
}

/// What a status without details means.
#[allow(clippy::wildcard_enum_match_arm, reason = "the other codes are ours, and their messages say all")]
fn words(status: &Status) -> String {
    let message = status.message();
    match status.code() {
        Code::Unimplemented => format!(
            "the controller does not know this command ({message}): use the release that the controller has"
        ),
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            format!("the controller went away ({message}): its log says why; ask again when it runs")
        }
        _ if message.is_empty() => status.code().to_string(),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn with_details(code: Code, faults: &[&str]) -> Error {
        let mut details = ErrorDetails::new();
        for fault in faults {
            details.add_bad_request_violation("field", *fault);
        }
        Status::with_error_details(code, "short", details).into()
    }

    #[test]
    fn faults_of_a_file_begin_with_their_place() {
        let error = with_details(Code::InvalidArgument, &["mesh.yaml:5:14: one", "mesh.yaml:6:1: \u{1b}two"]);
        assert_eq!(error.to_string(), "mesh.yaml:5:14: one\nmesh.yaml:6:1: \\u{1b}two");
    }

    #[test]
    fn other_errors_name_the_program_on_each_line() {
        let error = with_details(Code::FailedPrecondition, &["one", "two"]);
        assert_eq!(error.to_string(), "controller: one\ncontroller: two");
        assert_eq!(Error::from(Status::aborted("changed")).to_string(), "controller: changed");
    }

    #[test]
    fn what_grpc_says_is_in_words_with_a_remedy() {
        for (status, words) in [
            (Status::unimplemented("Plan"), "use the release that the controller has"),
            (Status::unavailable("reset"), "went away (reset)"),
            (Status::unknown("h2"), "its log says why"),
            (Status::cancelled("stop"), "ask again when it runs"),
        ] {
            let text = Error::from(status).to_string();
            assert!(text.starts_with("controller: the controller ") && text.contains(words), "{text}");
        }
        let silent = Error::from(Status::aborted("")).to_string();
        assert!(silent.contains("aborted"), "{silent}");
    }
}
