//! This node's part in the mesh: inbound pipeline, routing to sessions, sending, trust records.
