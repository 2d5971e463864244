//! `instar status`: what is known about the agent, with or without its node.

use std::time::Duration;

use instar_state::config::keys;
use instar_state::registry::AgentStatus;
use serde_json::{Value, json};

use super::reply::{one_line, table};
use super::session::word;
use super::{Agent, CommandResult, Ctx, Reply, ages, node};
use crate::client::Call;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the agent, if it is not the one here
    name: Option<String>,
    /// All agents of this account
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> CommandResult {
    if args.all {
        return all(ctx);
    }
    let agent = ctx.agent_or_named(args.name.as_deref())?;
    let config = agent.config(ctx);
    let live = node::block_on(agent.client(ctx).send(Call::get("/status").patience(Duration::from_secs(5))))?
        .ok()
        .filter(crate::client::Answer::is_success)
        .map(|answer| answer.json());
    let port = config.as_ref().ok().and_then(|c| c.get(keys::PORT));
    let problem = config.as_ref().err().map(|f| f.message.clone());
    let fingerprint = threadline_net::read_identity_file(agent.paths.state())
        .ok()
        .flatten()
        .map(|file| file.public().fingerprint().to_string());
    let value = json!({
        "agent": agent.name(),
        "projectDir": agent.paths.project(),
        "version": env!("CARGO_PKG_VERSION"),
        "running": live.is_some(),
        "port": port,
        "fingerprint": fingerprint,
        "configProblem": problem,
        "node": live,
    });
    let text = text(&agent, &value);
    Ok(Reply::new(value, text))
}

fn text(agent: &Agent, value: &Value) -> String {
    let node = &value["node"];
    let mut lines = vec![format!("{} in {}", word(&value["agent"]), agent.paths.project().display())];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<9} {text}"));
    let or_dash = |value: &Value| if value.is_null() { "-".to_owned() } else { word(value) };
    line("version", word(&value["version"]));
    if let Some(problem) = value["configProblem"].as_str() {
        line("config", problem.replace('\n', "\n            "));
    }
    if node.is_null() {
        line("node", "not running (instar server start)".into());
    } else {
        let uptime = node["uptime"].as_i64().map_or("-".into(), ages::duration);
        line("node", format!("running, pid {}, up {uptime}", or_dash(&node["pid"])));
    }
    line("port", or_dash(&value["port"]));
    line("address", or_dash(&value["fingerprint"]));
    line("mesh", mesh(&node["mesh"]));
    line("sessions", sessions(&node["sessions"]));
    for (name, list, key) in
        [("degraded", &node["degradations"], "reason"), ("notices", &node["notices"], "text")]
    {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        if !list.is_empty() {
            line(name, list.len().to_string());
            for item in list.iter().take(3) {
                let text = one_line(&word(&item[key]), 200);
                line("", item["code"].as_str().map_or(text.clone(), |code| format!("{code}: {text}")));
            }
        }
    }
    let restart: Vec<String> = node["restartNeeded"].as_array().into_iter().flatten().map(word).collect();
    if !restart.is_empty() {
        line("restart", format!("needed for {}", restart.join(", ")));
    }
    let list = node["sessions"]["list"].as_array().map(Vec::as_slice).unwrap_or_default();
    for session in list {
        line(
            "",
            format!(
                "{} · {} · {} · {}",
                one_line(&word(&session["name"]), 40),
                or_dash(&session["activity"]),
                ages::since(&session["startedAt"]),
                one_line(&or_dash(&session["conversation"]), 60)
            ),
        );
    }
    lines.join("\n")
}

fn mesh(mesh: &Value) -> String {
    let Some(state) = mesh["link"]["state"].as_str().or(mesh["state"].as_str()) else { return "-".into() };
    let mut text = one_line(state, 40);
    if let Some(url) = mesh["link"]["relayUrl"].as_str() {
        text = text + " to " + &one_line(url, 100);
    }
    match mesh["approvalsPending"].as_u64() {
        None | Some(0) => text,
        Some(n) => format!("{text}; waiting for you: {n} (instar threadline approvals)"),
    }
}

fn sessions(sessions: &Value) -> String {
    let capacity = &sessions["capacity"];
    let (Some(live), Some(max)) = (capacity["live"].as_u64(), capacity["max"].as_u64()) else {
        return "-".into();
    };
    format!("{live} of {max}")
}

fn all(ctx: &Ctx) -> CommandResult {
    let entries = ctx.registry().read()?;
    let rows: Vec<[String; 5]> = entries
        .iter()
        .map(|e| {
            let status = match e.status {
                AgentStatus::Running => "running",
                AgentStatus::Stopped => "stopped",
                AgentStatus::Stale => "stale",
            };
            let pid =
                e.pid.filter(|_| e.status == AgentStatus::Running).map_or("-".into(), |p| p.to_string());
            [e.name.clone(), status.into(), e.port.to_string(), pid, e.path.display().to_string()]
        })
        .collect();
    let text = table(
        ["name", "node", "port", "pid", "path"],
        &rows,
        "no agents in this account; `instar init` makes one",
    );
    Ok(Reply::new(json!({"agents": entries}), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_state::paths::AgentPaths;

    #[test]
    fn the_text_with_and_without_a_node() {
        let agent = Agent::new(AgentPaths::new("/home/ann/garden"));
        let mut value = json!({"agent": "garden", "version": "0.1.0", "port": 4040,
            "fingerprint": "03a107bff3ce10be1d70dd18e74bc099", "configProblem": null, "node": null});
        insta::assert_snapshot!("status_without_node", text(&agent, &value));
        value["node"] = json!({"pid": 7, "uptime": 90, "mesh": {"state": "running", "approvalsPending": 2,
                "link": {"state": "connected", "relayUrl": "ws://127.0.0.1:8787/v1/connect"}},
            "sessions": {"capacity": {"live": 1, "max": 10},
                "list": [{"name": "asker", "activity": "idle", "startedAt": null, "conversation": "local:asker"}]},
            "degradations": [{"code": "runtime_missing", "reason": "claude was not found"}],
            "notices": [], "restartNeeded": ["port"]});
        insta::assert_snapshot!("status_with_node", text(&agent, &value));
    }
}
