//! The owner's proof on a real terminal: a pseudo-terminal at which the test types.

use std::path::Path;

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};
use serde_json::{Value, json};

use super::Home;
use super::node::Node;

/// Longest wait for a word of the program, in milliseconds.
const PATIENCE: u64 = 30_000;

const CREDENTIAL: &str = "sessions.credentials.anthropic";

/// Starts a command with a terminal for stdin, stdout and stderr.
fn at_terminal(home: &Home, project: &Path, arguments: &[&str], env: &[(&str, &str)]) -> PtySession {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_instar"));
    let prepared = home.command(project, arguments);
    command.args(arguments).current_dir(project).env_clear();
    command.envs(prepared.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.envs(env.iter().copied());
    spawn_command(command, Some(PATIENCE)).expect("a terminal")
}

/// Reads to the end of the output and gives it with the exit code.
fn end(mut session: PtySession) -> (String, i32) {
    let said = session.exp_eof().expect("the end");
    match session.process().wait().expect("an exit code") {
        WaitStatus::Exited(_, code) => (said, code),
        other => panic!("{other:?} after {said}"),
    }
}

/// Types `pin` when it is asked for.
fn answer(mut session: PtySession, pin: &str) -> (String, i32) {
    session.exp_string("PIN: ").expect("the question");
    session.send_line(pin).expect("typing");
    let (said, code) = end(session);
    assert!(!said.contains(pin), "the PIN is not echoed: {said}");
    (said, code)
}

fn wrong(pin: &str) -> &'static str {
    if pin == "111111" { "222222" } else { "111111" }
}

fn config(project: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(project.join(".instar/config.json")).expect("read")).expect("json")
}

#[test]
fn the_pin_opens_a_guarded_key_and_nothing_else_does() {
    let home = Home::new();
    let (project, pin) = home.agent_and_pin("garden");
    let set = ["config", "set", "safety.level", "2"];

    let (said, code) = answer(at_terminal(&home, &project, &set, &[]), wrong(&pin));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("that is not the PIN"), "{said}");
    assert_eq!(config(&project).get("safety"), None);

    let inside = at_terminal(&home, &project, &set, &[("INSTAR_SESSION_ID", "x")]);
    let (said, code) = end(inside);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("a session cannot do it") && !said.contains("PIN: "), "{said}");

    home.run_with_input(&project, &set, &format!("{pin}\n")).exit(5).says("run this command on a terminal");
    assert_eq!(config(&project).get("safety"), None);

    let (said, code) = answer(at_terminal(&home, &project, &set, &[]), &pin);
    assert_eq!(code, 0, "{said}");
    assert_eq!(config(&project)["safety"]["level"], 2);
}

#[test]
fn the_node_gets_the_pin_for_one_request() {
    let node = Node::start();
    let approve = ["threadline", "approvals", "approve", "none"];
    let ask = || at_terminal(&node.home, &node.project, &approve, &[]);
    let (said, code) = answer(ask(), wrong(&node.pin));
    assert!(code == 5 && said.contains("wrong PIN"), "{code}: {said}");
    let (said, code) = answer(ask(), &node.pin);
    assert!(code == 6 && !said.contains("PIN"), "the owner got through to the approval: {code}: {said}");
    node.home.run_with_input(&node.project, &approve, &format!("{}\n", node.pin)).exit(5).says("terminal");
    let (said, code) = end(at_terminal(&node.home, &node.project, &approve, &[("INSTAR_SESSION_ID", "x")]));
    assert!(code == 5 && !said.contains("PIN: "), "{code}: {said}");
}

#[test]
fn a_credential_is_set_as_a_whole() {
    let home = Home::new();
    let (project, pin) = home.agent_and_pin("garden");
    let whole = json!({"kind": "api-key", "value": {"secret": true}, "baseUrl": "https://example.net"});
    let set = |value: &str| home.run(&project, &["config", "set", CREDENTIAL, value]);
    set("api-key").exit(2).says("is a group of keys: give a JSON object");
    set(r#"{"kind": "api-kez", "valeu": 1}"#)
        .exit(2)
        .says("anthropic.kind: must be")
        .says("anthropic.valeu: unknown");
    set(r#"{"kind": "api-key", "value": "sk-ant-1"}"#).exit(2).says("must not stand in a command line");
    set(&whole.to_string()).exit(5).says("PIN");

    let command = ["config", "set", CREDENTIAL, r#"{"kind": "api-key"}"#];
    let (said, code) = answer(at_terminal(&home, &project, &command, &[]), &pin);
    assert!(code != 0 && said.contains("anthropic.value: is missing"), "{code}: {said}");
    assert_eq!(config(&project).get("sessions"), None);

    let whole_text = whole.to_string();
    let command = ["config", "set", CREDENTIAL, &whole_text];
    let (said, code) = answer(at_terminal(&home, &project, &command, &[]), &pin);
    assert_eq!(code, 0, "{said}");
    assert_eq!(config(&project)["sessions"]["credentials"]["anthropic"], whole);
    home.run_with_input(&project, &["secrets", "set", "sessions.credentials.anthropic.value"], "sk-ant-1\n")
        .ok();
    let shown = home.run(&project, &["config", "get", CREDENTIAL]).ok();
    assert!(shown.stdout.contains("https://example.net") && !shown.stdout.contains("sk-ant-1"));
}

#[test]
fn an_open_group_is_set_without_the_owner_unless_it_loses_a_guarded_key() {
    let home = Home::new();
    let (project, pin) = home.agent_and_pin("garden");
    let set = ["config", "set", "logging", r#"{"level": "debug", "keep": 3}"#];
    let changed = home.json(&project, &set);
    assert_eq!((&changed["new"]["level"], &changed["old"]["level"]), (&json!("debug"), &json!("info")));
    assert_eq!(config(&project)["logging"], json!({"level": "debug", "keep": 3}));

    let (said, code) =
        answer(at_terminal(&home, &project, &["config", "set", "safety.level", "2"], &[]), &pin);
    assert_eq!(code, 0, "{said}");
    home.run(&project, &["config", "set", "safety", "{}"]).exit(5).says("PIN");
}
