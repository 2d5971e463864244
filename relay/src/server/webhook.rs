//! Tells an operator's URL of each ban, at most one a second and without any message.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Shared, admin};
use crate::store::registry::operator::{self, Ban};

const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks for new bans every second, until `stop`. Only started when a URL is configured.
pub(super) async fn tell(shared: Arc<Shared>, stop: CancellationToken) {
    // What is banned while the client is set up counts already.
    let mut told_ms = shared.clock.now_ms();
    let client = match reqwest::Client::builder().timeout(PATIENCE).build() {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "abuse.webhook cannot be called"),
    };
    let mut told: Vec<[u8; 32]> = Vec::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        let (since_ms, now_ms) = (told_ms - 1, shared.clock.now_ms());
        let Ok(bans) = shared.registry_read(move |c| operator::bans_since(c, since_ms, now_ms)).await else {
            continue;
        };
        // The oldest of the new ones; the others have their turn in the next seconds.
        let is_new = |ban: &&Ban| ban.banned_ms > told_ms || !told.contains(&ban.key);
        let Some(ban) = bans.iter().rfind(is_new) else { continue };
        if ban.banned_ms > told_ms {
            told_ms = ban.banned_ms;
            told.clear();
        }
        told.push(ban.key);
        let sent = client.post(&shared.config.abuse.webhook).json(&admin::ban_json(ban)).send().await;
        if let Err(error) = sent.and_then(reqwest::Response::error_for_status) {
            tracing::warn!(error = %error.without_url(), "abuse.webhook did not take a ban");
        }
    }
}
