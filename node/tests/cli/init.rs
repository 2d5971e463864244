use std::os::unix::fs::PermissionsExt;

use super::{Home, tree};

#[test]
fn a_second_run_changes_nothing() {
    let home = Home::new();
    let project = home.project("garden");
    std::fs::write(project.join("CLAUDE.md"), "# Mine\n").expect("write");
    let first = home.run(&project, &["init", "--json"]).ok();
    assert_eq!(first.json()["agentName"], "garden");
    assert!(first.stderr.contains("Your PIN is") && first.stderr.contains("Recovery phrase"));
    assert!(!first.stdout.contains("PIN is"));
    let before = tree(&home.home());
    let second = home.run(&project, &["init", "--json"]).ok();
    let after = tree(&home.home());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file changed");
    assert_eq!(second.json()["created"].as_array().map(Vec::len), Some(0));
    assert_eq!(second.json()["updated"].as_array().map(Vec::len), Some(0));
    assert!(!second.stderr.contains("PIN is"), "secrets are shown once");
    let text = std::fs::read_to_string(project.join("CLAUDE.md")).expect("read");
    assert!(text.starts_with("# Mine\n"));
}

#[test]
fn only_the_owner_can_read_what_was_made() {
    let home = Home::new();
    let project = home.agent("garden");
    let mode =
        |path: &std::path::Path| std::fs::symlink_metadata(path).expect("meta").permissions().mode() & 0o777;
    for (path, _) in tree(&project.join(".instar")) {
        if !path.is_symlink() {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }
    assert_eq!(mode(&home.home().join(".instar")), 0o700);
    assert_eq!(mode(&home.home().join(".instar/registry.json")), 0o600);
    let config = std::fs::read_to_string(project.join(".instar/config.json")).expect("read");
    assert!(config.contains(r#""secret": true"#));
}

#[test]
fn a_named_agent_gets_a_new_folder_and_a_full_one_is_refused() {
    let home = Home::new();
    home.run(&home.home(), &["init", "fresh"]).ok();
    assert!(home.home().join("fresh/.instar/config.json").exists());
    std::fs::create_dir(home.home().join("full")).expect("dir");
    std::fs::write(home.home().join("full/file"), "x").expect("write");
    home.run(&home.home(), &["init", "full"]).exit(2).says("is not empty");
    home.run(&home.home(), &["init", "-x"]).exit(2);
    home.run(&home.home(), &["init", "a b"]).exit(2).says("is not a name");
    home.run(&home.home(), &["init", "solo", "--standalone"]).ok();
    let solo = home.json(&home.home(), &["status", "solo"]);
    assert_eq!(solo["projectDir"], home.home().join(".instar/agents/solo").to_str().expect("path"));
}

#[test]
fn files_that_are_not_what_they_should_be_are_left_alone() {
    let home = Home::new();
    let project = home.project("garden");
    std::fs::create_dir(project.join(".claude")).expect("dir");
    for (path, text) in [
        (home.home().join(".claude.json"), "{ broken"),
        (project.join(".mcp.json"), "[]"),
        (project.join(".claude/settings.json"), "not json"),
    ] {
        std::fs::write(path, text).expect("write");
    }
    let report = home.json(&project, &["init"]);
    assert!(report["warnings"].as_array().is_some_and(|w| w.len() >= 3), "{report}");
    assert_eq!(std::fs::read_to_string(home.home().join(".claude.json")).expect("read"), "{ broken");
    assert_eq!(std::fs::read_to_string(project.join(".mcp.json")).expect("read"), "[]");
    assert_eq!(std::fs::read_to_string(project.join(".claude/settings.json")).expect("read"), "not json");
}

#[test]
fn a_block_changed_by_hand_stays_and_doctor_calls_it_drift() {
    let home = Home::new();
    let project = home.agent("garden");
    let file = project.join("CLAUDE.md");
    let text = std::fs::read_to_string(&file).expect("read").replace("You are garden", "You are a rose");
    std::fs::write(&file, &text).expect("write");
    home.run(&project, &["init"]).ok().says("changed by hand");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), text);
    assert!(project.join("CLAUDE.md.instar-new").exists());
    home.run(&project, &["doctor"]).says("drift");
}

#[test]
fn a_lost_key_is_never_replaced_silently() {
    let home = Home::new();
    let project = home.agent("garden");
    let key = project.join(".instar/identity.json");
    std::fs::write(&key, "{").expect("write");
    home.run(&project, &["init"]).exit(3).says("identity");
    assert_eq!(std::fs::read_to_string(&key).expect("read"), "{");
    home.run(&project, &["identity", "show"]).exit(3);
}

#[test]
fn setup_needs_its_options_and_says_which() {
    let home = Home::new();
    let project = home.project("garden");
    home.run(&project, &["setup"]).exit(2).says("--non-interactive");
    home.run(&project, &["setup", "--non-interactive"]).exit(2).says("--name is missing\n--user is missing");
    let ready = ["setup", "--non-interactive", "--name", "g", "--user", "Ann", "--no-start"];
    home.run(&project, &ready).exit(3).says("Claude Code was not found");
    assert!(!project.join(".instar").exists());
}
