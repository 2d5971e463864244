//! Proof of life of a session that serves a peer (`threadline-agent.md` §11.5).

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use instar_durable::{create_dir_private, write_atomic};
use instar_state::ports::HeartbeatSpec;
use serde_json::json;
use sha2::Sha256;

const INTERVAL: Duration = Duration::from_secs(10);

/// Writes the file at once and every 10 s, until dropped.
pub(super) struct Heartbeat {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    pub(super) fn start(spec: HeartbeatSpec, pid: i32) -> Self {
        let (stop, stopped) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            if let Some(dir) = spec.file.parent() {
                let _ = create_dir_private(dir);
            }
            loop {
                let beat = beat(&spec, pid, chrono::Utc::now().timestamp_millis());
                // A missed beat is noticed by the watchdog; there is nobody here to tell.
                let _ = write_atomic(&spec.file, beat.to_string().as_bytes(), 0o600);
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(spec: &HeartbeatSpec, pid: i32, ts: i64) -> serde_json::Value {
    let HeartbeatSpec { event_id, thread_id, nonce, .. } = spec;
    let text = format!("evt:{event_id}:pid:{pid}:tid:{thread_id}:ts:{ts}");
    let key = hex::decode(nonce).unwrap_or_default();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    let hmac = hex::encode(mac.finalize().into_bytes());
    json!({"eventId": event_id, "sessionPid": pid, "threadId": thread_id, "ts": ts, "hmac": hmac})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beat_is_signed_over_its_fields() {
        let spec = HeartbeatSpec {
            event_id: "e".into(),
            thread_id: "t".into(),
            nonce: "00ff".into(),
            file: "/nowhere".into(),
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&[0, 255]).expect("key");
        mac.update(b"evt:e:pid:5:tid:t:ts:9");
        let expected = hex::encode(mac.finalize().into_bytes());
        assert_eq!(beat(&spec, 5, 9)["hmac"], json!(expected));
    }
}
