//! Several relays on one NATS JetStream (`relay.md` §15): mail, presence and the directory lie in the engine, every relay
//! decides by what it reads there.

mod attendance;
mod blobs;
mod devices;
mod engine;
mod lanes;
mod layout;
mod leader;
mod letter;
mod mailbox;
mod presence;
mod pulse;
mod replica;
mod signs;

#[cfg(test)]
pub(crate) mod rig;

pub use engine::{Engine, EngineError, Options};
pub use lanes::{FromEngine, run};
pub use layout::Rules;
pub use letter::Letter;
