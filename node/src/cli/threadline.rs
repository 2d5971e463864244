//! `instar threadline`: the mesh from the command line.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::outline::outline;
use super::reply::{one_line, shown, table};
use super::session::{read_stdin, without_nulls, word};
use super::{Agent, CommandResult, Ctx, Exit, Failure, Reply, ages, invite, node, pair};
use crate::client::{Call, encode};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Link, relay, limits and queues
    Status,
    /// Agents that this one knows
    Agents {
        /// Also those that are not there now
        #[arg(long)]
        all: bool,
    },
    /// Look for agents
    Discover {
        /// Beyond this machine
        #[arg(long)]
        network: bool,
        /// Only agents that can do this
        #[arg(long, value_name = "NAME")]
        capability: Option<String>,
        /// Words to look for
        #[arg(long, value_name = "WORDS")]
        query: Option<String>,
        /// Most agents, 1 to 100
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: Option<u32>,
    },
    /// Write to an agent
    Send(SendArgs),
    /// Threads with the newest first
    Inbox {
        /// Only threads with this agent
        #[arg(long, value_name = "AGENT")]
        peer: Option<String>,
        /// Most threads
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Messages of one thread
    Thread {
        /// Thread id
        id: String,
        /// The agent, where two use the same id
        #[arg(long, value_name = "AGENT")]
        peer: Option<String>,
        /// Most messages, 1 to 100
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        /// Only older than this time or message id
        #[arg(long, value_name = "TIME|ID")]
        before: Option<String>,
    },
    /// How far an agent is trusted; change it with --set
    Trust {
        /// Name, nickname, name:prefix or address; all agents without it
        #[arg(value_name = "AGENT")]
        whom: Option<String>,
        /// New level; raising needs your PIN
        #[arg(long, value_name = "LEVEL", requires = "whom",
            value_parser = ["untrusted", "verified", "trusted", "autonomous"])]
        set: Option<String>,
        /// Why
        #[arg(long, requires = "set")]
        reason: Option<String>,
    },
    /// Compare the safety number of an agent with its owner; both see the same one
    Verify {
        /// Name, nickname, name:prefix or address
        #[arg(value_name = "AGENT")]
        whom: String,
        /// The other owner sees the same number: trust this very key
        #[arg(long, conflicts_with = "differs")]
        matches: bool,
        /// The other owner sees another number: block the agent
        #[arg(long)]
        differs: bool,
    },
    /// Let strangers become verified with a token
    #[command(subcommand)]
    Invite(invite::Invite),
    /// Accept an invitation
    Join {
        /// The invitation, tl1_…; - reads stdin
        token: String,
    },
    /// Pair with another server, to reach it without a relay
    Pair {
        /// Its address, http(s)://host[:port]
        url: String,
    },
    /// Paired servers and the words to compare
    Pairings {
        #[command(subcommand)]
        command: Option<pair::Pairings>,
    },
    /// What waits for your decision
    Approvals {
        #[command(subcommand)]
        decide: Option<Decide>,
        /// Also what is decided: pending, approved, rejected, expired
        #[arg(long)]
        status: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Decide {
    /// Let it through
    Approve {
        /// Id of the approval
        id: String,
        /// How far: this message, this thread, or this agent (which becomes verified)
        #[arg(long, value_parser = ["message", "thread", "agent"])]
        option: Option<String>,
    },
    /// Refuse it
    Reject {
        /// Id of the approval
        id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    /// Name, nickname, name:prefix or address
    #[arg(value_name = "AGENT")]
    to: String,
    /// The text; - reads stdin
    text: String,
    /// Continue this thread
    #[arg(long, value_name = "ID")]
    thread: Option<String>,
    /// Begin a new thread
    #[arg(long, conflicts_with = "thread")]
    new_thread: bool,
    /// Do not wait for the reply
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait for the reply, 1 to 300
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=300))]
    timeout: u64,
    /// Subject of the thread
    #[arg(long)]
    subject: Option<String>,
    /// Message that this answers
    #[arg(long, value_name = "ID")]
    in_reply_to: Option<String>,
    /// Repeating a send with the same key sends nothing twice
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Fail instead of queueing when no path is up
    #[arg(long)]
    fail_if_offline: bool,
}

