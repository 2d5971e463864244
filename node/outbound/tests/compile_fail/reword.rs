use instar_outbound::{Cleared, OutboundMessage};

fn reworded(cleared: Cleared<OutboundMessage>) -> Cleared<OutboundMessage> {
    cleared.get().text.push_str("and more");
    cleared
}

fn main() {}
