//! Who may steer this agent from elsewhere, as its controller said last; kept, for a controller may be away for long.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::proto::host::file;
use crate::proto::model::OperatorName;
use crate::proto::trust::Rights;

/// The file in the state directory.
const FILE: &str = "operators.json";

/// All operators, by name.
#[derive(Debug)]
pub struct Operators {
    path: PathBuf,
    current: ArcSwap<BTreeMap<OperatorName, Rights>>,
}

impl Operators {
    /// Those that a state directory has; nobody, where it has none or what it has cannot be read.
    pub fn open(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let read = || -> io::Result<_> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        let current = read().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "nobody is heeded from elsewhere until the controller says who");
            }
            BTreeMap::new()
        });
        Self { path, current: ArcSwap::from_pointee(current) }
    }

    /// What somebody may do.
    pub fn rights(&self, name: &OperatorName) -> Option<Rights> {
        self.current.load().get(name).copied()
    }

    /// From now on these, and nobody else.
    pub fn replace(&self, operators: Arc<BTreeMap<OperatorName, Rights>>) {
        if *self.current.load() == operators {
            return;
        }
        let kept = serde_json::to_vec(&*operators).map_err(io::Error::from);
        self.current.store(operators);
        if let Err(error) = kept.and_then(|content| file::replace(&self.path, &content)) {
            tracing::warn!(path = %self.path.display(), %error, "who may steer from elsewhere is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::trust::{KeyId, Role};

    #[test]
    fn who_was_named_last_is_known_after_a_restart_and_nobody_where_that_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let anna: OperatorName = "anna".parse().unwrap();
        let rights = Rights { key: KeyId::of(b"anna"), role: Role::Viewer };
        Operators::open(directory.path()).replace(Arc::new(BTreeMap::from([(anna.clone(), rights)])));
        let again = Operators::open(directory.path());
        assert_eq!(again.rights(&anna), Some(rights));
        again.replace(Arc::default());
        assert_eq!(again.rights(&anna), None);
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(Operators::open(directory.path()).rights(&anna), None);
    }
}
