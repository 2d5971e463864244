//! The texts that a new agent begins with. They are written once; afterwards they belong to the agent and its owner.

/// What an agent says of itself until its owner writes something better.
const DEFAULT_ROLE: &str = "I am a personal agent; what I am for, my owner will write here.";

/// Who a new agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persona<'a> {
    /// Name of the agent.
    pub agent: &'a str,
    /// Name of its owner.
    pub user: &'a str,
    /// What it is for, as a sentence; a general one if absent.
    pub role: Option<&'a str>,
    /// The day it was made, `YYYY-MM-DD`.
    pub date: &'a str,
}

/// One file of a new agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFile {
    /// Path below the state directory.
    pub name: &'static str,
    /// Content.
    pub text: String,
}

impl Persona<'_> {
    /// Every identity file; `state/soul.init.md` keeps the first soul for comparison.
    pub fn files(&self) -> Vec<IdentityFile> {
        let soul = self.fill(include_str!("templates/soul.md"));
        [
            ("AGENT.md", self.fill(include_str!("templates/AGENT.md"))),
            ("USER.md", self.fill(include_str!("templates/USER.md"))),
            ("MEMORY.md", self.fill(include_str!("templates/MEMORY.md"))),
            ("soul.md", soul.clone()),
            ("state/soul.init.md", soul),
        ]
        .into_iter()
        .map(|(name, text)| IdentityFile { name, text })
        .collect()
    }

    /// One pass, so that a name which looks like a placeholder stays a name.
    fn fill(&self, template: &str) -> String {
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            text.push_str(before);
            let (name, after) = after.split_once("}}").expect("a template closes what it opens");
            text.push_str(match name {
                "agent" => self.agent,
                "user" => self.user,
                "role" => self.role.unwrap_or(DEFAULT_ROLE),
                "date" => self.date,
                other => unreachable!("no template names {other}"),
            });
            rest = after;
        }
        text + rest
    }
}

/// What the agent's sessions are told in `CLAUDE.md` about its commands.
pub fn guide(agent: &str) -> String {
    include_str!("templates/guide.md").replace("{{agent}}", agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Persona<'_> = Persona { agent: "ann", user: "{{role}}", role: None, date: "2026-11-22" };

    #[test]
    fn every_placeholder_is_filled_and_names_are_taken_as_they_are() {
        let files = ANN.files();
        let text = |name: &str| files.iter().find(|f| f.name == name).expect(name).text.clone();
        assert!(text("USER.md").starts_with("# {{role}}\n"));
        assert!(text("AGENT.md").contains("I am ann. I am a personal agent;"));
        assert!(text("soul.md").contains("| 2026-11-22 | Created |"));
        assert_eq!(text("soul.md"), text("state/soul.init.md"));
        assert!(!text("MEMORY.md").contains("{{"));
    }

    #[test]
    fn the_guide_is_short_enough_and_holds_no_address() {
        let text = guide("ann");
        assert!(text.chars().count() <= 20_000);
        assert!(!text.contains("127.0.0.1") && !text.contains("4040") && !text.contains("{{"));
    }

    #[test]
    fn the_soul_has_exactly_its_sections() {
        let sections: Vec<&str> =
            include_str!("templates/soul.md").lines().filter_map(|l| l.strip_prefix("## ")).collect();
        assert_eq!(
            sections,
            [
                "Personality Seed",
                "Core Values",
                "Current Growth Edge",
                "Convictions",
                "Open Questions",
                "Integrations",
                "Evolution History"
            ]
        );
    }
}
