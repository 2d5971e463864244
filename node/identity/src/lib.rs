//! Identity files and the context blocks that hooks inject.
//!
//! The text itself is rendered by `instar_hooks::context`, which the hook also uses when the node is down, so that a
//! session reads the same in both cases.

pub mod templates;

use std::fmt::Display;

use chrono::{DateTime, TimeZone};
use instar_hooks::context::{
    self, ConversationFacts, IdentityFacts, IdentityFiles, Project, Section, Sections,
};
use instar_state::paths::AgentPaths;

/// The agent whose identity is told.
#[derive(Debug, Clone)]
pub struct Identity {
    paths: AgentPaths,
    agent_name: String,
}

/// The session that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listener {
    /// A peer speaks to it: nothing about the owner or the project is told.
    pub serves_peer: bool,
    /// Its context was just compacted.
    pub compact: bool,
}

impl Identity {
    /// The identity in an agent's state directory.
    pub fn new(paths: AgentPaths, agent_name: impl Into<String>) -> Self {
        Self { paths, agent_name: agent_name.into() }
    }

    /// Part `identity` of a session's start, from the files as they are now.
    pub async fn boot<Z>(&self, listener: Listener, now: DateTime<Z>) -> Sections
    where
        Z: TimeZone,
        Z::Offset: Display,
    {
        let mut facts = IdentityFacts {
            now: clock(&now),
            agent_name: self.agent_name.clone(),
            state_dir: self.paths.state().display().to_string(),
            compact: listener.compact,
            serves_peer: listener.serves_peer,
            ..IdentityFacts::default()
        };
        let paths = self.paths.clone();
        let read = move || (IdentityFiles::read(paths.state()), Project::read(paths.project()));
        // A reader that panicked leaves the identity without its files, which still names the agent.
        if let Ok((files, project)) = tokio::task::spawn_blocking(read).await {
            facts.files = files;
            facts.project = Some(project);
        }
        Sections { sections: context::identity(&facts) }
    }
}

/// Part `conversation` of a session's start: how to answer, and what was said before.
pub fn conversation(conversation: Option<String>, history: Option<String>, compact: bool) -> Sections {
    Sections { sections: context::conversation(&ConversationFacts { conversation, history, compact }) }
}

/// What goes with every prompt: the time, how to answer, and what the node adds.
pub fn turn<Z>(
    now: DateTime<Z>,
    conversation: Option<&str>,
    more: impl IntoIterator<Item = Section>,
) -> Sections
where
    Z: TimeZone,
    Z::Offset: Display,
{
    let mut sections = context::turn(&clock(&now), conversation);
    sections.extend(more);
    Sections { sections }
}

fn clock<Z>(now: &DateTime<Z>) -> String
where
    Z: TimeZone,
    Z::Offset: Display,
{
    now.format(context::CLOCK_FORMAT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> DateTime<chrono::FixedOffset> {
        DateTime::parse_from_rfc3339("2026-11-22T12:00:00+01:00").expect("a time")
    }

    fn agent() -> (tempfile::TempDir, Identity) {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = AgentPaths::new(directory.path());
        std::fs::create_dir_all(paths.state()).expect("makes");
        let write = |name: &str, text: &str| std::fs::write(paths.state().join(name), text).expect("writes");
        write("AGENT.md", "# ann\n\n## Who I am\nKeeper of the app.\n\n## Principles\n1. Verify.\n");
        write("USER.md", "# Bob\n\n## About\nLikes tea.\n");
        let identity = Identity::new(paths, "ann");
        (directory, identity)
    }

    #[tokio::test]
    async fn a_session_of_the_owner_is_told_everything() {
        let (_directory, identity) = agent();
        let text = context::join(&identity.boot(Listener::default(), noon()).await.sections);
        for part in
            ["Sunday 2026-11-22 12:00 +01:00", "You are ann.", "Verify.", "Likes tea.", "--- PROJECT ---"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("not running"));
    }

    #[tokio::test]
    async fn a_session_of_a_peer_is_told_nothing_about_the_owner() {
        let (_directory, identity) = agent();
        let listener = Listener { serves_peer: true, compact: true };
        let text = context::join(&identity.boot(listener, noon()).await.sections);
        assert!(
            text.contains("You are ann.") && !text.contains("Bob") && !text.contains("PROJECT"),
            "{text}"
        );
    }

    #[test]
    fn conversation_and_turn_say_how_to_answer() {
        let key = "threadline:0a1b2c3d:t-1";
        let boot = conversation(Some(key.into()), Some("[EXTERNAL] Bea: hello".into()), false);
        insta::assert_snapshot!(context::join(&boot.sections));
        let sections = turn(noon(), Some(key), [Section::new("NEWS", "none")]).sections;
        insta::assert_snapshot!(context::join(&sections));
    }
}
