//! `instar secrets`

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Subcommand;
use instar_state::config::{Kind, is_placeholder, keys, lookup, set_at, spec_of};
use instar_state::secret::Secret;
use instar_state::secrets::{env_name, is_name};
use serde_json::{Map, Value, json};

use super::reply::table;
use super::{Agent, CommandResult, Ctx, Failure, Reply, owner};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Names of all secrets and where they are; never values
    List,
    /// Store a secret; the value is asked for, or read from a pipe or file
    Set {
        /// Name; for a key of config.json its dot path
        name: String,
        /// File that holds the value
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Print a secret into a pipe
    Get {
        /// Name
        name: String,
        /// Print it on the terminal too
        #[arg(long)]
        show: bool,
    },
    /// Remove a secret
    Rm {
        /// Name
        name: String,
    },
    /// Move secrets that stand in config.json as plain text into the store
    Import,
    /// Show or choose where secrets come from
    Backend {
        /// The encrypted store, or the environment (INSTAR_SECRET_…)
        #[arg(value_parser = ["local", "env"])]
        backend: Option<String>,
    },
    /// Where the master key is, and whether it fits the store
    KeyStatus,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    match command {
        Command::List => list(&agent),
        Command::Set { name, from } => set(ctx, &agent, &name, from),
        Command::Get { name, show } => get(ctx, &agent, &name, show),
        Command::Rm { name } => remove(ctx, &agent, &name),
        Command::Import => import(ctx, &agent),
        Command::Backend { backend } => choose(ctx, &agent, backend.as_deref()),
        Command::KeyStatus => key_status(&agent),
    }
}

fn list(agent: &Agent) -> CommandResult {
    let root = agent.config_file().read()?.root;
    let stored = agent.secrets().load()?;
    let mut names: Vec<String> = stored.keys().cloned().chain(config_secrets(&root)).collect();
    names.sort();
    names.dedup();
    let rows: Vec<[String; 2]> = names
        .into_iter()
        .map(|name| {
            let plain = lookup(&root, &name).is_some_and(Value::is_string);
            let place = match (plain, stored.contains_key(&name)) {
                (true, _) => "config.json, in plain text",
                (false, true) => "store",
                (false, false) => "missing",
            };
            [name, place.to_owned()]
        })
        .collect();
    let values: Vec<Value> = rows.iter().map(|[name, place]| json!({"name": name, "in": place})).collect();
    Ok(Reply::new(json!({"secrets": values}), table(["name", "in"], &rows, "no secrets")))
}

fn set(ctx: &Ctx, agent: &Agent, name: &str, from: Option<PathBuf>) -> CommandResult {
    if !is_name(name) {
        return Err(Failure::usage(format!("{name:?} is not a name of a secret")));
    }
    if is_guarded(name) && super::config::has_pin(agent) {
        owner::prove_offline(ctx, agent, &format!("changing {name}"))?;
    } else if ctx.in_session() {
        owner::must_be_askable(ctx, &format!("changing {name}"))?;
    }
    let value = read_value(ctx, name, from)?;
    store(agent, [(name.to_owned(), value)])?;
    Ok(Reply::new(json!({"name": name, "stored": true}), format!("{name} is stored.")))
}

fn get(ctx: &Ctx, agent: &Agent, name: &str, show: bool) -> CommandResult {
    if ctx.in_session() {
        owner::must_be_askable(ctx, "reading a secret")?;
    }
    if std::io::stdout().is_terminal() && !show {
        return Err(Failure::refused(format!(
            "{name} would be shown on the terminal; send it into a pipe or add --show"
        )));
    }
    match agent.secrets().get(name)? {
        Some(secret) => {
            let value = secret.expose().clone();
            Ok(Reply::new(json!({"name": name, "value": value}), value))
        }
        None => Err(Failure::not_found(format!("no secret {name:?}; `instar secrets list` shows the names"))),
    }
}

fn remove(ctx: &Ctx, agent: &Agent, name: &str) -> CommandResult {
    if is_guarded(name) || ctx.in_session() {
        owner::prove_offline(ctx, agent, &format!("removing {name}"))?;
    }
    if !agent.secrets().remove(name)? {
        return Err(Failure::not_found(format!("no secret {name:?}")));
    }
    Ok(Reply::new(json!({"name": name, "removed": true}), format!("{name} is removed.")))
}

fn import(ctx: &Ctx, agent: &Agent) -> CommandResult {
    if ctx.in_session() {
        owner::must_be_askable(ctx, "moving secrets")?;
    }
    let root = agent.config_file().read()?.root;
    let plain: Vec<(String, Secret<String>)> = super::config::plain_secrets(&root)
        .into_iter()
        .filter_map(|path| Some((path.clone(), lookup(&root, &path)?.as_str()?.to_owned().into())))
        .collect();
    let names: Vec<String> = plain.iter().map(|(name, _)| name.clone()).collect();
    store(agent, plain)?;
    let text =
        if names.is_empty() { "config.json holds no secret in plain text".into() } else { names.join("\n") };
    Ok(Reply::new(json!({"imported": names}), text))
}

