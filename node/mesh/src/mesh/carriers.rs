//! What arrives over HTTP from agents of this host and from paired servers.

use serde_json::{Value, json};
use threadline::service::{Caller, ServiceError};
use threadline::v1::http::signed::SignedHeaders;
use threadline::v1::http::{TlCode, TlError};

use super::{Mesh, Refusal};
use crate::direct::WireAnswer;
use crate::pairing::SignedRequest;

impl Mesh {
    /// `POST /messages/relay-agent`: `token` is the bearer token of the request.
    pub async fn relay_agent(&self, token: Option<&str>, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.relay_agent(token, body).await,
            Err(refusal) => WireAnswer { status: 503, body: json!({"ok": false, "error": refusal.message}) },
        }
    }

    /// `POST /threadline/handshake/hello`: `source` is the caller's address.
    pub async fn handshake_hello(&self, source: &str, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.handshake_hello(source, body).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/handshake/confirm`
    pub async fn handshake_confirm(&self, body: &[u8]) -> WireAnswer {
        match &self.core {
            Ok(core) => core.handshake_confirm(body).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/messages/receive`
    pub async fn receive_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
    ) -> WireAnswer {
        match &self.core {
            Ok(core) => core.receive_signed(headers, request).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `GET /threadline/messages/thread/:id`
    pub async fn thread_signed(
        &self,
        headers: Result<SignedHeaders, TlError>,
        request: SignedRequest<'_>,
        thread: &str,
        limit: Option<u32>,
        before: Option<i64>,
    ) -> WireAnswer {
        match &self.core {
            Ok(core) => core.thread_signed(headers, request, thread, limit, before).await,
            Err(refusal) => refusal.on_the_wire(),
        }
    }

    /// `POST /threadline/pairings`: the owner only.
    pub async fn pair(&self, caller: &Caller, base: &str) -> Result<Value, ServiceError> {
        self.core()?.pair(caller, base).await
    }

    /// `GET /threadline/pairings`
    pub fn pairings(&self) -> Result<Value, ServiceError> {
        Ok(self.core()?.pairings())
    }

    /// `POST /threadline/pairings/:name/confirm`: the owner only.
    pub async fn confirm_pairing(&self, caller: &Caller, name: &str) -> Result<Value, ServiceError> {
        self.core()?.confirm_pairing(caller, name).await
    }

    /// `DELETE /threadline/pairings/:name`
    pub async fn remove_pairing(&self, name: &str) -> Result<Value, ServiceError> {
        self.core()?.remove_pairing(name).await
    }
}

impl Refusal {
    /// The refusal in the shape of the HTTP carrier.
    fn on_the_wire(&self) -> WireAnswer {
        let error = TlError::new(TlCode::InternalError, self.message.clone()).status(503).retry_after(60);
        WireAnswer { status: error.status, body: error.body() }
    }
}
