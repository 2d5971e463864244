//! Reports that hooks could not hand over: while no node ran, or when it did not answer within their deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instar_sessions::Sessions;
use tokio_util::sync::CancellationToken;

use super::facts::Facts;

/// How often waiting reports are looked for: one of them may be the only proof that a runtime has its input.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes waiting reports in until `stop`.
pub(super) async fn run(state_dir: PathBuf, sessions: Sessions, facts: Arc<Facts>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        take_in(&state_dir, &sessions, &facts).await;
    }
}

/// Takes in what waits now.
pub(super) async fn take_in(state_dir: &std::path::Path, sessions: &Sessions, facts: &Facts) {
    let directory = state_dir.to_owned();
    let waiting = tokio::task::spawn_blocking(move || instar_hooks::spool::waiting(&directory)).await;
    let waiting = match waiting {
        Ok(Ok(waiting)) => waiting,
        Ok(Err(error)) => return tracing::warn!(%error, "reports of hooks were not read"),
        Err(_) => return,
    };
    for kept in waiting {
        facts.hook_log.record(&kept.report);
        if let Some(id) = kept.report.instar_session_id.as_deref().and_then(|id| id.parse().ok()) {
            sessions.hook_event(id, kept.report.clone()).await;
        }
        if let Err(error) = kept.forget() {
            tracing::warn!(%error, "a report of a hook stays in its file");
        }
    }
}
