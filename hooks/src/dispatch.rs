//! The named hooks, the order in which they run for an event, and what each is given.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::binding::BindingState;
use crate::client::NodeClient;
use crate::context::{self, ConversationFacts, IdentityFacts, IdentityFiles, Project, Section, Sections};
use crate::event::{Event, EventInput};
use crate::firewall;
use crate::guard::{self, Judgement, Places};
use crate::report::{HookDecision, clip, sha256_hex};
use crate::snapshot::{HookConfig, PermissionMode};
use crate::tag::Tag;
use crate::verdict::{Outcome, Verdict};

/// Time that the node has for the context of a session's start.
const BOOT_DEADLINE: Duration = Duration::from_millis(1_500);
/// Time that the node has for the context of a turn.
const TURN_DEADLINE: Duration = Duration::from_secs(1);

/// How a hook behaves when something fails, and whether it can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookClass {
    /// Local rules; closed on failure; always on.
    Safety,
    /// Closed on failure and when the node is down; always on.
    EnforcementClosed,
    /// Tells the session something; falls back to local files; never blocks on failure.
    Grounding,
    /// Only watches; silent on failure.
    Observer,
}

/// One named hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookInfo {
    /// Name, also the command `instar-hook <name>`.
    pub name: &'static str,
    /// Class.
    pub class: HookClass,
    /// Events on which it runs.
    pub events: &'static [Event],
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    CommandGuard,
    PeerFirewall,
    AutoApprove,
    SessionStart,
    TurnContext,
    Reporter,
}

/// Every named hook. Those of one event run in this order.
pub const HOOKS: &[HookInfo] = &[
    HookInfo {
        name: "dangerous-command-guard",
        class: HookClass::Safety,
        events: &[Event::PreToolUse, Event::PermissionRequest],
        kind: Kind::CommandGuard,
    },
    HookInfo {
        name: "peer-firewall",
        class: HookClass::EnforcementClosed,
        events: &[Event::PreToolUse],
        kind: Kind::PeerFirewall,
    },
    HookInfo {
        name: "auto-approve-permissions",
        class: HookClass::EnforcementClosed,
        events: &[Event::PermissionRequest],
        kind: Kind::AutoApprove,
    },
    HookInfo {
        name: "session-start",
        class: HookClass::Grounding,
        events: &[Event::SessionStart],
        kind: Kind::SessionStart,
    },
    HookInfo {
        name: "turn-context",
        class: HookClass::Grounding,
        events: &[Event::UserPromptSubmit],
        kind: Kind::TurnContext,
    },
    HookInfo { name: "event-reporter", class: HookClass::Observer, events: Event::ALL, kind: Kind::Reporter },
];

/// What the hooks of one event are given.
#[derive(Debug)]
pub(crate) struct Firing<'f> {
    pub event: Event,
    pub input: &'f EventInput,
    pub config: &'f HookConfig,
    pub binding: &'f BindingState,
    pub environment_serves_peer: bool,
    pub session: Option<&'f str>,
    pub conversation: Option<&'f str>,
    pub node: Option<&'f NodeClient>,
    pub places: Places,
    pub state_dir: PathBuf,
    pub part: Option<Part>,
    pub compact: bool,
    pub now: String,
}

/// Part of the context of a session's start; each has a registered command of its own because of the length cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Identity,
    Conversation,
}

/// Runs the hooks of the event, or the one named, and merges what they say.
pub(crate) fn run(firing: &Firing<'_>, only: Option<&str>) -> (Outcome, Vec<HookDecision>) {
    let mut outcome = Outcome::default();
    let mut decisions = Vec::new();
    let chosen = HOOKS.iter().filter(|hook| match only {
        Some(name) => hook.name == name,
        None => hook.events.contains(&firing.event) && is_enabled(hook, firing.config),
    });
    for hook in chosen {
        let verdict = firing.run(hook.kind);
        if let Some((name, reason)) = verdict.summary() {
            let reason = reason.map(|text| clip(&instar_redact::redact(text), 500).to_owned());
            decisions.push(HookDecision { hook: hook.name.to_owned(), verdict: name.to_owned(), reason });
        }
        outcome.add(verdict);
    }
    (outcome, decisions)
}

fn is_enabled(hook: &HookInfo, config: &HookConfig) -> bool {
    matches!(hook.class, HookClass::Safety | HookClass::EnforcementClosed)
        || !config.disabled.iter().any(|name| name == hook.name)
}

