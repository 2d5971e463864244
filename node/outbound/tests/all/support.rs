//! Messages and a gateway to send them through.

use std::sync::Arc;

use instar_outbound::{
    Channel, ChannelId, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient, RecipientKind,
    ReplyTarget, SecretClass, SecretHit, SendFlags, SendGateway,
};
use uuid::Uuid;

/// A text whose occurrence the scanner of these tests takes for a credential.
pub(crate) const PLANTED: &str = "planted-credential";

pub(crate) const MOMENT: Moment =
    Moment { now_ms: 1_795_000_000_000, verdict_id: Uuid::from_u128(7), latch: Latch::Open };

pub(crate) fn to_agent(text: &str) -> OutboundMessage {
    to(ChannelId::THREADLINE, RecipientKind::Agent, text)
}

pub(crate) fn to(channel: ChannelId, kind: RecipientKind, text: &str) -> OutboundMessage {
    OutboundMessage {
        text: text.to_owned(),
        subject: None,
        target: ReplyTarget {
            channel,
            recipient: Recipient { kind, id: "b0b".into(), trust: None, own_values: Vec::new() },
            conversation: None,
        },
        origin: Origin::Session,
        session_id: None,
        flags: SendFlags::default(),
        idempotency_key: None,
    }
}

pub(crate) fn policy(config: PelConfig) -> Pel {
    let scan = |text: &str| {
        text.match_indices(PLANTED)
            .map(|(at, found)| SecretHit {
                class: SecretClass::Credential,
                kind: "planted".into(),
                span: at..at + found.len(),
            })
            .collect::<Vec<_>>()
    };
    Pel::new(config, Arc::new(scan))
}

pub(crate) fn gateway() -> SendGateway {
    let gateway = SendGateway::new(Arc::new(policy(PelConfig::default())));
    gateway.register(Channel::threadline());
    gateway.register(Channel::person(ChannelId::parse("telegram").expect("a name")));
    gateway
}
