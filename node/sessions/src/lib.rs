//! Real runtime processes as sessions: transports, life cycle, delivery of input.