impl Firing<'_> {
    fn run(&self, kind: Kind) -> Verdict {
        match kind {
            Kind::CommandGuard => self.command_guard(),
            Kind::PeerFirewall => self.peer_firewall(),
            Kind::AutoApprove => self.auto_approve(),
            Kind::SessionStart => self.session_start(),
            Kind::TurnContext => self.turn_context(),
            // The report itself is sent by the process, after everything else.
            Kind::Reporter => Verdict::Pass,
        }
    }

    fn serves_peer(&self) -> bool {
        firewall::is_active(self.environment_serves_peer, self.binding)
    }

    fn command_guard(&self) -> Verdict {
        let tool = self.input.tool_name().unwrap_or_default();
        let judgement = match tool {
            "Write" | "Edit" | "MultiEdit" | "NotebookEdit" => {
                let path =
                    self.input.tool_text("file_path").or_else(|| self.input.tool_text("notebook_path"));
                path.map_or(Judgement::Pass, |path| guard::judge_write(path, &self.places))
            }
            "Bash" | "exec_command" | "shell" | "local_shell" => match self.input.shell_command() {
                Some(command) => guard::judge(&command, &self.places, self.config),
                None => Judgement::Pass,
            },
            _ => Judgement::Pass,
        };
        match judgement {
            Judgement::Pass => Verdict::Pass,
            Judgement::Deny(reason) => Verdict::Deny(reason),
            Judgement::Ask(reason) => Verdict::Ask(reason),
            Judgement::Remind(text) => {
                let agent = IdentityFiles::read(&self.state_dir).agent.unwrap_or_default();
                let head: Vec<&str> = agent.lines().take(20).collect();
                Verdict::Context(vec![
                    Section::new("CHECK YOURSELF", text),
                    Section::new("AGENT.md", head.join("\n")),
                ])
            }
        }
    }

    fn peer_firewall(&self) -> Verdict {
        if !self.serves_peer() {
            return Verdict::Pass;
        }
        let tool = self.input.tool_name().unwrap_or_default();
        match (self.node, self.session) {
            (Some(node), Some(session)) => {
                firewall::authorize(node, session, tool, self.input.get("tool_input"))
            }
            _ => Verdict::Deny(format!(
                "{tool} is not allowed: this session serves a peer, and the node cannot be asked."
            )),
        }
    }

    fn auto_approve(&self) -> Verdict {
        if self.serves_peer() {
            let tool = self.input.tool_name().unwrap_or("This tool");
            return Verdict::Deny(format!("{tool} is not allowed in this session, which serves a peer."));
        }
        match self.config.permission_mode {
            PermissionMode::Bypass => Verdict::Allow,
            PermissionMode::Ask => Verdict::Pass,
        }
    }

    fn session_start(&self) -> Verdict {
        let part = self.part.unwrap_or(Part::Identity);
        let name = match part {
            Part::Identity => "identity",
            Part::Conversation => "conversation",
        };
        let asked =
            self.ask_context(&format!("/context/boot?part={name}&compact={}", self.compact), BOOT_DEADLINE);
        if let Some(text) = asked {
            return Verdict::Context(text);
        }
        Verdict::Context(match part {
            Part::Identity => context::identity(&IdentityFacts {
                now: self.now.clone(),
                agent_name: self.config.agent_name.clone(),
                state_dir: self.state_dir.display().to_string(),
                files: IdentityFiles::read(&self.state_dir),
                project: Some(Project::read(self.places.project.as_ref())),
                compact: self.compact,
                serves_peer: self.serves_peer(),
                node_down: true,
            }),
            Part::Conversation => context::conversation(&ConversationFacts {
                conversation: self.conversation.map(str::to_owned),
                history: None,
                compact: self.compact,
            }),
        })
    }

    fn turn_context(&self) -> Verdict {
        let prompt = self.input.text("prompt").unwrap_or_default();
        if let (Some(tag), BindingState::Bound(binding)) = (Tag::of_prompt(prompt), self.binding)
            && !binding.admits(&tag)
        {
            return Verdict::Block(format!(
                "This message is tagged {}:{}, which is not the conversation of this session; it was not delivered.",
                tag.platform,
                clip(tag.id, 64)
            ));
        }
        let target = format!("/context/turn?prompt_sha={}", sha256_hex(prompt));
        let local = || context::turn(&self.now, self.conversation);
        Verdict::Context(self.ask_context(&target, TURN_DEADLINE).unwrap_or_else(local))
    }

    /// The node's own text for this session; none if it has none or cannot be asked.
    fn ask_context(&self, target: &str, deadline: Duration) -> Option<Vec<Section>> {
        let mut target = target.to_owned();
        for (name, value) in [("session", self.session), ("conversation", self.conversation)] {
            if let Some(value) = value {
                let _ = write!(target, "&{name}={}", encode(value));
            }
        }
        let answer =
            self.node?.call("GET", &target, None, deadline).ok().filter(|answer| answer.status == 200)?;
        serde_json::from_slice::<Sections>(&answer.body).ok().map(|answer| answer.sections)
    }
}

/// The text for a query string.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
