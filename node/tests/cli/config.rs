use serde_json::{Value, json};

use super::Home;

#[test]
fn broken_json_is_named_with_its_place() {
    let home = Home::new();
    let project = home.agent("garden");
    std::fs::write(project.join(".instar/config.json"), "{\n  \"port\" 1\n}").expect("write");
    for command in [["config", "list"], ["config", "check"], ["identity", "show"]] {
        if command[0] == "config" {
            home.run(&project, &command).exit(3).says("line 2, column 10");
        } else {
            home.run(&project, &command).ok();
        }
    }
    home.run(&project, &["status"]).ok().says("line 2, column 10");
    home.run(&project, &["doctor"]).exit(1).says("line 2, column 10");
}

#[test]
fn all_problems_are_listed_at_once() {
    let home = Home::new();
    let project = home.agent("garden");
    let bad = json!({"version": 2, "port": 1, "sessions": {"maxSesions": 1, "maxSessions": 0}, "logging": {"level": "x"}});
    std::fs::write(project.join(".instar/config.json"), bad.to_string()).expect("write");
    let checked = home.run(&project, &["config", "check", "--json"]).exit(3).json();
    assert_eq!(checked["problems"].as_array().map(Vec::len), Some(3), "{checked}");
    assert!(
        checked["warnings"][0]["problem"]
            .as_str()
            .is_some_and(|p| p.contains("did you mean sessions.maxSessions"))
    );
    let refused = home.run(&project, &["config", "get", "port", "--json"]).exit(3);
    assert_eq!(refused.json()["details"].as_array().map(Vec::len), Some(3));
    std::fs::write(project.join(".instar/config.json"), r#"{"version": 99}"#).expect("write");
    home.run(&project, &["config", "get"]).exit(3).says("Update instar");
}

#[test]
fn a_change_beside_a_problem_is_not_called_applied() {
    let home = Home::new();
    let project = home.agent("garden");
    let file = project.join(".instar/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
    config["sessions"] = json!({"maxSessions": 0});
    std::fs::write(&file, config.to_string()).expect("write");
    home.run(&project, &["config", "set", "logging.level", "debug"]).exit(1).says("not in force");
    home.run(&project, &["config", "set", "sessions.maxSessions", "2"]).ok();
}

#[test]
fn an_open_key_is_changed_and_others_need_the_owner() {
    let home = Home::new();
    let project = home.agent("garden");
    let changed = home.json(&project, &["config", "set", "logging.level", "debug"]);
    assert_eq!((&changed["old"], &changed["new"]), (&json!("info"), &json!("debug")));
    home.run(&project, &["config", "get", "logging.level"]).ok().says("debug");
    home.run(&project, &["config", "unset", "logging.level"]).ok().says("debug → info");
    home.run(&project, &["config", "set", "logging.level", "loud"]).exit(2).says("one of trace");
    home.run(&project, &["config", "set", "logging.levle", "x"]).exit(6).says("did you mean logging.level");
    home.run(&project, &["config", "set", "safety.level", "2"]).exit(5).says("PIN");
    home.run(&project, &["config", "set", "authToken", "x"]).exit(2).says("secrets set authToken");
    let mut in_session = home.command(&project, &["config", "set", "safety.level", "2"]);
    let refused = in_session.env("INSTAR_SESSION_ID", "x").output().expect("run");
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("a session cannot do it"));
}

#[test]
fn the_environment_beats_the_file_and_bad_values_are_named() {
    let home = Home::new();
    let project = home.agent("garden");
    let get = |name: &str, value: &str| {
        let mut command = home.command(&project, &["config", "get", "port", "--json"]);
        super::Ran::from(command.env(name, value).output().expect("run"))
    };
    assert_eq!(get("INSTAR_PORT", "5001").ok().json()["value"], 5001);
    get("INSTAR_PORT", "80").exit(3).says("INSTAR_PORT");
}

#[test]
fn secrets_travel_by_pipe_and_are_shown_in_none() {
    let home = Home::new();
    let project = home.agent("garden");
    home.run_with_input(&project, &["secrets", "set", "mail.password"], "hunter2\n").ok();
    assert_eq!(home.run(&project, &["secrets", "get", "mail.password"]).ok().stdout, "hunter2\n");
    let listed = home.run(&project, &["secrets", "list"]).ok();
    assert!(listed.stdout.contains("mail.password") && !listed.stdout.contains("hunter2"));
    home.run(&project, &["secrets", "rm", "mail.password"]).ok();
    home.run(&project, &["secrets", "get", "mail.password"]).exit(6);
    home.run_with_input(&project, &["secrets", "set", "authToken"], "x").exit(5).says("PIN");
    home.run(&project, &["secrets", "key-status"]).ok().says("no keychain");

    let config = project.join(".instar/config.json");
    let mut root: Value = serde_json::from_slice(&std::fs::read(&config).expect("read")).expect("json");
    root["sessions"] = json!({"credentials": {"anthropic": {"kind": "api-key", "value": "sk-plain"}}});
    std::fs::write(&config, root.to_string()).expect("write");
    home.run(&project, &["secrets", "import"]).ok().says("sessions.credentials.anthropic.value");
    assert!(!std::fs::read_to_string(&config).expect("read").contains("sk-plain"));
    let shown = home.run(&project, &["config", "get"]).ok();
    assert!(shown.stdout.contains("(secret)") && !shown.stdout.contains("sk-plain"));
}
