//! One WebSocket: texts in, frames out.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};

use super::Shared;
use super::outbox::Outbox;
use crate::core::{ConnId, Event, Inbound, Source};

/// A client that takes nothing for this long is closed with 4000.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Time a client has to answer a close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Serves a socket until it is closed by either side.
pub(super) async fn run(mut socket: WebSocket, source: Source, shared: Arc<Shared>) {
    let outbox = Arc::new(Outbox::default());
    let Some(id) = shared.driver.open(source, Arc::clone(&outbox)).await else { return };
    exchange(&mut socket, id, &outbox, &shared).await;
    shared.driver.event(Event::Closed { conn: id }).await;
    let _ =
        tokio::time::timeout(CLOSE_WITHIN, async { while let Some(Ok(_)) = socket.recv().await {} }).await;
}

async fn exchange(socket: &mut WebSocket, id: ConnId, outbox: &Outbox, shared: &Shared) {
    loop {
        let incoming = tokio::select! {
            biased;
            outgoing = outbox.next() => {
                let Some(message) = outgoing else { return };
                if !write(socket, message).await {
                    return;
                }
                continue;
            }
            incoming = socket.recv(), if !outbox.is_full() => incoming,
        };
        match incoming {
            Some(Ok(Message::Text(text))) if !outbox.is_closing() => {
                let inbound = Inbound::read(text.as_str());
                shared.driver.event(Event::Received { conn: id, inbound }).await;
            }
            Some(Ok(Message::Binary(_))) => {
                let inbound = Inbound::read("");
                shared.driver.event(Event::Received { conn: id, inbound }).await;
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            Some(Ok(_)) => {}
        }
    }
}

async fn write(socket: &mut WebSocket, message: Message) -> bool {
    let last = matches!(message, Message::Close(_));
    let written = tokio::time::timeout(WRITE_WITHIN, socket.send(message)).await;
    matches!(written, Ok(Ok(()))) && !last
}
