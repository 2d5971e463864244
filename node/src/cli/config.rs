//! `instar config`

use clap::Subcommand;
use instar_state::config::{
    Class, Config, ConfigError, Kind, check_group, closest_key, is_group, is_placeholder, keys,
    keys_of_group, lookup, set_at, spec_of, unset_at,
};
use serde_json::{Map, Value, json};

use super::reply::table;
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, owner, secrets};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the value in force
    Get {
        /// Dot path of a key or a group; everything without it
        path: Option<String>,
    },
    /// Change a key, or a whole group of keys
    Set {
        /// Dot path
        path: String,
        /// JSON, or a plain text; a JSON object takes the place of a group
        value: String,
    },
    /// Remove a key, so that its default holds
    Unset {
        /// Dot path
        path: String,
    },
    /// List every key with value, class and meaning
    List,
    /// Check the file: problems, unknown keys
    Check,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    match command {
        Command::Get { path } => get(ctx, &agent, path.as_deref()),
        Command::Set { path, value } => set(ctx, &agent, &path, &value),
        Command::Unset { path } => unset(ctx, &agent, &path),
        Command::List => list(ctx, &agent),
        Command::Check => check(&agent),
    }
}

fn get(ctx: &Ctx, agent: &Agent, path: Option<&str>) -> CommandResult {
    let config = agent.config(ctx)?;
    let Some(path) = path else {
        let mut all = Map::new();
        for (path, value) in config.list() {
            set_at(&mut all, &path, value)?;
        }
        let text = serde_json::to_string_pretty(&all).map_err(anyhow::Error::from)?;
        return Ok(Reply::new(Value::Object(all), text));
    };
    let known = spec_of(path).is_some() || is_group(path);
    match config.effective(path) {
        Some(value) => Ok(Reply::new(json!({"path": path, "value": value}), plain(&value))),
        None if known => Ok(Reply::new(json!({"path": path, "value": null}), "(not set)")),
        None => Err(unknown(path)),
    }
}

fn set(ctx: &Ctx, agent: &Agent, path: &str, text: &str) -> CommandResult {
    let Some(spec) = spec_of(path) else {
        return if is_group(path) { set_group(ctx, agent, path, text) } else { Err(unknown(path)) };
    };
    if matches!(spec.kind, Kind::Secret) {
        return Err(secret_in_command(path));
    }
    let parsed = serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::from(text));
    // "4040" for a text key is a text.
    let value = if spec.accepts(&parsed) { parsed } else { Value::from(text) };
    if !spec.accepts(&value) {
        return Err(Failure::usage(format!("{path} must be {}, not {text}", spec.expected())));
    }
    allowed(ctx, agent, spec.class, path)?;
    let old = current(ctx, agent, path)?;
    let changed = value.clone();
    agent.config_file().edit(|root| set_at(root, path, changed))?;
    Ok(changed_reply(agent, path, &old, &value, spec.restart))
}

/// Puts an object in the place of a group. The strictest key that is there before or after decides who may.
fn set_group(ctx: &Ctx, agent: &Agent, path: &str, text: &str) -> CommandResult {
    let Ok(Value::Object(group)) = serde_json::from_str::<Value>(text) else {
        return Err(Failure::usage(format!(
            "{path} is a group of keys: give a JSON object, or set one of its keys (`instar config list`)"
        )));
    };
    if path.split('.').any(str::is_empty) {
        return Err(unknown(path));
    }
    let mut keys = keys_of_group(path, &group);
    for (key, _) in keys.iter().filter(|(_, spec)| matches!(spec.kind, Kind::Secret)) {
        if lookup(&group, &key[path.len() + 1..]).is_some_and(|value| !is_placeholder(value)) {
            return Err(secret_in_command(key));
        }
    }
    let problems = check_group(path, &group);
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.problem)).collect();
        return Err(Failure::usage(lines.join("\n")).with("details", json!(problems)));
    }
    let before = agent.config_file().read()?.root;
    if let Some(Value::Object(before)) = lookup(&before, path) {
        keys.extend(keys_of_group(path, before));
    }
    let class = keys.iter().map(|(_, spec)| spec.class).max().unwrap_or(Class::Open);
    allowed(ctx, agent, class, path)?;
    let old = current(ctx, agent, path)?;
    agent.config_file().edit(|root| set_at(root, path, Value::Object(group)))?;
    let new = current(ctx, agent, path)?;
    Ok(changed_reply(agent, path, &old, &new, keys.iter().any(|(_, spec)| spec.restart)))
}

fn secret_in_command(path: &str) -> Failure {
    Failure::usage(format!(
        "{path} is a secret and must not stand in a command line; use `instar secrets set {path}` (a group names it as \
         {{\"secret\": true}})"
    ))
}

