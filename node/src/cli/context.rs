//! What every command is given: flags, environment, folders, and the agent that is meant.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use instar_state::config::{Config, ConfigFile, Overrides, is_agent_name};
use instar_state::paths::{AccountPaths, AgentPaths};
use instar_state::registry::Registry;
use instar_state::secrets::SecretStore;
use serde_json::json;

use super::reply::{Exit, Failure};
use crate::client::NodeClient;

/// Flags that every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct GlobalFlags {
    /// Agent in this directory
    #[arg(short = 'd', long, value_name = "DIR", global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Agent with this name
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "dir")]
    pub(crate) agent: Option<String>,
    /// Exactly one JSON document on stdout; text for people on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// More detail
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// No colours
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// One invocation.
#[derive(Debug, Clone)]
pub(crate) struct Ctx {
    pub(crate) flags: GlobalFlags,
    pub(crate) account: AccountPaths,
    pub(crate) cwd: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
}

/// The agent that is meant.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) paths: AgentPaths,
}

impl Ctx {
    /// Takes the process's environment in; only here is it read.
    pub(crate) fn from_process(flags: GlobalFlags) -> Result<Self, Failure> {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        let home = env.get("HOME").filter(|h| h.starts_with('/')).ok_or_else(|| {
            Failure::new(
                Exit::NoAgent,
                "no_home",
                "HOME is not set to an absolute path; set it to your home directory",
            )
        })?;
        let cwd = std::env::current_dir()
            .map_err(|e| Failure::failed(format!("the current directory can't be used: {e}")))?;
        Ok(Self { account: AccountPaths::new(home), cwd, env, flags })
    }

    /// The agent that `--agent`, `-d` or the current directory names.
    pub(crate) fn agent(&self) -> Result<Agent, Failure> {
        if let Some(name) = &self.flags.agent {
            return self.agent_named(name);
        }
        if let Some(dir) = &self.flags.dir {
            return agent_in(&self.absolute(dir)).ok_or_else(|| no_agent(dir));
        }
        let start = self.cwd.canonicalize().unwrap_or_else(|_| self.cwd.clone());
        start.ancestors().find_map(agent_in).ok_or_else(|| no_agent(&self.cwd))
    }

    /// The agent that is meant, or none if there is no agent here.
    pub(crate) fn agent_here(&self) -> Result<Option<Agent>, Failure> {
        match self.agent() {
            Err(failure) if failure.code == "no_agent" && self.flags.agent.is_none() => Ok(None),
            other => other.map(Some),
        }
    }

    /// The agent with this name, or without one the agent that the flags mean.
    pub(crate) fn agent_or_named(&self, name: Option<&str>) -> Result<Agent, Failure> {
        name.map_or_else(|| self.agent(), |name| self.agent_named(name))
    }

    /// The agent with this name: of the registry, or a standalone one.
    pub(crate) fn agent_named(&self, name: &str) -> Result<Agent, Failure> {
        let mut found: Vec<PathBuf> =
            self.registry().read()?.into_iter().filter(|e| e.name == name).map(|e| e.path).collect();
        let standalone = self.account.agents().join(name);
        if is_agent_name(name) && AgentPaths::new(&standalone).config().exists() {
            found.push(standalone.canonicalize().unwrap_or(standalone));
        }
        found.sort();
        found.dedup();
        match found.as_slice() {
            [] => Err(Failure::new(
                Exit::NoAgent,
                "no_agent",
                format!(
                    "no agent is called {name:?}; `instar status --all` lists the agents of this account"
                ),
            )),
            [path] => agent_in(path).ok_or_else(|| no_agent(path)),
            several => {
                let list: String =
                    several.iter().fold(String::new(), |t, p| t + "\n  -d " + &p.to_string_lossy());
                Err(Failure::new(
                    Exit::Usage,
                    "ambiguous_agent",
                    format!("{} agents are called {name:?}; say which one:{list}", several.len()),
                )
                .with("candidates", json!(several)))
            }
        }
    }

    /// What the environment says about the configuration.
    pub(crate) fn overrides(&self) -> Result<Overrides, Failure> {
        Overrides::from_env(self.env.clone()).map_err(|p| {
            Failure::new(Exit::NoAgent, "environment_invalid", format!("{}: {}", p.path, p.problem))
        })
    }

    /// The agents of the account.
    pub(crate) fn registry(&self) -> Registry {
        Registry::new(self.account.clone())
    }

    /// A path relative to where the command was given.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        let joined = self.cwd.join(path);
        joined.canonicalize().unwrap_or(joined)
    }

    /// Whether a session of a node runs this command. A session is never the owner.
    pub(crate) fn in_session(&self) -> bool {
        self.env.contains_key("INSTAR_SESSION_ID")
    }

    /// Whether a person can be asked: not a session, and a terminal for question and answer.
    pub(crate) fn can_ask(&self) -> bool {
        !self.in_session() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Text for people that is not the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.flags.quiet {
            super::say(text);
        }
    }
}

impl Agent {
    /// The agent with these paths.
    pub(crate) fn new(paths: AgentPaths) -> Self {
        Self { paths }
    }

    /// Its checked configuration without secrets.
    pub(crate) fn config(&self, ctx: &Ctx) -> Result<Config, Failure> {
        Ok(Config::new(self.config_file().load()?, ctx.overrides()?))
    }

    /// Its configuration file.
    pub(crate) fn config_file(&self) -> ConfigFile {
        ConfigFile::new(self.paths.config())
    }

    /// Its name, also when the configuration is broken.
    pub(crate) fn name(&self) -> String {
        let named = self.config_file().read().ok().map(|d| Config::new(d, Overrides::default()));
        match named {
            Some(config) => config.agent_name(self.paths.project()),
            None => instar_state::config::name_from_dir(self.paths.project()),
        }
    }

    /// Its secret store.
    pub(crate) fn secrets(&self) -> SecretStore {
        SecretStore::new(&self.paths, self.name())
    }

    /// A client of its node. The session's token goes along when a session runs this command.
    pub(crate) fn client(&self, ctx: &Ctx) -> NodeClient {
        let token = ctx.in_session().then(|| ctx.env.get("INSTAR_AUTH_TOKEN").cloned()).flatten();
        NodeClient::new(self.paths.socket(), self.name(), token)
    }
}

fn agent_in(dir: &Path) -> Option<Agent> {
    let dir = if dir.file_name().is_some_and(|n| n == ".instar") { dir.parent()? } else { dir };
    let paths = AgentPaths::new(dir);
    paths.config().exists().then_some(Agent { paths })
}

fn no_agent(dir: &Path) -> Failure {
    Failure::new(
        Exit::NoAgent,
        "no_agent",
        format!("no agent here ({}); run `instar init`, or name one with -d or --agent", dir.display()),
    )
}
