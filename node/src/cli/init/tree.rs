//! The files of a state directory.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instar_durable::{create_dir_private, write_atomic};
use instar_identity::templates::{IdentityFile, Persona};
use instar_state::config::{Config, ConfigFile, Overrides, keys, lookup, name_from_dir, set_at};
use instar_state::paths::AgentPaths;
use instar_state::secrets::SecretStore;
use instar_state::time::rfc3339;
use serde_json::{Map, Value, json};
use threadline_net::{Minting, open_identity};

use super::blocks::{Block, Fence};
use super::{Report, Request};
use crate::cli::{Ctx, Exit, Failure};

/// Makes every file that is missing in `paths`. `target` is where the directory will be at the end.
///
/// config.json comes last: its presence says that there is an agent.
pub(super) fn fill(
    ctx: &Ctx,
    paths: &AgentPaths,
    target: &AgentPaths,
    request: &Request,
    now: i64,
    report: &mut Report,
) -> Result<(), Failure> {
    for dir in [
        paths.data(),
        paths.sessions(),
        paths.logs(),
        paths.run(),
        paths.secrets(),
        paths.machine(),
        paths.threadline(),
    ] {
        create_dir_private(&dir)?;
    }
    let file = ConfigFile::new(paths.config());
    let existing = if paths.config().exists() { Some(file.read()?) } else { None };
    report.agent_name = match &existing {
        Some(document) => Config::new(document.clone(), Overrides::default()).agent_name(target.project()),
        None => request.name.clone().unwrap_or_else(|| name_from_dir(target.project())),
    };

    identity(paths, now, report)?;
    templates(ctx, paths, request, now, report)?;
    let root = existing.map(|d| d.root);
    let secrets = secrets(paths, root.as_ref(), report)?;
    match &root {
        None => {
            file.create(&new_config(request, report, &secrets))?;
            report.created(".instar/config.json");
        }
        Some(root) => complete_config(&file, root, report, &secrets)?,
    }
    Ok(())
}

fn identity(paths: &AgentPaths, now: i64, report: &mut Report) -> Result<(), Failure> {
    let opened = open_identity(paths.state(), None, Minting::WithRecoveryPhrase, now);
    match opened {
        Ok(opened) if opened.minted => {
            report.created(".instar/identity.json");
            report.phrase = opened.phrase.map(|p| p.to_string().into());
        }
        Ok(_) => report.kept(".instar/identity.json"),
        // A key behind a passphrase is there and whole.
        Err(_)
            if threadline_net::read_identity_file(paths.state())
                .is_ok_and(|f| f.is_some_and(|f| f.is_encrypted())) =>
        {
            report.kept(".instar/identity.json");
        }
        Err(error) => return Err(Failure::new(Exit::NoAgent, "identity_corrupt", error.to_string())),
    }
    Ok(())
}

fn templates(
    ctx: &Ctx,
    paths: &AgentPaths,
    request: &Request,
    now: i64,
    report: &mut Report,
) -> Result<(), Failure> {
    let user = request.user.clone().or_else(|| login_name(ctx)).unwrap_or_else(|| "owner".into());
    let at = rfc3339(now);
    let persona = Persona {
        agent: &report.agent_name,
        user: &user,
        role: request.role.as_deref(),
        date: at.get(..10).unwrap_or(&at),
    };
    let mut files = persona.files();
    let users = json!([{
        "id": user_id(&user), "name": user, "role": "admin", "channels": [], "permissions": [], "createdAt": at,
    }]);
    let text = serde_json::to_string_pretty(&users).map_err(anyhow::Error::from)? + "\n";
    files.push(IdentityFile { name: "users.json", text });
    for IdentityFile { name, text } in files {
        let path = paths.state().join(name);
        let shown = format!(".instar/{name}");
        if path.exists() {
            report.kept(&shown);
        } else {
            write_atomic(&path, text.as_bytes(), 0o600)?;
            report.created(&shown);
        }
    }
    Ok(())
}

