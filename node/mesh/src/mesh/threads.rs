//! Threads and their messages, as the owner looks at them.

use serde_json::Value;
use threadline::service::{Caller, DeleteRequest, HistoryRequest, ServiceError};
use threadline::threads::ThreadState;
use threadline_net::store::Direction;

use super::{Mesh, fingerprint};

impl Mesh {
    /// `GET /threadline/threads`: `cursor` is the one of an earlier answer.
    pub async fn threads(
        &self,
        peer: Option<&str>,
        state: Option<ThreadState>,
        limit: u32,
        cursor: Option<i64>,
    ) -> Result<Value, ServiceError> {
        let peer = peer.map(fingerprint).transpose()?;
        self.core()?.threads(peer, state, limit, cursor).await
    }

    /// `GET /threadline/threads/:id`: the thread with its newest messages.
    pub async fn thread(&self, caller: &Caller, request: HistoryRequest) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, &request.thread_id, request.peer.as_deref()).await?;
        let mut thread = core.one_thread(key).await?;
        thread["history"] = core.history(caller, request).await?;
        Ok(thread)
    }

    /// `DELETE /threadline/threads/:id`
    pub async fn delete_thread(
        &self,
        caller: &Caller,
        request: DeleteRequest,
    ) -> Result<Value, ServiceError> {
        self.core()?.delete(caller, request).await
    }

    /// `POST /threadline/threads/:id/pin` and `/unpin`
    pub async fn pin_thread(
        &self,
        caller: &Caller,
        thread: &str,
        peer: Option<&str>,
        pinned: bool,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, thread, peer).await?;
        core.pin_thread(key, pinned).await
    }

    /// `POST /threadline/threads/:id/resolve`
    pub async fn resolve_thread(
        &self,
        caller: &Caller,
        thread: &str,
        peer: Option<&str>,
    ) -> Result<Value, ServiceError> {
        let core = self.core()?;
        let key = core.find_thread(caller, thread, peer).await?;
        core.resolve_thread(key).await
    }

    /// `GET /messages/inbox`: newest messages of all peers.
    pub async fn inbox(&self, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.recent(Direction::In, limit).await
    }

    /// `GET /messages/outbox`: newest messages to all peers.
    pub async fn outbox(&self, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.recent(Direction::Out, limit).await
    }

    /// `GET /threadline/observability/search`
    pub async fn search(&self, query: &str, limit: u32) -> Result<Value, ServiceError> {
        self.core()?.search(query, limit).await
    }
}
