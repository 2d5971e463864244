//! The limit on open files, which bounds the sessions: each is a descriptor.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of this process to what the system allows it. Says so if that is less than `sessions` need.
pub(super) fn raise(sessions: u32) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files could not be raised");
    }
    if let Some(most) = getrlimit(Resource::Nofile).current
        && most < u64::from(sessions)
    {
        tracing::warn!(most, max_sessions = sessions, "fewer files may be open than there may be sessions");
    }
}
