//! Behavioural hooks as pure decisions, and the executable that a runtime calls.