fn choose(ctx: &Ctx, agent: &Agent, backend: Option<&str>) -> CommandResult {
    let key = keys::SECRETS_BACKEND;
    let current = agent.config(ctx)?.get(key);
    let Some(backend) = backend else {
        let text = match current.as_str() {
            "env" => "env: the environment of the node (INSTAR_SECRET_…)",
            _ => "local: the encrypted store of this agent",
        };
        return Ok(Reply::new(json!({"backend": current}), text));
    };
    owner::prove_offline(ctx, agent, "changing the source of secrets")?;
    agent.config_file().edit(|root| set_at(root, key.path(), backend.into()))?;
    Ok(Reply::new(
        json!({"backend": backend, "restartNeeded": true}),
        format!("{current} → {backend}\nThe node uses it after `instar server restart`."),
    ))
}

fn key_status(agent: &Agent) -> CommandResult {
    let status = agent.secrets().key_status()?;
    let fits = match (&status.kid, &status.store_kid) {
        (Some(key), Some(store)) if key == store => "the store opens with it",
        (_, None) => "there is no store yet",
        (None, Some(_)) => "the key is missing: the store can't be opened",
        (Some(_), Some(_)) => "the store was made with another key and can't be opened",
    };
    let open = if status.present && !status.private {
        " Others can read it: run `instar doctor --fix`."
    } else {
        ""
    };
    let text = format!(
        "The master key is in a file, {} (no keychain is used); {fits}.{open}",
        status.path.display()
    );
    Ok(Reply::new(json!(status), text))
}

/// Stores secrets and puts placeholders where config.json names them. A PIN is stored as its hash only.
pub(crate) fn store(
    agent: &Agent,
    secrets: impl IntoIterator<Item = (String, Secret<String>)>,
) -> Result<(), Failure> {
    let store = agent.secrets();
    let mut ready = Vec::new();
    for (name, value) in secrets {
        let value = if name == keys::DASHBOARD_PIN.path() {
            if !(6..=12).contains(&value.expose().len())
                || !value.expose().bytes().all(|b| b.is_ascii_digit())
            {
                return Err(Failure::usage("a PIN has 6 to 12 digits"));
            }
            store.hash_pin(&value)?
        } else if name == keys::AUTH_TOKEN.path() && value.expose().len() < 43 {
            return Err(Failure::usage("authToken needs at least 43 characters (32 random bytes)"));
        } else {
            value
        };
        ready.push((name, value));
    }
    let names: Vec<String> = ready.iter().map(|(name, _)| name.clone()).collect();
    // The store first: a crash between the two leaves the plain text, never a placeholder without value.
    store.set(ready)?;
    agent.config_file().edit(|root| {
        for name in names.iter().filter(|n| spec_of(n).is_some_and(|s| matches!(s.kind, Kind::Secret))) {
            if lookup(root, name).is_none_or(|v| !is_placeholder(v)) {
                set_at(root, name, json!({"secret": true}))?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Paths of secrets that config.json names.
pub(crate) fn config_secrets(root: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for spec in keys::table().filter(|s| matches!(s.kind, Kind::Secret)) {
        match spec.path.split_once(".*.") {
            None => found.push(spec.path.to_owned()),
            Some((group, leaf)) => {
                let names = lookup(root, group).and_then(Value::as_object);
                found.extend(names.into_iter().flat_map(|o| o.keys()).map(|n| format!("{group}.{n}.{leaf}")));
            }
        }
    }
    found.retain(|path| lookup(root, path).is_some());
    found
}

/// Secrets that prove the owner or open the whole API.
fn is_guarded(name: &str) -> bool {
    name == keys::DASHBOARD_PIN.path() || name == keys::AUTH_TOKEN.path()
}

fn read_value(ctx: &Ctx, name: &str, from: Option<PathBuf>) -> Result<Secret<String>, Failure> {
    let value: Secret<String> = match from {
        Some(file) => {
            let path = ctx.cwd.join(file);
            std::fs::read_to_string(&path)
                .map_err(|e| Failure::failed(format!("cannot read {}: {e}", path.display())))?
                .into()
        }
        None if std::io::stdin().is_terminal() => owner::ask_hidden(&format!("Value of {name}: "))?,
        None => {
            let mut text = String::new();
            std::io::stdin().lock().take(1 << 20).read_to_string(&mut text)?;
            text.into()
        }
    };
    let trimmed: Secret<String> = value.expose().trim_end_matches(['\r', '\n']).to_owned().into();
    if trimmed.expose().is_empty() {
        return Err(Failure::usage(format!(
            "no value for {name} was given (backend env reads {})",
            env_name(name)
        )));
    }
    Ok(trimmed)
}
