//! The Threadline relay: connections, custody, presence, registry.
