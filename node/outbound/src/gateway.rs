//! The engine: runs the stages in order, counts, and mints the clearance.

mod clearance;
mod stats;
mod structure;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

pub use clearance::{Cleared, Verdict};
pub use stats::{ChannelStats, GatewayStats, StagePresence, StageStats};
pub use structure::Channel;

use crate::{
    Block, ChannelId, Hold, Latch, Moment, Origin, OutboundMessage, Pel, Stage, StageId, StageVerdict,
};
use stats::Counters;

/// How an attempt to say something ended, as far as the gateway decides it.
#[derive(Debug)]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "moved once, and most outcomes are the large one")]
pub enum SendOutcome {
    /// May go out: hand it to the outbox.
    Cleared(Cleared<OutboundMessage>),
    /// Refused.
    Blocked(Block),
    /// Waits for a person.
    Held(Hold),
    /// Already sent.
    Duplicate {
        /// The earlier message.
        of: String,
    },
}

/// The one way out of the node.
pub struct SendGateway {
    channels: RwLock<BTreeMap<ChannelId, (Channel, Arc<Counters>)>>,
    policy: Arc<Pel>,
    stages: Vec<Box<dyn Stage>>,
    per_message: Vec<(StageId, ChannelId)>,
}

impl SendGateway {
    /// A gateway with the policy layer, which is never absent, and no channel.
    pub fn new(policy: Arc<Pel>) -> Self {
        Self { channels: RwLock::default(), policy, stages: Vec::new(), per_message: Vec::new() }
    }

    /// Adds a check. Checks run in the order of [`StageId`], those of one stage in the order they were added.
    ///
    /// # Panics
    /// When the stage belongs to the engine itself (structure, latch, policy, system delivery, clearance).
    #[must_use]
    pub fn with_stage(mut self, stage: impl Stage + 'static) -> Self {
        assert!(is_contributed(stage.id()), "stage {} belongs to the engine", stage.id().name());
        self.stages.push(Box::new(stage));
        self.stages.sort_by_key(|stage| stage.id());
        self
    }

    /// Declares a stage whose facts belong to one message, so that its owner passes it to [`SendGateway::review`].
    /// A message on `channel` without it is refused.
    #[must_use]
    pub fn with_stage_per_message(mut self, stage: StageId, channel: ChannelId) -> Self {
        assert!(is_contributed(stage), "stage {} belongs to the engine", stage.name());
        self.per_message.push((stage, channel));
        self
    }

    /// Makes a channel known; text for any other is refused. Registering again keeps its counters.
    pub fn register(&self, channel: Channel) {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        let counters =
            channels.get(&channel.id).map(|(_, counters)| Arc::clone(counters)).unwrap_or_default();
        channels.insert(channel.id.clone(), (channel, counters));
    }

    /// Runs all checks over one message. `contributed` are the stages made for this very message.
    pub fn review(
        &self,
        message: OutboundMessage,
        moment: &Moment,
        contributed: &[&dyn Stage],
    ) -> SendOutcome {
        let known = {
            let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
            channels.get(&message.target.channel).cloned()
        };
        let Some((channel, counters)) = known else {
            return SendOutcome::Blocked(Block::new(
                StageId::Structure,
                "unregistered",
                format!("channel `{}` is not registered on this node", message.target.channel),
            ));
        };
        counters.reviewed();
        let outcome = self.decide(message, &channel, moment, contributed, &counters);
        match &outcome {
            SendOutcome::Cleared(_) => counters.passed(),
            SendOutcome::Blocked(_) | SendOutcome::Duplicate { .. } => counters.blocked(),
            SendOutcome::Held(_) => counters.held(),
        }
        outcome
    }

    /// Counters per channel, and which stages exist.
    pub fn stats(&self) -> GatewayStats {
        let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
        GatewayStats {
            channels: channels.iter().map(|(id, (_, counters))| (id.clone(), counters.read())).collect(),
            stages: StageId::ALL.into_iter().map(|id| StageStats::new(id, self.presence(id))).collect(),
        }
    }

