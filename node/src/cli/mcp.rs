//! `instar mcp`

use chrono::{DateTime, TimeDelta, Utc};
use clap::Subcommand;
use instar_mcp::tokens::{NewToken, TokenError, TokenFile, TokenRecord, parse_scope};
use serde_json::{Value, json};
use threadline::Fingerprint;
use threadline::service::Scope;

use super::init::claude;
use super::reply::{one_line, table};
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, owner};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the tools to one program over stdin and stdout
    Threadline {
        /// State directory of the agent
        #[arg(long, value_name = "DIR")]
        state_dir: std::path::PathBuf,
        /// Session that asks, for the log; its token is what counts
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
    /// Serve the tools over HTTP to programs that hold a token
    Serve,
    /// Tokens for clients of the MCP listener
    #[command(subcommand)]
    Token(TokenCommand),
    /// Take our entry out of .mcp.json and ~/.claude.json
    Unregister,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once
    Create {
        /// What you call it
        #[arg(long)]
        name: String,
        /// threadline:discover, threadline:send, threadline:read or threadline:admin; may be repeated
        #[arg(long, required = true, value_parser = scope)]
        scope: Vec<Scope>,
        /// When it ends, for example 30d, 12h or 90m; never without it
        #[arg(long, value_parser = span)]
        expires: Option<TimeDelta>,
        /// Address of the one agent whose threads it may read and write
        #[arg(long, value_name = "FINGERPRINT")]
        peer: Option<Fingerprint>,
    },
    /// All tokens, without the tokens themselves
    List,
    /// Switch a token off; its record stays
    Revoke {
        /// Id of the token
        id: String,
    },
    /// Remove a token with its record
    Delete {
        /// Id of the token
        id: String,
    },
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    match command {
        Command::Threadline { state_dir, .. } => crate::daemon::mcp_threadline(ctx, &state_dir),
        Command::Serve => crate::daemon::mcp_serve(ctx),
        Command::Token(command) => token(ctx, command),
        Command::Unregister => {
            let removed = claude::unregister(&ctx.account, &ctx.agent()?.paths)?;
            let text = if removed { "our entries are removed" } else { "there was no entry of ours" };
            Ok(Reply::new(json!({"removed": removed}), text))
        }
    }
}

fn token(ctx: &Ctx, command: TokenCommand) -> CommandResult {
    let file = token_file(&ctx.agent()?);
    let now = Utc::now();
    match command {
        TokenCommand::Create { name, scope, expires, peer } => {
            if ctx.in_session() {
                owner::must_be_askable(ctx, "making a token")?;
            }
            let new = NewToken { name, scopes: scope, expires_at: expires.map(|e| now + e), peer };
            let created = file.create(new, now).map_err(failure)?;
            let text = format!(
                "{}\nIts id is {}. The token is shown only now; only its hash is stored.",
                created.token, created.record.id
            );
            let mut value = record(&created.record, now);
            value["token"] = created.token.into();
            Ok(Reply::new(value, text))
        }
        TokenCommand::List => {
            let list = file.list().map_err(failure)?;
            let rows: Vec<[String; 5]> = list
                .iter()
                .map(|t| {
                    let ends = t.expires_at.map_or_else(|| "never".into(), |at| at.to_rfc3339());
                    let state = state(t, now);
                    [t.id.clone(), one_line(&t.name, 32), state.into(), t.scopes.join(","), ends]
                })
                .collect();
            let values: Vec<Value> = list.iter().map(|t| record(t, now)).collect();
            Ok(Reply::new(
                json!({"tokens": values}),
                table(["id", "name", "state", "scopes", "ends"], &rows, "no tokens"),
            ))
        }
        TokenCommand::Revoke { id } => {
            let revoked = file.revoke(&id).map_err(failure)?;
            Ok(Reply::new(record(&revoked, now), format!("{id} is switched off")))
        }
        TokenCommand::Delete { id } => {
            let deleted = file.delete(&id).map_err(failure)?;
            Ok(Reply::new(record(&deleted, now), format!("{id} is removed")))
        }
    }
}

/// The agent's token file.
pub(crate) fn token_file(agent: &Agent) -> TokenFile {
    TokenFile::new(agent.paths.threadline().join("mcp-tokens.json"))
}

fn record(token: &TokenRecord, now: DateTime<Utc>) -> Value {
    json!({
        "id": token.id, "name": token.name, "scopes": token.scopes, "createdAt": token.created_at,
        "expiresAt": token.expires_at, "revoked": token.revoked, "state": state(token, now),
        "peer": token.peer, "lastUsedAt": token.last_used_at,
    })
}

fn state(token: &TokenRecord, now: DateTime<Utc>) -> &'static str {
    if token.revoked {
        "revoked"
    } else if token.is_valid_at(now) {
        "valid"
    } else {
        "expired"
    }
}

fn failure(error: TokenError) -> Failure {
    let exit = match &error {
        TokenError::NotFound(_) => Exit::NotFound,
        TokenError::BadName | TokenError::NoScope => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, "token", error.to_string())
}

fn scope(text: &str) -> Result<Scope, String> {
    parse_scope(text).ok_or_else(|| {
        "a scope is threadline:discover, threadline:send, threadline:read or threadline:admin".into()
    })
}

fn span(text: &str) -> Result<TimeDelta, String> {
    let bad = || "a time is a number and m, h or d, for example 30d".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let n: i64 = text
        .strip_suffix(unit)
        .and_then(|n| n.parse().ok())
        .filter(|n| (1..=100_000).contains(n))
        .ok_or_else(bad)?;
    match unit {
        'm' => Ok(TimeDelta::minutes(n)),
        'h' => Ok(TimeDelta::hours(n)),
        'd' => Ok(TimeDelta::days(n)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(span("30d"), Ok(TimeDelta::days(30)));
        for bad in ["", "d", "30", "-1d", "30w", "9999999d", "3é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