/// Makes token and PIN where neither the store nor the file has them. Returns the names that are in the store now.
fn secrets(
    paths: &AgentPaths,
    root: Option<&Map<String, Value>>,
    report: &mut Report,
) -> Result<Vec<&'static str>, Failure> {
    let store = SecretStore::new(paths, report.agent_name.clone());
    let known = match store.load() {
        Ok(known) => known,
        Err(error) => {
            report.warn(error.to_string());
            return Ok(Vec::new());
        }
    };
    let is_plain = |name: &str| root.and_then(|r| lookup(r, name)).is_some_and(Value::is_string);
    let from_env = root.and_then(|r| lookup(r, keys::SECRETS_BACKEND.path())).is_some_and(|b| b == "env");
    let (token, pin) = (keys::AUTH_TOKEN.path(), keys::DASHBOARD_PIN.path());
    let mut new = Vec::new();
    for name in [token, pin] {
        if known.contains_key(name) || is_plain(name) || from_env {
            continue;
        }
        let value = if name == token {
            URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into()
        } else {
            let pin = format!("{:06}", rand::random_range(0..1_000_000)).into();
            let hash = store.hash_pin(&pin)?;
            report.pin = Some(pin);
            hash
        };
        new.push((name.to_owned(), value));
    }
    if !new.is_empty() {
        store.set(new)?;
        report.created(".instar/secrets/store.enc");
    }
    Ok([token, pin].into_iter().filter(|name| !is_plain(name)).collect())
}

fn new_config(request: &Request, report: &Report, secrets: &[&str]) -> Map<String, Value> {
    let mut root = Map::new();
    root.insert("version".into(), keys::VERSION.into());
    root.insert("projectName".into(), report.agent_name.clone().into());
    root.insert("agentType".into(), if request.standalone { "standalone" } else { "project-bound" }.into());
    root.insert("port".into(), report.port.into());
    for name in secrets {
        root.insert((*name).to_owned(), json!({"secret": true}));
    }
    if let Some(profile) = request.autonomy {
        root.insert("autonomyProfile".into(), profile.into());
    }
    root
}

fn complete_config(
    file: &ConfigFile,
    root: &Map<String, Value>,
    report: &mut Report,
    secrets: &[&str],
) -> Result<(), Failure> {
    let mut missing = vec![("projectName", json!(report.agent_name)), ("port", json!(report.port))];
    missing.extend(secrets.iter().map(|name| (*name, json!({"secret": true}))));
    missing.retain(|(key, _)| !root.contains_key(*key));
    if missing.is_empty() {
        report.kept(".instar/config.json");
        return Ok(());
    }
    file.edit(|root| missing.into_iter().try_for_each(|(key, value)| set_at(root, key, value).map(drop)))?;
    report.updated(".instar/config.json");
    Ok(())
}

/// Our block in CLAUDE.md.
pub(crate) fn guide_block(guide: &str) -> Block<'_> {
    Block { id: "guide", version: 1, fence: Fence::Html, body: guide }
}

/// Our block in .gitignore.
pub(crate) fn gitignore_block() -> Block<'static> {
    Block { id: "ignore", version: 1, fence: Fence::Hash, body: include_str!("templates/gitignore") }
}

fn login_name(ctx: &Ctx) -> Option<String> {
    ["USER", "LOGNAME"].iter().find_map(|v| ctx.env.get(*v)).filter(|n| !n.trim().is_empty()).cloned()
}

/// An id for the user record: `^[a-z0-9][a-z0-9_-]{0,63}$`.
fn user_id(name: &str) -> String {
    name_from_dir(Path::new(&name.to_lowercase().replace('/', "-"))).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_plain() {
        assert_eq!(user_id("Ann O'Neil"), "ann-o-neil");
        assert_eq!(user_id("Ämil"), "mil");
    }
}
