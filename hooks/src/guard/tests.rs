use proptest::prelude::*;

use super::*;

fn places() -> Places {
    Places {
        home: "/home/ann".into(),
        project: "/home/ann/app".into(),
        state: "/home/ann/app/.instar".into(),
        cwd: "/home/ann/app".into(),
    }
}

fn corpus() -> Vec<(&'static str, String)> {
    include_str!("../../fixtures/commands.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (expected, command) = line.split_once('\t').expect("expected result, tab, command");
            // A line break is written `\n`; `'%s\n'` is the shell's own.
            (expected, command.replace("\\n", "\n").replace("%s\n", "%s\\n"))
        })
        .collect()
}

#[test]
fn the_corpus_is_judged_as_expected() {
    let corpus = corpus();
    assert!(corpus.len() >= 200, "{} commands", corpus.len());
    assert!(corpus.iter().filter(|(expected, _)| *expected == "pass").count() >= 100);
    let strict = HookConfig::default();
    let lenient = HookConfig { safety_level: SafetyLevel::SelfVerify, ..HookConfig::default() };
    let mut wrong = Vec::new();
    for (expected, command) in &corpus {
        let found = match (judge(command, &places(), &strict), judge(command, &places(), &lenient)) {
            (Judgement::Pass, Judgement::Pass) => "pass",
            (Judgement::Deny(_), Judgement::Deny(_)) => "always",
            (Judgement::Deny(_), Judgement::Remind(_)) => "risky",
            (Judgement::Ask(_), Judgement::Ask(_)) => "ask",
            _ => "inconsistent",
        };
        if found != *expected {
            wrong.push(format!("{command:?}: {found}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn configured_literals_are_always_refused() {
    let config = HookConfig { always_block: vec!["Prod-DB".into(), String::new()], ..HookConfig::default() };
    assert!(matches!(judge("ssh PROD-db uptime", &places(), &config), Judgement::Deny(_)));
    assert_eq!(judge("ls", &places(), &config), Judgement::Pass);
}

#[test]
fn allowed_commands_pass_but_never_the_worst() {
    let allow = ["git push --force *", "git reset --hard", "rm -rf *"].map(str::to_owned).to_vec();
    let config = HookConfig { allow, ..HookConfig::default() };
    for command in ["git push --force origin main", "git  reset --hard", "git push --force", "rm -rf src"] {
        assert_eq!(judge(command, &places(), &config), Judgement::Pass, "{command}");
    }
    for command in [
        "git push --forceful -f",
        "git push --force; git clean -fd",
        "git reset --hard HEAD~1",
        "rm -rf /",
        "rm -rf $(x)",
    ] {
        assert!(matches!(judge(command, &places(), &config), Judgement::Deny(_)), "{command}");
    }
}

#[test]
fn commands_too_long_to_check_are_refused() {
    for command in ["a".repeat(MAX_COMMAND + 1), "a\n".repeat(MAX_LINES + 1)] {
        assert!(matches!(judge(&command, &places(), &HookConfig::default()), Judgement::Deny(_)));
    }
}

#[test]
fn long_commands_take_linear_time() {
    let start = std::time::Instant::now();
    for piece in ["a ", "'a'", "$(a)", "((", "${a'", "{a,", "x=y ", "a|", "\"$a\" ", "rm -rf a;", "\\"] {
        let _ = judge(&piece.repeat(MAX_COMMAND / 4 / piece.len()), &places(), &HookConfig::default());
    }
    // Unoptimised and on a busy machine this takes a few seconds; a quadratic step would take hours.
    assert!(start.elapsed() < std::time::Duration::from_mins(1), "{:?}", start.elapsed());
}

#[test]
fn file_tools_may_not_write_what_the_shell_may_not() {
    for path in [
        ".instar/config.json",
        "/home/ann/app/.claude/settings.json",
        "/home/ann/app/.instar/run/x",
        "a/../.instar/identity.json",
    ] {
        assert!(matches!(judge_write(path, &places()), Judgement::Deny(_)), "{path}");
    }
    for path in [
        ".instar/AGENT.md",
        "src/config.json",
        "/home/ann/app/.instar/jobs/user/x.md",
        ".claude/skills/x/SKILL.md",
    ] {
        assert_eq!(judge_write(path, &places()), Judgement::Pass, "{path}");
    }
}

/// The worst commands behind valid prefixes, inside valid compound commands.
fn wrapped() -> impl Strategy<Value = String> {
    let worst = proptest::sample::select(vec![
        "rm -rf /",
        "mkfs.ext4 /dev/sda",
        "chmod -R 777 /",
        "rm -fr ~",
        "tmux kill-server",
    ]);
    let prefixes = proptest::collection::vec(
        proptest::sample::select(vec![
            "sudo",
            "env -i",
            "nice -n 3",
            "nohup",
            "timeout 5",
            "command",
            "env A=b",
        ]),
        0..4,
    );
    (worst, prefixes, proptest::collection::vec(0..9u8, 0..4)).prop_map(|(worst, prefixes, compounds)| {
        let simple = [prefixes.as_slice(), &[worst]].concat().join(" ");
        compounds.into_iter().fold(simple, |inner, how| match how {
            0 => format!("( {inner} )"),
            1 => format!("{{ {inner}; }}"),
            2 => format!("true && {inner}"),
            3 => format!("echo \"$( {inner} )\""),
            4 => format!("if a; then {inner}; fi"),
            5 => format!("echo 'x' | {inner}"),
            6 => format!("ls # a comment\n{inner}"),
            7 => format!("x=$(ls); {inner} 2>&1"),
            _ => format!("for a in 1 2; do {inner}; done"),
        })
    })
}

proptest! {
    #[test]
    fn the_worst_is_refused_however_it_is_wrapped(command in wrapped()) {
        let verdict = judge(&command, &places(), &HookConfig::default());
        prop_assert!(matches!(verdict, Judgement::Deny(_)), "{command:?}: {verdict:?}");
    }

    #[test]
    fn quoted_as_data_the_worst_is_no_command(command in wrapped()) {
        prop_assume!(!command.contains('\''));
        let commit = format!("git commit -m '{command}'");
        prop_assert_eq!(judge(&commit, &places(), &HookConfig::default()), Judgement::Pass);
    }

    #[test]
    fn any_text_is_judged(text in "\\PC{0,60}|[rmf /$(){}'\"`;&|<>=~*-]{0,40}") {
        let _ = judge(&text, &places(), &HookConfig::default());
    }
}
