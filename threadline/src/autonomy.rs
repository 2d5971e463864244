//! What the owner's autonomy profile lets happen without asking (`threadline-agent.md` §8.1).

use serde::{Deserialize, Serialize};

/// The profile, read live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Autonomy {
    /// Ask for each message.
    Cautious,
    /// Act and tell.
    #[default]
    Supervised,
    /// Act and tell in the digest.
    Collaborative,
    /// Act.
    Autonomous,
}

/// How the owner hears of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// At once, as a question.
    Ask,
    /// One notice per thread and minute.
    PerThread,
    /// With the next digest.
    Digest,
    /// Only when looked up.
    None,
}

/// What the gate says about one message, in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Drop it.
    Block,
    /// Keep it until the peer or everything is resumed.
    HoldPaused,
    /// Keep it until the owner decides.
    HoldForApproval,
    /// Let it pass.
    Pass(Notice),
}

/// Controls that the owner set for one peer or for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Controls {
    /// Nothing of this peer passes.
    pub blocked: bool,
    /// This peer, or everything, is paused.
    pub paused: bool,
}

impl Autonomy {
    /// The gate for a message in either direction. A pause of a blocked peer stays a block.
    pub const fn gate(self, controls: Controls) -> Gate {
        if controls.blocked {
            return Gate::Block;
        }
        if controls.paused {
            return Gate::HoldPaused;
        }
        match self {
            Self::Cautious => Gate::HoldForApproval,
            Self::Supervised => Gate::Pass(Notice::PerThread),
            Self::Collaborative => Gate::Pass(Notice::Digest),
            Self::Autonomous => Gate::Pass(Notice::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let gate = |profile: Autonomy, blocked, paused| profile.gate(Controls { blocked, paused });
        assert_eq!(gate(Autonomy::Autonomous, true, true), Gate::Block);
        assert_eq!(gate(Autonomy::Autonomous, false, true), Gate::HoldPaused);
        assert_eq!(gate(Autonomy::Cautious, false, false), Gate::HoldForApproval);
        assert_eq!(gate(Autonomy::Supervised, false, false), Gate::Pass(Notice::PerThread));
        assert_eq!(gate(Autonomy::Collaborative, false, false), Gate::Pass(Notice::Digest));
        assert_eq!(gate(Autonomy::Autonomous, false, false), Gate::Pass(Notice::None));
        assert_eq!(serde_json::from_str::<Autonomy>("\"supervised\"").expect("reads"), Autonomy::default());
    }
}
