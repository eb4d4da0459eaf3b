//! What the kernel lets this process have, and others of it.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Sees to it that no core dump has this process's keys, and that no other process of its user reads its memory,
/// `PR_SET_DUMPABLE` of `prctl(2)`.
pub fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core dump of this process would have its keys");
    }
}

/// Lets this process open as many descriptors as its user may: each device of an
/// agent and each agent of a controller takes one, and the usual 1,024 are soon gone. Returns how many that are.
pub fn raise_open_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let limit = match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            current
        }
    };
    // Absent: as many as one likes.
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
