use serde_json::Value;

use super::Home;

#[test]
fn two_agents_of_one_name_are_told_apart() {
    let home = Home::new();
    let (a, b) = (home.agent("a/twin"), home.agent("b/twin"));
    let ports: Vec<Value> =
        [&a, &b].iter().map(|p| home.json(p, &["config", "get", "port"])["value"].clone()).collect();
    assert_ne!(ports[0], ports[1]);
    let refused = home.run(&home.home(), &["--agent", "twin", "status", "--json"]).exit(2);
    assert_eq!(refused.json()["code"], "ambiguous_agent");
    assert_eq!(refused.json()["candidates"].as_array().map(Vec::len), Some(2));
    let chosen = home.json(&home.home(), &["-d", b.to_str().expect("path"), "status"]);
    assert_eq!(chosen["projectDir"], b.to_str().expect("path"));
    let all = home.json(&home.home(), &["status", "--all"]);
    assert_eq!(all["agents"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_agent_is_found_from_below_its_folder_and_by_name() {
    let home = Home::new();
    let project = home.agent("garden");
    let below = project.join("src/deep");
    std::fs::create_dir_all(&below).expect("dir");
    assert_eq!(home.json(&below, &["status"])["agent"], "garden");
    assert_eq!(home.json(&home.home(), &["status", "garden"])["agent"], "garden");
    home.run(&home.home(), &["status"]).exit(3).says("instar init");
    home.run(&home.home(), &["--agent", "nobody", "status"]).exit(3).says("nobody");
}

#[test]
fn a_removed_agent_leaves_the_users_files_as_they_were() {
    let home = Home::new();
    let project = home.project("garden");
    let mine = [
        (project.join("CLAUDE.md"), "# Mine\n\nText.\n"),
        (project.join(".gitignore"), "/target\n"),
        (
            project.join(".mcp.json"),
            "{\n  \"mcpServers\": {\n    \"mine\": {\n      \"command\": \"x\"\n    }\n  }\n}\n",
        ),
    ];
    for (path, text) in &mine {
        std::fs::write(path, text).expect("write");
    }
    home.run(&project, &["init"]).ok();
    let shared = home.home().join(".instar");
    let (token, drops) = (shared.join("agent-tokens/garden.token"), shared.join("messages/drop/garden"));
    let (foreign, waiting) = (shared.join("agent-tokens/other.token"), drops.join("m1.json"));
    for file in [&token, &foreign, &waiting] {
        std::fs::create_dir_all(file.parent().expect("parent")).expect("dir");
        std::fs::write(file, "0".repeat(64)).expect("write");
    }
    home.run(&project, &["nuke", "--here"]).exit(2).says("--yes");
    assert!(project.join(".instar").exists());
    let mut in_session = home.command(&project, &["nuke", "--here", "--yes"]);
    assert_eq!(in_session.env("INSTAR_SESSION_ID", "x").output().expect("run").status.code(), Some(5));

    let report = home.json(&project, &["nuke", "--here", "--yes"]);
    assert!(!project.join(".instar").exists());
    for (path, text) in &mine {
        assert_eq!(&std::fs::read_to_string(path).expect("read"), text, "{}", path.display());
    }
    assert!(!token.exists() && !drops.exists(), "nothing that others reach it by");
    assert!(foreign.exists());
    let settings = std::fs::read_to_string(project.join(".claude/settings.json")).unwrap_or_default();
    assert!(!settings.contains("instar-hook"));
    assert!(
        !std::fs::read_to_string(home.home().join(".claude.json"))
            .expect("read")
            .contains("mcp\", \"threadline")
    );
    assert!(std::path::Path::new(report["backup"].as_str().expect("backup")).exists());
    assert_eq!(home.json(&project, &["status", "--all"])["agents"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_standalone_agent_goes_as_a_whole() {
    let home = Home::new();
    home.run(&home.home(), &["init", "solo", "--standalone"]).ok();
    home.run(&home.home(), &["nuke", "solo", "--yes", "--no-backup"]).ok();
    assert!(!home.home().join(".instar/agents/solo").exists());
    home.run(&home.home(), &["nuke", "solo", "--yes"]).exit(3);
}