pub(crate) fn run(ctx: &Ctx, command: Command) -> CommandResult {
    let agent = ctx.agent()?;
    match command {
        Command::Status => {
            let value = node::call(ctx, &agent, Call::get("/threadline/status"))?;
            let text = outline(&value);
            Ok(Reply::new(value, text))
        }
        Command::Agents { all } => {
            let value = tool(ctx, &agent, "threadline_agents", json!({"includeOffline": all}), PATIENCE)?;
            let text =
                agents(&value["agents"], "no agents are known; `instar threadline discover` looks for some");
            Ok(Reply::new(value, text))
        }
        Command::Discover { network, capability, query, limit } => {
            let scope = if network { "network" } else { "local" };
            let arguments = json!({"scope": scope, "capability": capability, "query": query, "limit": limit});
            let value = tool(ctx, &agent, "threadline_discover", arguments, PATIENCE)?;
            let mut text = agents(&value["agents"], "no agents found");
            for note in ["staleReason", "hint"].iter().filter_map(|key| value[*key].as_str()) {
                text = text + "\n" + &one_line(note, 300);
            }
            Ok(Reply::new(value, text))
        }
        Command::Send(args) => send(ctx, &agent, args),
        Command::Inbox { peer, limit } => {
            let peer = peer.map(|p| format!("&peer={}", encode(&p))).unwrap_or_default();
            let value =
                node::call(ctx, &agent, Call::get(format!("/threadline/threads?limit={limit}{peer}")))?;
            let text = threads(&value["threads"]);
            Ok(Reply::new(value, text))
        }
        Command::Thread { id, peer, limit, before } => {
            let arguments = json!({"threadId": id, "peer": peer, "limit": limit, "before": before});
            let value = tool(ctx, &agent, "threadline_history", arguments, PATIENCE)?;
            let text = messages(&value);
            Ok(Reply::new(value, text))
        }
        Command::Trust { whom, set, reason } => trust(ctx, &agent, whom, set, reason),
        Command::Verify { whom, matches, differs } => {
            pair::verify(ctx, &agent, &whom, (matches || differs).then_some(matches))
        }
        Command::Invite(command) => invite::run(ctx, &agent, command),
        Command::Pair { url } => pair::pair(ctx, &agent, &url),
        Command::Pairings { command } => pair::pairings(ctx, &agent, command),
        Command::Join { token } => invite::join(ctx, &agent, token),
        Command::Approvals { decide: None, status } => {
            let status = status.unwrap_or_else(|| "pending".into());
            let value = node::call(
                ctx,
                &agent,
                Call::get(format!("/threadline/approvals?status={}", encode(&status))),
            )?;
            let text = approvals(&value["approvals"]);
            Ok(Reply::new(value, text))
        }
        Command::Approvals { decide: Some(decide), .. } => {
            let (id, what, body) = match decide {
                Decide::Approve { id, option } => (id, "approve", json!({"option": option})),
                Decide::Reject { id, reason } => (id, "reject", json!({"reason": reason})),
            };
            let path = format!("/threadline/approvals/{}/{what}", encode(&id));
            let value = node::call(ctx, &agent, Call::post(path, without_nulls(body)))?;
            let text = format!("{} is {}", word(&value["id"]), word(&value["status"]));
            Ok(Reply::new(value, text))
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(35);

fn tool(
    ctx: &Ctx,
    agent: &Agent,
    name: &str,
    arguments: Value,
    patience: Duration,
) -> Result<Value, Failure> {
    let call = Call::post(format!("/threadline/tools/{name}"), without_nulls(arguments));
    node::call(ctx, agent, call.patience(patience))
}

fn send(ctx: &Ctx, agent: &Agent, args: SendArgs) -> CommandResult {
    let text = if args.text == "-" { read_stdin()? } else { args.text };
    if text.trim().is_empty() {
        return Err(Failure::usage("the message is empty"));
    }
    let arguments = json!({
        "agentId": args.to,
        "message": text,
        "threadId": args.thread,
        "newThread": args.new_thread,
        "waitForReply": !args.no_wait,
        "timeoutSeconds": args.timeout,
        "subject": args.subject,
        "inReplyTo": args.in_reply_to,
        "idempotencyKey": args.idempotency_key,
        "failIfOffline": args.fail_if_offline,
    });
    let waiting = if args.no_wait { Duration::ZERO } else { Duration::from_secs(args.timeout) };
    let value = tool(ctx, agent, "threadline_send", arguments, PATIENCE + waiting)?;
    let mut text = format!(
        "{} to {} ({}) in thread {}",
        word(&value["outcome"]),
        one_line(&word(&value["resolvedAgent"]["name"]), 64),
        word(&value["deliveryPath"]),
        word(&value["threadId"])
    );
    if let Some(reply) = value["reply"].as_str() {
        text = text + "\n\n" + &shown(reply);
    } else if let Some(note) = value["note"].as_str() {
        text = text + "\n" + &one_line(note, 300);
    }
    Ok(Reply::new(value, text))
}

fn trust(
    ctx: &Ctx,
    agent: &Agent,
    peer: Option<String>,
    set: Option<String>,
    reason: Option<String>,
) -> CommandResult {
    let Some(peer) = peer else {
        let value = tool(ctx, agent, "threadline_trust", json!({"action": "list"}), PATIENCE)?;
        let text = profiles(&value["profiles"]);
        return Ok(Reply::new(value, text));
    };
    let target = if is_fingerprint(&peer) { "fingerprint" } else { "agent" };
    let mut arguments = match set.as_deref() {
        None => json!({"action": "get"}),
        Some("untrusted") => json!({"action": "revoke", "reason": reason}),
        Some(level) => json!({"action": "grant", "level": level, "reason": reason}),
    };
    arguments[target] = json!(peer);
    let path = "/threadline/tools/threadline_trust";
    let mut call = Call::post(path, without_nulls(arguments)).patience(PATIENCE);
    if set.as_deref().is_some_and(|level| level != "untrusted") && ctx.can_ask() {
        // A person is here: ask for the PIN now instead of leaving an approval behind.
        call = call.header("x-instar-owner", "ask");
    }
    let value = node::call(ctx, agent, call)?;
    if set.is_none() {
        let text = outline(&value);
        return Ok(Reply::new(value, text));
    }
    if value["status"] == "pending_confirmation" {
        let text =
            format!("raising trust is the owner's: it waits as approval {}", word(&value["approvalId"]));
        return Ok(Reply::new(value, text).failing(Exit::Refused));
    }
    let text = format!("{peer}: {} → {}", word(&value["previousLevel"]), word(&value["level"]));
    Ok(Reply::new(value, text))
}

fn is_fingerprint(text: &str) -> bool {
    text.parse::<threadline::Fingerprint>().is_ok()
}

fn rows<'a, const N: usize>(list: &'a Value, row: impl Fn(&'a Value) -> [String; N]) -> Vec<[String; N]> {
    list.as_array().into_iter().flatten().map(row).collect()
}

fn agents(list: &Value, none: &str) -> String {
    let rows = rows(list, |a| {
        let capabilities =
            a["capabilities"].as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(",");
        [
            one_line(&word(&a["name"]), 32),
            one_line(&word(&a["address"]), 48),
            word(&a["status"]),
            word(&a["trustLevel"]),
            one_line(&capabilities, 40),
        ]
    });
    table(["name", "address", "status", "trust", "capabilities"], &rows, none)
}

fn threads(list: &Value) -> String {
    let rows = rows(list, |t| {
        let last = if t["lastActivityAt"].is_null() { &t["lastActivity"] } else { &t["lastActivityAt"] };
        [
            word(&t["threadId"]),
            one_line(&word(&t["peerName"]), 32),
            word(&t["state"]),
            word(&t["messageCount"]),
            ages::since(last),
            one_line(&word(&t["subject"]), 40),
        ]
    });
    table(["thread", "with", "state", "messages", "last", "subject"], &rows, "no threads")
}

fn messages(value: &Value) -> String {
    let list = value["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return "no messages".into();
    }
    let mut text = String::new();
    for m in list {
        let _ = writeln!(
            text,
            "{} {} {} ({})",
            word(&m["timestamp"]),
            word(&m["direction"]),
            one_line(&word(&m["from"]), 40),
            word(&m["state"])
        );
        for line in shown(m["body"].as_str().unwrap_or_default()).lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    if value["hasMore"] == true {
        text += "older messages: --before ID\n";
    }
    text
}

fn profiles(list: &Value) -> String {
    let rows = rows(list, |p| {
        [
            one_line(&word(&p["name"]), 32),
            word(&p["fingerprint"]),
            word(&p["level"]),
            word(&p["source"]),
            if p["blocked"] == true { "blocked".into() } else { String::new() },
        ]
    });
    table(["name", "fingerprint", "level", "source", ""], &rows, "no agent has a trust profile")
}

fn approvals(list: &Value) -> String {
    let rows = rows(list, |a| {
        [
            word(&a["id"]),
            word(&a["kind"]),
            word(&a["status"]),
            one_line(&word(if a["peerName"].is_null() { &a["peer"] } else { &a["peerName"] }), 32),
            one_line(&word(if a["preview"] == "" { &a["subject"] } else { &a["preview"] }), 60),
        ]
    });
    table(["id", "kind", "status", "from", "preview"], &rows, "nothing waits for you")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_tables_and_threads() {
        let found = json!([{"name": "bob\u{1b}[31m", "address": "bob:01234567", "status": "online",
            "capabilities": ["chat"], "trustLevel": "verified"}]);
        insta::assert_snapshot!(agents(&found, ""));
        insta::assert_snapshot!(messages(&json!({"hasMore": true, "messages": [
            {"timestamp": "2026-01-01T00:00:00Z", "direction": "in", "from": "bob", "state": "delivered", "body": "one\ntwo"},
        ]})));
    }
}
