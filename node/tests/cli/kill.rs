use std::time::Duration;

use super::Home;

/// How many runs are killed; more with `INSTAR_KILLS=1000`.
const KILLS: u32 = 10;

/// Killed at any moment, `init` leaves no agent or a usable one, and the next run completes it.
#[test]
fn init_can_be_killed_at_any_moment() {
    let kills = std::env::var("INSTAR_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    for round in 0..kills {
        let home = Home::new();
        let project = home.project("garden");
        let mut child = home.command(&project, &["init", "-q"]).spawn().expect("instar runs");
        // The moment of death is what this test varies, so it is a pause and not a wait for an event.
        std::thread::sleep(Duration::from_micros(rand::random_range(0..250_000)));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let status = home.run(&project, &["status", "--json"]);
        assert!(matches!(status.code, Some(0 | 3)), "round {round}: {}", status.stderr);
        if status.code == Some(0) {
            home.run(&project, &["config", "check"]).ok();
            home.run(&project, &["identity", "show"]).ok();
        }
        home.run(&project, &["init"]).ok();
        home.run(&project, &["config", "check"]).ok();
        home.run(&project, &["hooks", "verify"]).ok();
        let all = home.json(&project, &["status", "--all"]);
        assert_eq!(all["agents"].as_array().map(Vec::len), Some(1), "round {round}");
        let leftovers = std::fs::read_dir(&project).expect("dir").flatten();
        assert!(!leftovers.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(".instar.tmp")));
    }
}