fn unset(ctx: &Ctx, agent: &Agent, path: &str) -> CommandResult {
    let root = agent.config_file().read()?.root;
    if lookup(&root, path).is_none() {
        return Err(Failure::not_found(format!("{path} is not in config.json; its default holds already")));
    }
    let spec = spec_of(path);
    let class = if spec.is_none() && is_group(path) {
        // A group may hold keys of every class.
        Class::FileOnly
    } else {
        spec.map_or(Class::Open, |s| s.class)
    };
    allowed(ctx, agent, class, path)?;
    let old = current(ctx, agent, path)?;
    agent.config_file().edit(|root| Ok::<_, ConfigError>(unset_at(root, path)))?;
    let new = current(ctx, agent, path)?;
    Ok(changed_reply(agent, path, &old, &new, spec.is_some_and(|s| s.restart)))
}

fn list(ctx: &Ctx, agent: &Agent) -> CommandResult {
    let config = agent.config(ctx)?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for (path, value) in config.list() {
        let Some(spec) = spec_of(&path) else { continue };
        let class = class_name(spec.class);
        values.push(
            json!({"path": path, "value": value, "class": class, "restart": spec.restart, "doc": spec.doc}),
        );
        let restart = if spec.restart { "restart" } else { "" };
        rows.push([path, plain(&value), class.to_owned(), restart.to_owned(), spec.doc.to_owned()]);
    }
    let text = table(["key", "value", "class", "", "meaning"], &rows, "no keys");
    Ok(Reply::new(json!({"keys": values}), text))
}

fn check(agent: &Agent) -> CommandResult {
    let findings = agent.config_file().read()?.findings;
    let mut lines: Vec<String> =
        findings.problems.iter().map(|p| format!("problem  {}: {}", p.path, p.problem)).collect();
    lines.extend(findings.warnings.iter().map(|p| format!("warning  {}: {}", p.path, p.problem)));
    if lines.is_empty() {
        lines.push("config.json has no problems".into());
    }
    let reply = Reply::new(json!(findings), lines.join("\n"));
    Ok(if findings.problems.is_empty() { reply } else { reply.failing(Exit::NoAgent) })
}

/// Lets open keys pass and asks the owner for the others.
fn allowed(ctx: &Ctx, agent: &Agent, class: Class, path: &str) -> Result<(), Failure> {
    match class {
        Class::Open => Ok(()),
        Class::Operator | Class::FileOnly => owner::prove_offline(ctx, agent, &format!("changing {path}")),
    }
}

fn current(ctx: &Ctx, agent: &Agent, path: &str) -> Result<Value, Failure> {
    let config = Config::new(agent.config_file().read()?, ctx.overrides()?);
    Ok(config.effective(path).unwrap_or_default())
}

/// What was written, and whether a node can use it: it refuses a file with any problem as a whole.
fn changed_reply(agent: &Agent, path: &str, old: &Value, new: &Value, restart: bool) -> Reply {
    let refused = agent.config_file().load().err();
    let hint = match &refused {
        Some(error) => format!("\nWritten, but not in force until the rest is repaired: {error}"),
        None if restart => "\nThe node uses it after `instar server restart`.".to_owned(),
        None => String::new(),
    };
    let value = json!({
        "path": path, "old": old, "new": new, "restartNeeded": restart, "usable": refused.is_none(),
    });
    let reply = Reply::new(value, format!("{path}: {} → {}{hint}", plain(old), plain(new)));
    if refused.is_some() { reply.failing(Exit::Failed) } else { reply }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "(not set)".into(),
        Value::String(text) => text.clone(),
        Value::Object(_) => serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string()),
        other => other.to_string(),
    }
}

pub(crate) const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Open => "open",
        Class::Operator => "operator",
        Class::FileOnly => "file-only",
    }
}

fn unknown(path: &str) -> Failure {
    let hint = closest_key(path).map(|key| format!("; did you mean {key}?")).unwrap_or_default();
    Failure::not_found(format!("{path} is not a key of config.json{hint} (`instar config list` shows all)"))
}

/// Secrets that stand in the file as plain text.
pub(crate) fn plain_secrets(root: &Map<String, Value>) -> Vec<String> {
    secrets::config_secrets(root)
        .into_iter()
        .filter(|path| lookup(root, path).is_some_and(|v| !is_placeholder(v)))
        .collect()
}

/// Whether the agent's PIN is known, so that the owner can prove to be one.
pub(crate) fn has_pin(agent: &Agent) -> bool {
    agent.secrets().load().is_ok_and(|map| map.contains_key(keys::DASHBOARD_PIN.path()))
}
