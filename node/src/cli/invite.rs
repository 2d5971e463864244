//! `instar threadline invite|join`: invitations from the command line.

use clap::Subcommand;
use serde_json::{Value, json};
use threadline::invitation::Invitation;

use super::reply::{one_line, table};
use super::session::{read_stdin, without_nulls, word};
use super::{Agent, CommandResult, Ctx, Failure, Reply, node};
use crate::client::{Call, encode};

/// Longest life with a recipient, days.
const MAX_DAYS: i64 = 30;

#[derive(Debug, Subcommand)]
pub(crate) enum Invite {
    /// Make an invitation; whoever redeems it becomes verified
    Create {
        /// What to call it
        #[arg(long)]
        label: Option<String>,
        /// Only this agent may redeem it: name or address
        #[arg(long = "for", value_name = "AGENT")]
        recipient: Option<String>,
        /// Agents that may redeem it, 1 to 100
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
        uses: u32,
        /// Hours that it lives, 1 to 24
        #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=24))]
        hours: i64,
        /// Days that it lives, 1 to 30; needs --for
        #[arg(long, value_name = "D", conflicts_with = "hours", requires = "recipient",
            value_parser = clap::value_parser!(i64).range(1..=MAX_DAYS))]
        days: Option<i64>,
    },
    /// Invitations, and what became of them
    List,
    /// Make an invitation unusable
    Revoke {
        /// Id of the invitation, or its beginning
        id: String,
        /// Also take the trust of those who redeemed it
        #[arg(long)]
        also_revoke_trust: bool,
    },
}

pub(crate) fn run(ctx: &Ctx, agent: &Agent, command: Invite) -> CommandResult {
    match command {
        Invite::Create { label, recipient, uses, hours, days } => {
            let life = days.map_or(hours, |days| days * 24);
            let expiry = instar_state::time::now_ms() + life * 3_600_000;
            let body = json!({"label": label, "recipient": recipient, "maxUses": uses,
                "expiry": threadline::time::iso_ms(expiry)});
            let value = node::call(ctx, agent, Call::post("/threadline/invitations", without_nulls(body)))?;
            let text = format!(
                "{}\n\nGive this to the other agent's owner, who runs `instar threadline join <it>`. It works until {} \
                 and is not shown again.",
                word(&value["token"]),
                word(&value["expiry"])
            );
            Ok(Reply::new(value, text))
        }
        Invite::List => {
            let value = node::call(ctx, agent, Call::get("/threadline/invitations"))?;
            let text = list(&value);
            Ok(Reply::new(value, text))
        }
        Invite::Revoke { id, also_revoke_trust } => {
            let path = format!("/threadline/invitations/{}?alsoTrust={also_revoke_trust}", encode(&id));
            let value = node::call(ctx, agent, Call::new(http::Method::DELETE, path))?;
            let kept = value["redeemedBy"].as_array().is_some_and(|by| !by.is_empty()) && !also_revoke_trust;
            let mut text = format!("{} is {}", cut(&value["tokenId"]), word(&value["status"]));
            if kept {
                text += "; who redeemed it keeps its level (--also-revoke-trust takes it)";
            }
            Ok(Reply::new(value, text))
        }
    }
}

/// Accepts an invitation: shows whom it is from, then the node asks for the owner.
pub(crate) fn join(ctx: &Ctx, agent: &Agent, token: String) -> CommandResult {
    let token = if token == "-" { read_stdin()? } else { token };
    let invitation = Invitation::from_shared(&token).map_err(|e| Failure::usage(e.to_string()))?;
    let key = invitation.issuer_key.map(|key| key.display_fingerprint()).unwrap_or_default();
    let label = invitation.label.as_deref().unwrap_or("no label");
    ctx.note(&format!("Connect to {} ({label}), address {}?", one_line(&key, 16), invitation.issuer));
    let body = json!({"token": token.trim()});
    let value = node::call(ctx, agent, Call::post("/threadline/invitations/accept", body))?;
    let mut text = format!("{} is {} here", word(&value["issuer"]), word(&value["level"]));
    text += if value["status"] == "joined" {
        "; it accepted you before"
    } else {
        "; its answer is awaited, see `instar threadline invite list`"
    };
    if let Some(note) = value["note"].as_str() {
        text = text + "\n" + &one_line(note, 300);
    }
    Ok(Reply::new(value, text))
}

fn list(value: &Value) -> String {
    let rows: Vec<[String; 5]> = value["invitations"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            [
                cut(&row["tokenId"]),
                word(&row["status"]),
                format!("{}/{}", word(&row["uses"]), word(&row["maxUses"])),
                word(&row["expiresAt"]),
                one_line(row["label"].as_str().unwrap_or_default(), 40),
            ]
        })
        .collect();
    let mut text = table(["invitation", "status", "uses", "until", "label"], &rows, "you invited nobody");
    let accepted: Vec<[String; 3]> = value["accepted"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let code = row["code"].as_str().map(|code| format!(" ({})", one_line(code, 32)));
            [
                one_line(&word(&row["name"]), 32),
                word(&row["issuer"]),
                word(&row["status"]) + &code.unwrap_or_default(),
            ]
        })
        .collect();
    if !accepted.is_empty() {
        text = text + "\n" + &table(["accepted from", "address", "status"], &accepted, "");
    }
    text
}

fn cut(id: &Value) -> String {
    word(id).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_became_of_invitations() {
        insta::assert_snapshot!(list(&json!({
            "invitations": [{"tokenId": "6hXYzUNx_NK8lKBGnwNr", "status": "exhausted", "uses": 1, "maxUses": 1,
                "expiresAt": "2026-01-15T13:00:00.000Z", "label": "for bob"}],
            "accepted": [{"name": "carol", "issuer": "0123", "status": "refused", "code": "expired"}],
        })));
    }
}
