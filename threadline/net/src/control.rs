//! Messages between nodes that no session reads. They hold no free text.

use serde_json::{Map, Value, json};
use threadline::TrustLevel;
use threadline::invitation::{RedeemRefusal, Redemption};
use threadline::v1::local::AgentName;
use threadline::v2::inside_v1::{INTRODUCTION, Introduction};

/// A control message of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Answer to a `ping`.
    Pong,
    /// Answer to a `health` question.
    Healthy,
    /// The thread is closed on this side.
    ThreadResolved,
    /// The plain acknowledgement that existing installs know (`threadline-wire.md` §2.5.1).
    Received,
    /// Redeems an invitation of the peer.
    Redeem(Box<Redemption>),
    /// Answers a redemption of the peer.
    InvitationResult {
        /// Which token.
        token_id: String,
        /// The level that the peer has now, or why not.
        outcome: Result<TrustLevel, RedeemRefusal>,
        /// Name of this agent.
        name: Option<AgentName>,
    },
    /// Who this device is, for a peer that has to begin another session with it.
    Introduction(Box<Introduction>),
}

impl Control {
    /// Payload type on the wire.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Healthy => "health",
            Self::ThreadResolved => "thread-resolved",
            Self::Received => "status",
            Self::Redeem(_) => "invitation-redeem",
            Self::InvitationResult { .. } => "invitation-result",
            Self::Introduction(_) => "introduction",
        }
    }

    /// Fixed text for receivers that know only text.
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Healthy => "ok",
            Self::ThreadResolved => "resolved",
            Self::Received => "Message received.",
            Self::Redeem(_) | Self::InvitationResult { .. } => "invitation",
            Self::Introduction(_) => "introduction",
        }
    }

    /// Members beside the text.
    pub fn metadata(&self) -> Option<Map<String, Value>> {
        match self {
            Self::Redeem(redemption) => Some(redemption.to_metadata()),
            Self::InvitationResult { token_id, outcome, name } => {
                let mut fields = Map::new();
                fields.insert("tokenId".into(), token_id.as_str().into());
                fields.insert("ok".into(), outcome.is_ok().into());
                match outcome {
                    Ok(level) => {
                        fields.insert("level".into(), json!(level));
                        fields.insert("name".into(), name.as_ref().map(AgentName::as_str).into());
                    }
                    Err(refusal) => {
                        fields.insert("code".into(), refusal.as_str().into());
                    }
                }
                Some(fields)
            }
            Self::Introduction(introduction) => {
                let mut fields = Map::new();
                fields.insert(INTRODUCTION.into(), introduction.to_json());
                Some(fields)
            }
            Self::Pong | Self::Healthy | Self::ThreadResolved | Self::Received => None,
        }
    }
}
