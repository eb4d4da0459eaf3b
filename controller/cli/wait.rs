//! `controller wait`.

use std::time::Duration;

use super::apply::duration;
use super::{ControllerArgs, Error, converge};

/// Wait until the nodes are as they are to be
///
/// Exit code: 0 they are, 1 they are not, and who lags and why, 2 wrong use.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Until every node has all that is wanted now, as its kernel shows: 30s at most, or as long as given
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "30s",
        value_parser = duration,
        required = true
    )]
    converged: Duration,
    #[command(flatten)]
    controller: ControllerArgs,
}

impl Args {
    pub(super) async fn run(&self) -> Result<(), Error> {
        converge::wait(&mut self.controller.connect().await?, None, self.converged).await
    }
}
