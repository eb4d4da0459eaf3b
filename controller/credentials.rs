//! What this controller shows to those who dial it, and by what it knows them; replaced in time, while it runs.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::pki::{Authority, PkiError};
use crate::proto::host::accept::Handshakes;
use crate::proto::host::clock;
use crate::proto::words::span;

/// Where the authority is in the state directory.
pub const DIRECTORY: &str = "pki";
/// How often it is looked whether a certificate is to be replaced.
const LOOK: Duration = Duration::from_secs(600);

/// The authority, and what of it is shown.
#[derive(Debug)]
pub struct Credentials {
    authority: ArcSwap<Authority>,
    handshakes: Arc<Handshakes>,
    /// When what is shown is to be replaced, as time since the Unix epoch. Whoever changes anything holds it.
    due: Mutex<Duration>,
}

impl Credentials {
    /// The credentials with the authority in `directory`, made where there is none, at the time `wall` since the Unix epoch.
    ///
    /// # Errors
    /// Where a file of it cannot be read or written.
    pub fn open(directory: &Path, wall: Duration) -> Result<Self, PkiError> {
        let mut authority = Authority::open(directory, wall)?;
        authority.maintain(wall)?;
        let (server, due) = authority.server(wall)?;
        let handshakes = Arc::new(Handshakes::default());
        handshakes.change(&server, authority.roots())?;
        Ok(Self { authority: ArcSwap::from_pointee(authority), handshakes, due: Mutex::new(due) })
    }

    /// The authority as it is now.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// The controller's part of handshakes.
    pub fn handshakes(&self) -> Arc<Handshakes> {
        Arc::clone(&self.handshakes)
    }

    /// Makes the next root, see [`Authority::rotate`], and shows what leads to it from the next connection on.
    ///
    /// # Errors
    /// Where the last root's key is not here, or a file cannot be written.
    pub fn rotate(&self, wall: Duration) -> Result<(), PkiError> {
        self.change(wall, |authority| authority.rotate(wall).map(|()| true))
    }

    /// What is to be mended at the time `wall` since the Unix epoch, in words.
    pub fn findings(&self, wall: Duration) -> Vec<String> {
        let authority = self.authority();
        if !authority.is_due(wall) || authority.has_root_key() {
            return Vec::new();
        }
        let left = span(authority.issuer_expires().saturating_sub(wall));
        vec![format!(
            "the issuer's certificate is to be replaced, and the root's key is elsewhere: bring it back with `controller ca \
             import FILE` within {left}; after that no host can join and no certificate is renewed"
        )]
    }

    /// Replaces in time what would expire, until `stop`.
    ///
    /// # Errors
    /// Never; what cannot be replaced is tried again, and told.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            let wall = clock::since_epoch();
            if let Err(error) = self.change(wall, |authority| authority.maintain(wall)) {
                tracing::error!(%error, "the controller's certificates cannot be replaced");
            }
        }
    }

    /// Changes the authority, and what is shown where that says so or its time has come.
    fn change(
        &self,
        wall: Duration,
        change: impl FnOnce(&mut Authority) -> Result<bool, PkiError>,
    ) -> Result<(), PkiError> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut authority = Authority::clone(&self.authority.load());
        if !change(&mut authority)? && wall < *due {
            return Ok(());
        }
        let (server, next) = authority.server(wall)?;
        self.handshakes.change(&server, authority.roots())?;
        self.authority.store(Arc::new(authority));
        *due = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);
    const MADE: Duration = DAY.saturating_mul(20_000);

    fn made(directory: &TempDir) -> Credentials {
        Credentials::open(&directory.path().join(DIRECTORY), MADE).unwrap()
    }

    #[test]
    fn what_is_shown_is_replaced_when_half_of_its_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = made(&directory);
        let due = || *credentials.due.lock().unwrap();
        let first = due();
        let look = |wall: Duration| credentials.change(wall, |authority| authority.maintain(wall)).unwrap();
        look(first.checked_sub(DAY).unwrap());
        assert_eq!(due(), first, "it is not time yet");
        look(first);
        assert!(due() > first + DAY * 10, "{first:?} {:?}", due());
    }

    #[test]
    fn a_root_that_is_away_when_it_is_needed_is_told_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = made(&directory);
        assert_eq!(credentials.findings(MADE + DAY * 400), Vec::<String>::new(), "it is there");
        let mut authority = Authority::clone(&credentials.authority());
        authority.export(&directory.path().join("away.pem")).unwrap();
        assert_eq!(credentials.findings(MADE), Vec::<String>::new(), "it is not needed yet");
        let told = credentials.findings(MADE + DAY * 400);
        assert!(told[0].contains("controller ca import") && told[0].contains("within 330 d"), "{told:?}");
    }
}
