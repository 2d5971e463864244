//! Hash chain of the messages of one thread (`threadline-agent.md` §3).

use sha2::{Digest as _, Sha256};

use crate::{MessageId, ThreadKey, jcs};

/// What a link binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link<'a> {
    /// Place in the thread, from 1.
    pub seq: i64,
    /// Peer and thread.
    pub key: &'a ThreadKey,
    /// Id on the wire.
    pub message_id: &'a MessageId,
    /// `in` or `out`.
    pub direction: &'a str,
    /// Sender's clock, Unix ms.
    pub created_at: i64,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
}

/// Previous hash of the first link.
pub const START: [u8; 32] = [0; 32];

impl Link<'_> {
    /// SHA-256 over the previous hash and the canonical JSON of the link.
    pub fn hash(&self, previous: &[u8; 32]) -> [u8; 32] {
        let json = serde_json::json!({
            "body_sha256": hex::encode(self.body_sha256),
            "created_at": self.created_at,
            "direction": self.direction,
            "message_id": self.message_id,
            "peer_fp": self.key.peer,
            "seq": self.seq,
            "thread_id": self.key.thread,
        });
        Sha256::new().chain_update(previous).chain_update(jcs::to_string(&json)).finalize().into()
    }
}

/// SHA-256 of a body.
pub fn body_sha256(body: &str) -> [u8; 32] {
    Sha256::digest(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_bound() {
        let key = |thread: &str| ThreadKey {
            peer: "0".repeat(32).parse().expect("fp"),
            thread: thread.parse().expect("id"),
        };
        let (a, b) = (key("a"), key("b"));
        let (m, n): (MessageId, MessageId) = ("m".parse().expect("id"), "n".parse().expect("id"));
        let link = Link {
            seq: 1,
            key: &a,
            message_id: &m,
            direction: "in",
            created_at: 5,
            body_sha256: body_sha256("hi"),
        };
        let base = link.hash(&START);
        let others = [
            Link { seq: 2, ..link.clone() },
            Link { key: &b, ..link.clone() },
            Link { message_id: &n, ..link.clone() },
            Link { direction: "out", ..link.clone() },
            Link { created_at: 6, ..link.clone() },
            Link { body_sha256: body_sha256("ho"), ..link.clone() },
        ];
        assert!(others.iter().all(|other| other.hash(&START) != base));
        assert_ne!(link.hash(&base), base);
        let text = r#"{"body_sha256":"8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4","created_at":5,"direction":"in","message_id":"m","peer_fp":"00000000000000000000000000000000","seq":1,"thread_id":"a"}"#;
        assert_eq!(base, <[u8; 32]>::from(Sha256::digest([START.as_slice(), text.as_bytes()].concat())));
    }
}