    fn presence(&self, id: StageId) -> StagePresence {
        let present = !is_contributed(id)
            || self.stages.iter().any(|stage| stage.id() == id)
            || self.per_message.iter().any(|(stage, _)| *stage == id);
        if present { StagePresence::Present } else { StagePresence::Absent }
    }

    fn decide(
        &self,
        message: OutboundMessage,
        channel: &Channel,
        moment: &Moment,
        contributed: &[&dyn Stage],
        counters: &Counters,
    ) -> SendOutcome {
        if let Err(block) = structure::check(&message, channel) {
            return SendOutcome::Blocked(block);
        }
        if let Err(block) = check_latch(&message, moment.latch) {
            return SendOutcome::Blocked(block);
        }
        let mut verdict = Verdict::new(moment);
        let mut record = |by, said| record(by, said, &mut verdict, counters);
        if let Some(outcome) = record(StageId::Policy, self.policy.review(&message)) {
            return outcome;
        }
        if !matches!(message.origin, Origin::System | Origin::Bridge) {
            if let Some(missing) = self.missing(&message, contributed) {
                return SendOutcome::Blocked(missing);
            }
            for stage in self.in_order(contributed) {
                if stage.applies_to(&message)
                    && let Some(outcome) = record(stage.id(), stage.review(&message, moment))
                {
                    return outcome;
                }
            }
        }
        SendOutcome::Cleared(Cleared::mint(message, verdict))
    }

    fn in_order<'a>(&'a self, contributed: &[&'a dyn Stage]) -> Vec<&'a dyn Stage> {
        let mut stages: Vec<&dyn Stage> = self.stages.iter().map(AsRef::as_ref).collect();
        stages.extend(contributed.iter().copied().filter(|stage| is_contributed(stage.id())));
        stages.sort_by_key(|stage| stage.id());
        stages
    }

    fn missing(&self, message: &OutboundMessage, contributed: &[&dyn Stage]) -> Option<Block> {
        let (stage, _) = self.per_message.iter().find(|(id, channel)| {
            *channel == message.target.channel && !contributed.iter().any(|stage| stage.id() == *id)
        })?;
        Some(Block::new(
            *stage,
            "stage-missing",
            format!("the {} checks of channel `{}` did not run", stage.name(), message.target.channel),
        ))
    }
}

/// Whether others may contribute to this stage.
const fn is_contributed(id: StageId) -> bool {
    !matches!(
        id,
        StageId::Structure | StageId::Latch | StageId::Policy | StageId::SystemDelivery | StageId::Clearance
    )
}

fn check_latch(message: &OutboundMessage, latch: Latch) -> Result<(), Block> {
    let feedback = match latch {
        Latch::Open => return Ok(()),
        Latch::EmergencyStop => "the emergency stop is set; nothing is sent until the owner resumes",
        Latch::SessionHeld => "this session is held by a stop word; nothing is sent until the owner resumes",
    };
    if message.flags.operator_acknowledgement {
        return Ok(());
    }
    Err(Block::new(StageId::Latch, "estop", feedback))
}

/// Notes what a stage said; returns the outcome when that ends the walk.
fn record(
    by: StageId,
    said: StageVerdict,
    verdict: &mut Verdict,
    counters: &Counters,
) -> Option<SendOutcome> {
    match said {
        StageVerdict::Pass => None,
        StageVerdict::Warn(findings) => {
            counters.warned(findings.len());
            verdict.warn(by, findings);
            None
        }
        StageVerdict::Abstain { cause } => {
            counters.abstained();
            verdict.abstain(by, cause);
            None
        }
        StageVerdict::Block(block) => Some(SendOutcome::Blocked(block)),
        StageVerdict::Hold(hold) => Some(SendOutcome::Held(hold)),
        StageVerdict::Duplicate { of } => Some(SendOutcome::Duplicate { of }),
    }
}
