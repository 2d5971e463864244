//! Connections: bytes arrive in order and late, or, from the moment of a cut on, not at all.

use threadline::v1::client::ConnectionId;
use threadline_relay::core::ConnId;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Node,
    Relay,
}

/// One connection between a node and the relay.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) node: usize,
    pub(super) connection: ConnectionId,
    pub(super) conn: ConnId,
    /// Whether the node's end is open, as the node sees it.
    pub(super) node_open: bool,
    /// Whether the relay's end is open, as the relay sees it.
    pub(super) relay_open: bool,
    /// What is under way is lost, and nothing follows.
    pub(super) cut: bool,
    to_node: i64,
    to_relay: i64,
}

impl Socket {
    pub(super) fn new(node: usize, connection: ConnectionId, conn: ConnId) -> Self {
        Self {
            node,
            connection,
            conn,
            node_open: true,
            relay_open: true,
            cut: false,
            to_node: 0,
            to_relay: 0,
        }
    }

    /// When something sent now arrives at that end: never before what was sent earlier.
    pub(super) fn arrival(&mut self, end: End, earliest: i64) -> i64 {
        let last = match end {
            End::Node => &mut self.to_node,
            End::Relay => &mut self.to_relay,
        };
        *last = earliest.max(*last);
        *last
    }

    pub(super) fn is_open(&self, end: End) -> bool {
        match end {
            End::Node => self.node_open,
            End::Relay => self.relay_open,
        }
    }

    pub(super) fn close(&mut self, end: End) {
        match end {
            End::Node => self.node_open = false,
            End::Relay => self.relay_open = false,
        }
    }
}
