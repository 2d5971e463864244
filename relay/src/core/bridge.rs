//! What the core knows of the A2A bridge: an identity of this relay that no limit applies to, and to which agents may
//! only write where it waits for them.

use std::collections::HashSet;

use threadline::{Fingerprint, ThreadId};

use super::Core;

/// The bridge, as the core sees it.
#[derive(Debug)]
pub(super) struct Bridge {
    address: Fingerprint,
    awaited: HashSet<(Fingerprint, String)>,
}

impl Core {
    /// Makes an identity the bridge of this relay.
    pub fn set_bridge(&mut self, address: Fingerprint) {
        self.bridge = Some(Bridge { address, awaited: HashSet::new() });
    }

    /// The bridge's address.
    pub(super) fn bridge_address(&self) -> Option<Fingerprint> {
        self.bridge.as_ref().map(|bridge| bridge.address)
    }

    /// Whether this is the bridge, whose callers have limits of their own.
    pub(super) fn is_bridge(&self, address: &Fingerprint) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.address == *address)
    }

    /// The bridge begins or ends to wait for an agent in a conversation.
    pub(super) fn bridge_awaits(&mut self, agent: Fingerprint, thread: String, waits: bool) {
        let Some(bridge) = &mut self.bridge else { return };
        if waits {
            bridge.awaited.insert((agent, thread));
        } else {
            bridge.awaited.remove(&(agent, thread));
        }
    }

    /// Whether an agent writes to the bridge where nobody waits.
    pub(super) fn is_unasked(
        &self,
        sender: Fingerprint,
        recipient: &Fingerprint,
        thread: Option<&ThreadId>,
    ) -> bool {
        self.bridge.as_ref().filter(|bridge| bridge.address == *recipient).is_some_and(|bridge| {
            thread.is_none_or(|thread| !bridge.awaited.contains(&(sender, thread.as_str().to_owned())))
        })
    }
}
