//! What node and stdio supervisor say to each other: one JSON object a line on the session's socket.
//!
//! The runtime's events do not travel here; they are in the event log, and the supervisor tells how long it is.

use serde::{Deserialize, Serialize};

use crate::launch::Pids;
use crate::record::ExitRecord;

/// Node to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Request {
    /// Write one line to the runtime.
    Write {
        /// The line, without its newline.
        line: String,
    },
    /// Close the runtime's input; after 5 s terminate it; after 5 s more kill it.
    End,
}

/// Supervisor to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Report {
    /// First line of each connection.
    Hello {
        /// The processes.
        pids: Pids,
    },
    /// The event log reaches up to this offset.
    Log {
        /// Bytes since the session's start.
        end: u64,
    },
    /// A write was not taken; nothing of it reached the runtime.
    Refused {
        /// Why.
        reason: String,
    },
    /// The runtime ended; the log is complete.
    Exit {
        /// How.
        record: ExitRecord,
    },
}
