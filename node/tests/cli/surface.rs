use super::Home;

#[test]
fn the_help_is_what_a_stranger_reads_first() {
    let home = Home::new();
    insta::assert_snapshot!(home.run(&home.home(), &["--help"]).ok().stdout);
    home.run(&home.home(), &["-V"]).ok().says(env!("CARGO_PKG_VERSION"));
}

#[test]
fn what_does_not_exist_is_a_wrong_command_line() {
    let home = Home::new();
    for line in [
        &["job", "list"][..],
        &["lifeline", "start"],
        &["threadline", "vouch"],
        &["config", "frobnicate"],
        &["status", "--nonsense"],
        &[],
    ] {
        home.run(&home.home(), line).exit(2);
    }
    let refused = home.run(&home.home(), &["job", "--json"]).exit(2);
    assert_eq!(refused.json()["code"], "usage");
}

#[test]
fn without_a_node_commands_say_so_with_exit_4() {
    let home = Home::new();
    let project = home.agent("garden");
    for line in [
        &["session", "list"][..],
        &["session", "send", "a", "text"],
        &["session", "spawn", "--name", "a", "--prompt", "hi"],
        &["threadline", "status"],
        &["threadline", "send", "bob", "hi"],
        &["threadline", "trust", "bob", "--set", "trusted"],
        &["threadline", "approvals"],
        &["api", "GET", "/status"],
    ] {
        home.run(&project, line).exit(4).says("node is not running (instar server start)");
        let json = home.run(&project, &[line, &["--json"]].concat()).exit(4);
        assert_eq!(json.json()["code"], "node_not_running", "{line:?}");
    }
}

#[test]
fn bad_arguments_are_refused_before_anyone_is_asked() {
    let home = Home::new();
    let project = home.agent("garden");
    for line in [
        &["threadline", "send", "bob", "  "][..],
        &["threadline", "send", "bob", "hi", "--timeout", "0"],
        &["threadline", "trust", "bob", "--set", "godlike"],
        &["threadline", "trust", "--set", "trusted"],
        &["session", "spawn", "--name", "a"],
        &["api", "FETCH", "/x"],
        &["api", "GET", "x"],
        &["api", "POST", "/x", "--data", "{"],
        &["mcp", "token", "create", "--name", "x", "--scope", "threadline:everything"],
        &["logs", "--grep", "("],
    ] {
        home.run(&project, line).exit(2);
    }
}

#[test]
fn every_answer_is_one_json_document() {
    let home = Home::new();
    let project = home.agent("garden");
    for line in [
        &["status"][..],
        &["config", "list"],
        &["config", "get"],
        &["config", "check"],
        &["secrets", "list"],
        &["secrets", "key-status"],
        &["secrets", "backend"],
        &["identity", "show"],
        &["identity", "export-public"],
        &["hooks", "list"],
        &["mcp", "token", "list"],
        &["completions", "bash"],
    ] {
        let value = home.json(&project, line);
        assert!(value.is_object(), "{line:?}: {value}");
    }
    let checks = home.run(&project, &["doctor", "--json"]);
    assert!(checks.json()["checks"].is_array());
}

#[test]
fn a_token_is_shown_once_and_can_be_switched_off() {
    let home = Home::new();
    let project = home.agent("garden");
    let made = home.json(
        &project,
        &["mcp", "token", "create", "--name", "desk", "--scope", "threadline:read", "--expires", "30d"],
    );
    let (id, token) = (made["id"].as_str().expect("id"), made["token"].as_str().expect("token"));
    assert_eq!(token.len(), 64);
    let listed = home.run(&project, &["mcp", "token", "list", "--json"]).ok();
    assert!(!listed.stdout.contains(token));
    assert_eq!(listed.json()["tokens"][0]["state"], "valid");
    home.run(&project, &["mcp", "token", "revoke", id]).ok();
    assert_eq!(home.json(&project, &["mcp", "token", "list"])["tokens"][0]["state"], "revoked");
    home.run(&project, &["mcp", "token", "revoke", "mcp_0"]).exit(6);
}

#[test]
fn logs_are_cut_and_searched() {
    let home = Home::new();
    let project = home.agent("garden");
    home.run(&project, &["logs"]).exit(6).says("never ran");
    std::fs::write(project.join(".instar/logs/node.log"), "one\ntwo\nthree\n").expect("write");
    assert_eq!(home.run(&project, &["logs", "-n", "2"]).ok().stdout, "two\nthree\n");
    assert_eq!(home.run(&project, &["logs", "--grep", "^t"]).ok().stdout, "two\nthree\n");
    home.run(&project, &["logs", "--grep", "zebra"]).ok().says("no lines");
}
