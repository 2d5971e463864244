//! A home directory with the runtime that its agents find.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Agent;
use super::world::beside_tests;
use crate::anthropic::MessagesApi;

/// The API key of every real CLI in a scenario.
pub const API_KEY: &str = "sk-ant-api03-double-0000000000000000000000000000";

/// Variables by which the real CLI leaves the network alone; `sessions.envAllow` passes them on.
const QUIET: [(&str, &str); 5] = [
    ("DISABLE_TELEMETRY", "1"),
    ("DISABLE_ERROR_REPORTING", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("CLAUDE_CODE_MAX_RETRIES", "2"),
];

/// A person's account.
#[derive(Debug, Clone)]
pub struct Account {
    home: PathBuf,
    binary: PathBuf,
    config: Value,
}

impl Account {
    pub(super) fn new(home: PathBuf, binary: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(home.join(".local/bin"))?;
        Ok(Self { home, binary, config: json!({}) })
    }

    /// Its home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Puts these keys into the configuration of agents made from now on; objects are merged.
    pub fn configure(&mut self, patch: Value) {
        merge(&mut self.config, patch);
    }

    /// What agents of this account get on top of `init`'s configuration.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// Lets sessions run the real Claude Code CLI against the double of its API.
    pub fn use_real_cli(&mut self, api: &MessagesApi) -> anyhow::Result<()> {
        let claude =
            std::env::var_os("CLAUDE_BIN").context("CLAUDE_BIN is not set; run through tests/run")?;
        let claude = PathBuf::from(claude);
        ensure!(claude.exists(), "{} is missing; tests/run installs it", claude.display());
        self.install(&claude)?;
        let quiet: Vec<&str> = QUIET.iter().map(|(name, _)| *name).collect();
        self.configure(json!({"sessions": {
            "allowRoot": true, "envAllow": quiet,
            "credentials": {"anthropic": {"kind": "api-key", "value": API_KEY, "baseUrl": api.base_url()}}
        }}));
        Ok(())
    }

    /// Lets sessions run the stand-in by these rules.
    pub fn use_standin(&mut self, rules: &Value) -> anyhow::Result<()> {
        self.install(&beside_tests("../standin-runtime")?)?;
        std::fs::create_dir_all(self.home.join(".standin"))?;
        std::fs::write(self.home.join(".standin/rules.json"), rules.to_string())?;
        self.configure(json!({"sessions": {"allowRoot": true}}));
        Ok(())
    }

    fn install(&self, program: &Path) -> anyhow::Result<()> {
        let link = self.home.join(".local/bin/claude");
        let _ = std::fs::remove_file(&link);
        symlink(program, &link).with_context(|| link.display().to_string())
    }

    /// Makes an agent in a project folder of its own with `instar init`.
    pub async fn agent(&self, name: &str) -> anyhow::Result<Agent> {
        Agent::init(self.clone(), name).await
    }

    /// The environment of everything that this person starts.
    pub fn environment(&self) -> Vec<(String, String)> {
        let home = self.home.to_string_lossy();
        let own = [
            ("HOME", home.to_string()),
            ("PATH", format!("{home}/.local/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")),
            ("USER", "tester".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", "xterm-256color".to_owned()),
            ("SHELL", "/bin/bash".to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        let quiet = QUIET.iter().map(|(name, value)| (*name, (*value).to_owned()));
        own.into_iter().chain(quiet).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Merges `patch` into `target`; null removes a key.
pub(super) fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.remove(&name);
                } else {
                    merge(target.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch,
    }
}
