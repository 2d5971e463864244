//! What `init` did.

use std::path::{Path, PathBuf};

use instar_state::secret::Secret;
use serde_json::json;

use crate::cli::{Reply, say};

/// Files by what happened to them, and what is shown once.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) agent_name: String,
    pub(crate) project_dir: PathBuf,
    pub(crate) port: u16,
    created: Vec<String>,
    kept: Vec<String>,
    updated: Vec<String>,
    warnings: Vec<String>,
    pub(crate) pin: Option<Secret<String>>,
    pub(crate) phrase: Option<Secret<String>>,
}

impl Report {
    pub(crate) fn new(project: &Path) -> Self {
        Self { project_dir: project.to_owned(), ..Self::default() }
    }

    pub(crate) fn created(&mut self, what: &str) {
        self.created.push(what.to_owned());
    }

    pub(crate) fn kept(&mut self, what: &str) {
        self.kept.push(what.to_owned());
    }

    pub(crate) fn updated(&mut self, what: &str) {
        self.updated.push(what.to_owned());
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// The answer of `instar init`. Neither PIN nor phrase is in it.
    pub(crate) fn reply(&self) -> Reply {
        let value = json!({
            "agentName": self.agent_name, "projectDir": self.project_dir, "port": self.port,
            "created": self.created, "kept": self.kept, "updated": self.updated, "warnings": self.warnings,
        });
        let mut lines = vec![format!("{} in {}", self.agent_name, self.project_dir.display())];
        for (what, list) in [("created", &self.created), ("updated", &self.updated), ("kept", &self.kept)] {
            lines.extend(list.iter().map(|file| format!("  {what:<8} {file}")));
        }
        lines.extend(self.warnings.iter().map(|w| format!("  warning  {w}")));
        lines
            .push(format!("\nThe API token is in {}/.instar/secrets/store.enc.", self.project_dir.display()));
        lines.push(
            "Next: `instar up` starts it, `instar status` looks at it, `instar doctor` checks it.".into(),
        );
        Reply::new(value, lines.join("\n"))
    }

    /// One line and the warnings, for a command that goes on.
    pub(crate) fn say_made(&self) {
        say(&format!("Made the agent {} in {}.", self.agent_name, self.project_dir.display()));
        for warning in &self.warnings {
            say(&format!("warning: {warning}"));
        }
    }

    /// Shows on stderr what is shown only now.
    pub(crate) fn say_secrets(&self) {
        if let Some(pin) = &self.pin {
            say(&format!(
                "\nYour PIN is {}. It proves that you are the owner. It is shown only now; write it down.",
                pin.expose()
            ));
        }
        if let Some(phrase) = &self.phrase {
            say(&format!(
                "\nRecovery phrase of the agent's key, shown only now; write it down and keep it away from this machine:\n\n  {}\n",
                phrase.expose()
            ));
        }
    }
}
