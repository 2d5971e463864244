//! v1 between two servers without a relay: handshake, signed requests, pairing words (`threadline-wire.md` §3).

pub mod handshake;
pub mod pairing;
pub mod signed;

use serde_json::{Value, json};

/// Content type of every answer.
pub const CONTENT_TYPE: &str = "application/threadline+json; charset=utf-8; version=1.0";

/// Error codes of the HTTP carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlCode {
    /// A header is missing.
    AuthMissing,
    /// Token or signature is wrong.
    AuthFailed,
    /// The time is outside the window.
    TimestampExpired,
    /// The nonce was used.
    ReplayDetected,
    /// A handshake is refused.
    HandshakeFailed,
    /// The body is not what the route reads.
    InvalidPayload,
    /// Too many.
    RateLimited,
    /// No such thing.
    NotFound,
    /// This side failed.
    InternalError,
}

impl TlCode {
    /// Every code.
    pub const ALL: [Self; 9] = [
        Self::AuthMissing,
        Self::AuthFailed,
        Self::TimestampExpired,
        Self::ReplayDetected,
        Self::HandshakeFailed,
        Self::InvalidPayload,
        Self::RateLimited,
        Self::NotFound,
        Self::InternalError,
    ];

    /// The word that travels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthMissing => "TL_AUTH_MISSING",
            Self::AuthFailed => "TL_AUTH_FAILED",
            Self::TimestampExpired => "TL_TIMESTAMP_EXPIRED",
            Self::ReplayDetected => "TL_REPLAY_DETECTED",
            Self::HandshakeFailed => "TL_HANDSHAKE_FAILED",
            Self::InvalidPayload => "TL_INVALID_PAYLOAD",
            Self::RateLimited => "TL_RATE_LIMITED",
            Self::NotFound => "TL_NOT_FOUND",
            Self::InternalError => "TL_INTERNAL_ERROR",
        }
    }

    const fn status(self) -> u16 {
        match self {
            Self::AuthMissing | Self::TimestampExpired | Self::ReplayDetected => 401,
            Self::AuthFailed => 403,
            Self::HandshakeFailed | Self::InvalidPayload => 400,
            Self::RateLimited => 429,
            Self::NotFound => 404,
            Self::InternalError => 500,
        }
    }

    const fn is_retryable(self) -> bool {
        matches!(self, Self::TimestampExpired | Self::RateLimited | Self::InternalError)
    }
}

/// A refusal in the shape of this carrier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct TlError {
    /// For programs.
    pub code: TlCode,
    /// HTTP status.
    pub status: u16,
    /// For people.
    pub message: String,
    /// Seconds after which a repetition may succeed.
    pub retry_after_s: Option<u64>,
}

impl TlError {
    /// A refusal with the status of its code.
    pub fn new(code: TlCode, message: impl Into<String>) -> Self {
        Self { code, status: code.status(), message: message.into(), retry_after_s: None }
    }

    /// A malformed body.
    pub fn payload(message: impl Into<String>) -> Self {
        Self::new(TlCode::InvalidPayload, message)
    }

    /// With another status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With a pause.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The body that travels.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "code": self.code.as_str(),
            "message": self.message,
            "retryable": self.code.is_retryable(),
        });
        if let Some(seconds) = self.retry_after_s {
            error["retryAfterSeconds"] = seconds.into();
        }
        json!({"error": error})
    }
}

/// Lowercase hex of exactly `N` bytes.
fn hex_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lowercase = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lowercase && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}
