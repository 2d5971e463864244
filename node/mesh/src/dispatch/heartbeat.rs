//! A session's proof of life: a file that its supervisor signs with the secret of its start.

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use threadline::ThreadKey;
use threadline_net::store::{LedgerRow, LedgerStatus, StoreError};

use crate::core::Core;

/// Age at which a heartbeat is stale.
const HEARTBEAT_STALE_MS: i64 = 20_000;

/// One file per conversation: two peers may use the same thread id, and thread ids may be long.
pub(super) fn heartbeat_file(core: &Core, key: &ThreadKey) -> std::path::PathBuf {
    let digest = Sha256::digest(format!("{}:{}", key.peer, key.thread));
    let name = format!("{}.alive", hex::encode(digest.get(..16).unwrap_or(&digest)));
    core.state_dir.join("threadline/sessions").join(name)
}

pub(super) async fn remove_heartbeat(core: &Core, key: &ThreadKey) {
    let _ = tokio::fs::remove_file(heartbeat_file(core, key)).await;
}

/// What a heartbeat file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulse {
    Alive,
    Missing,
    Stale,
    Forged,
}

impl Pulse {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Alive => "heartbeat-verified",
            Self::Missing => "heartbeat-missing",
            Self::Stale => "heartbeat-stale",
            Self::Forged => "heartbeat-forged",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Beat {
    event_id: String,
    session_pid: i64,
    thread_id: String,
    ts: i64,
    hmac: String,
}

impl Core {
    /// Reads the supervisor's heartbeat; a good one makes the spawn verified.
    pub(crate) async fn check_heartbeat(&self, row: &LedgerRow) -> Result<Pulse, StoreError> {
        let pulse = match tokio::fs::read(heartbeat_file(self, &row.key)).await {
            Ok(bytes) => self.judge_beat(&bytes, row).await?,
            Err(_) => Pulse::Missing,
        };
        if pulse == Pulse::Alive {
            let verified = LedgerStatus::Verified;
            if self.store.set_spawn(&row.event_id, verified, None, None, self.now()).await? {
                self.thread_event("thread-opened", &row.key, "");
            }
        }
        Ok(pulse)
    }

    /// A session that was found alive instead of being started proves itself by the event it was started for.
    async fn judge_beat(&self, bytes: &[u8], row: &LedgerRow) -> Result<Pulse, StoreError> {
        let Ok(beat) = serde_json::from_slice::<Beat>(bytes) else { return Ok(Pulse::Forged) };
        if beat.event_id == row.event_id {
            return Ok(judge_beat(&beat, row, self.now()));
        }
        let earlier = self.store.spawn(&beat.event_id).await?;
        let same =
            earlier.filter(|e| e.key == row.key && e.session_id.is_some() && e.session_id == row.session_id);
        Ok(match same {
            Some(earlier) if judge_beat(&beat, &earlier, self.now()) == Pulse::Alive => Pulse::Alive,
            // Left over from an earlier session of the thread.
            _ => Pulse::Missing,
        })
    }
}

fn judge_beat(beat: &Beat, row: &LedgerRow, now: i64) -> Pulse {
    let text =
        format!("evt:{}:pid:{}:tid:{}:ts:{}", beat.event_id, beat.session_pid, beat.thread_id, beat.ts);
    let mut mac = Hmac::<Sha256>::new_from_slice(&row.nonce).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    let signature = hex::decode(&beat.hmac).unwrap_or_default();
    if beat.thread_id != row.key.thread.as_str() || mac.verify_slice(&signature).is_err() {
        return Pulse::Forged;
    }
    if now - beat.ts > HEARTBEAT_STALE_MS { Pulse::Stale } else { Pulse::Alive }
}

#[cfg(test)]
mod tests {
    use super::*;
    use threadline::Fingerprint;

    fn row() -> LedgerRow {
        LedgerRow {
            event_id: "e".into(),
            key: ThreadKey { peer: Fingerprint::from_bytes([1; 16]), thread: "t".parse().expect("id") },
            nonce: vec![7; 32],
            spawned_at: 0,
            status: LedgerStatus::Spawning,
            session_id: None,
        }
    }

    fn beat(event: &str, thread: &str, ts: i64, key: &[u8]) -> Beat {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("key");
        mac.update(format!("evt:{event}:pid:5:tid:{thread}:ts:{ts}").as_bytes());
        let hmac = hex::encode(mac.finalize().into_bytes());
        Beat { event_id: event.into(), session_pid: 5, thread_id: thread.into(), ts, hmac }
    }

    #[test]
    fn only_a_fresh_heartbeat_with_the_secret_counts() {
        let now = 100_000;
        assert_eq!(judge_beat(&beat("e", "t", now, &[7; 32]), &row(), now), Pulse::Alive);
        assert_eq!(judge_beat(&beat("e", "t", now - 20_001, &[7; 32]), &row(), now), Pulse::Stale);
        assert_eq!(judge_beat(&beat("e", "t", now, &[8; 32]), &row(), now), Pulse::Forged);
        assert_eq!(judge_beat(&beat("e", "other", now, &[7; 32]), &row(), now), Pulse::Forged);
    }
}
