//! `instar identity`

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::json;
use threadline::identity::CanonicalFile;
use threadline_net::read_identity_file;

use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Addresses and state of the agent's key
    Show,
    /// The public half, for others
    ExportPublic,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    let file = read(&agent)?;
    let public = file.public();
    let key = STANDARD.encode(public.as_bytes());
    let value = json!({
        "agent": agent.name(),
        "fingerprint": public.fingerprint(),
        "canonicalId": public.canonical_id(),
        "displayFingerprint": public.display_fingerprint(),
        "publicKey": key,
    });
    match command {
        Command::ExportPublic => Ok(Reply::new(value.clone(), value.to_string())),
        Command::Show => {
            let sealed =
                if file.is_encrypted() { "encrypted with a passphrase" } else { "not encrypted (mode 0600)" };
            let recovery =
                if file.recovery().is_some() { "recovery phrase exists" } else { "no recovery phrase" };
            let text = format!(
                "{}\n  fingerprint  {}\n  display      {}\n  canonical id {}\n  public key   {key}\n  created      {}\n  {}: {sealed}, {recovery}",
                agent.name(),
                public.fingerprint(),
                public.display_fingerprint(),
                public.canonical_id(),
                file.created_at(),
                agent.paths.identity().display(),
            );
            let mut value = value;
            value["createdAt"] = json!(file.created_at());
            value["encrypted"] = json!(file.is_encrypted());
            value["recovery"] = json!(file.recovery().is_some());
            Ok(Reply::new(value, text))
        }
    }
}

/// The agent's identity file; it must be there and whole.
pub(crate) fn read(agent: &Agent) -> Result<CanonicalFile, Failure> {
    match read_identity_file(agent.paths.state()) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(Failure::new(
            Exit::NoAgent,
            "identity_missing",
            format!("{} does not exist; `instar init` makes it", agent.paths.identity().display()),
        )),
        Err(error) => Err(Failure::new(Exit::NoAgent, "identity_corrupt", error.to_string())),
    }
}
