use instar_outbound::{Cleared, OutboundMessage};

fn twice(cleared: Cleared<OutboundMessage>) -> (Cleared<OutboundMessage>, Cleared<OutboundMessage>) {
    (cleared.clone(), cleared)
}

fn main() {}
