//! The engine of the SendGateway: ordered stages and the clearance that only it can mint.
//!
//! Everything an agent says to anyone is a [`OutboundMessage`] that passes [`SendGateway::review`]. What comes out as
//! [`Cleared`] goes into an outbox by value; nothing else does.
//!
//! ```
//! use std::sync::Arc;
//! use instar_outbound::{
//!     Channel, ChannelId, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient, RecipientKind,
//!     ReplyTarget, SendFlags, SendGateway, SendOutcome,
//! };
//!
//! let no_secrets = |_: &str| Vec::new();
//! let gateway = SendGateway::new(Arc::new(Pel::new(PelConfig::default(), Arc::new(no_secrets))));
//! gateway.register(Channel::threadline());
//!
//! let message = OutboundMessage {
//!     text: "The build is green.".into(),
//!     subject: None,
//!     target: ReplyTarget {
//!         channel: ChannelId::THREADLINE,
//!         recipient: Recipient {
//!             kind: RecipientKind::Agent,
//!             id: "0123456789abcdef0123456789abcdef".into(),
//!             trust: Some("trusted".into()),
//!             own_values: Vec::new(),
//!         },
//!         conversation: None,
//!     },
//!     origin: Origin::Session,
//!     session_id: None,
//!     flags: SendFlags::default(),
//!     idempotency_key: None,
//! };
//! let moment = Moment { now_ms: 0, verdict_id: uuid::Uuid::nil(), latch: Latch::Open };
//! assert!(matches!(gateway.review(message, &moment, &[]), SendOutcome::Cleared(_)));
//! ```

mod gateway;
mod invisible;
mod message;
mod policy;
mod stage;

pub use gateway::{
    Channel, ChannelStats, Cleared, GatewayStats, SendGateway, SendOutcome, StagePresence, StageStats,
    Verdict,
};
pub use message::{
    ChannelId, InvalidChannelId, Origin, OutboundMessage, Recipient, RecipientKind, ReplyTarget, SendFlags,
};
pub use policy::{
    Pel, PelConfig, PelRule, SecretClass, SecretHit, SecretScan, Severity, UnknownPelRule, Violation,
};
pub use stage::{Block, Finding, Hold, Latch, Moment, Stage, StageId, StageVerdict};
