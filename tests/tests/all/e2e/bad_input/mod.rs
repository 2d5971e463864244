//! What must be refused: each case gets the error that the specification names, and nothing is lost.

mod node;
mod relay;
mod wire;
