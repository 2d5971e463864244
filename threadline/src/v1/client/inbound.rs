//! Received messages between the socket and the spool.
//!
//! A relay may read a pong as "everything before the ping was taken" (`relay.md` §7.1), so a pong waits until every
//! message that came before its ping is in the spool.

use std::collections::VecDeque;

use serde_json::Value;

use super::ConnectionId;
use crate::MessageId;

/// Names a received message until it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) connection: ConnectionId,
    pub(super) number: u64,
    /// Its id on the wire.
    pub message_id: MessageId,
}

#[derive(Debug)]
enum Waiting {
    Message(u64),
    Pong(Option<Value>),
}

/// Order of messages and pings on the current connection.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    next: u64,
    waiting: VecDeque<Waiting>,
}

impl Inbound {
    pub(super) fn message(&mut self, connection: ConnectionId, message_id: MessageId) -> Ticket {
        self.next += 1;
        self.waiting.push_back(Waiting::Message(self.next));
        Ticket { connection, number: self.next, message_id }
    }

    /// Takes a ping; returns the pongs that may leave now.
    pub(super) fn ping(&mut self, timestamp: Option<Value>) -> Vec<Option<Value>> {
        self.waiting.push_back(Waiting::Pong(timestamp));
        self.free()
    }

    /// Takes a message off; returns the pongs that may leave now.
    pub(super) fn resolve(&mut self, ticket: &Ticket) -> Vec<Option<Value>> {
        self.waiting.retain(|w| !matches!(w, Waiting::Message(n) if *n == ticket.number));
        self.free()
    }

    fn free(&mut self) -> Vec<Option<Value>> {
        let mut free = Vec::new();
        while let Some(Waiting::Pong(timestamp)) =
            self.waiting.pop_front_if(|w| matches!(w, Waiting::Pong(_)))
        {
            free.push(timestamp);
        }
        free
    }
}
