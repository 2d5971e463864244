//! How the hooks do: registered or not, switched on or not, and what their log of today and yesterday says.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use instar_hooks::settings::{self, Drift, REGISTRATIONS};
use instar_hooks::{Event, HOOKS, HookClass, HookInfo};
use instar_state::paths::AgentPaths;
use instar_state::time::rfc3339;
use serde::{Deserialize, Serialize};

const DAY_MS: i64 = 86_400_000;
/// Most bytes that are read of one day's log, from its end.
const MAX_LOG: u64 = 4 << 20;

/// One hook.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HookStatus {
    pub(crate) name: &'static str,
    pub(crate) class: &'static str,
    pub(crate) events: Vec<String>,
    /// Matchers of the entries that call it; none where every call of its events does.
    pub(crate) matchers: Vec<&'static str>,
    /// Whether every entry that calls it stands in the settings file.
    pub(crate) installed: bool,
    pub(crate) enabled: bool,
    /// Firings of its events.
    pub(crate) fired: usize,
    pub(crate) last_fired: Option<String>,
    /// Milliseconds from the start of the process to its report, all hooks of the event together.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// How often it said no.
    pub(crate) blocks: usize,
}

/// A line of the log, as far as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Firing {
    id: String,
    at: String,
    event: Event,
    hook_ms: f64,
    #[serde(default)]
    decisions: Vec<Decision>,
}

#[derive(Debug, Deserialize)]
struct Decision {
    hook: String,
    verdict: String,
}

/// Reads settings file and log. Blocks.
pub(crate) fn read(paths: &AgentPaths, disabled: &[String], now_ms: i64) -> Vec<HookStatus> {
    let program = paths.current().join("instar-hook");
    let drift = settings::verify(&paths.project().join(".claude/settings.json"), &program);
    let drift = drift.unwrap_or_else(|_| vec![Drift::NoFile]);
    let mut seen = HashSet::new();
    let mut firings = Vec::new();
    for day in [rfc3339(now_ms - DAY_MS), rfc3339(now_ms)] {
        let file = paths.logs().join(format!("hooks-{}.jsonl", day.get(..10).unwrap_or(&day)));
        // A report may come twice, straight and through the spool.
        firings.extend(tail(&file).into_iter().filter(|firing| seen.insert(firing.id.clone())));
    }
    HOOKS.iter().map(|hook| status(hook, &drift, disabled, &firings)).collect()
}

fn status(hook: &HookInfo, drift: &[Drift], disabled: &[String], firings: &[Firing]) -> HookStatus {
    let (class, always) = match hook.class {
        HookClass::Safety => ("safety", true),
        HookClass::EnforcementClosed => ("enforcement", true),
        HookClass::Grounding => ("grounding", false),
        HookClass::Observer => ("observer", false),
    };
    let entries = || REGISTRATIONS.iter().filter(|entry| hook.events.contains(&entry.event));
    let mut matchers: Vec<&'static str> = entries().filter_map(|entry| entry.matcher).collect();
    matchers.dedup();
    let missing = drift.iter().any(|drift| match drift {
        Drift::NoFile | Drift::AllDisabled => true,
        Drift::Missing { event, .. } => hook.events.contains(event),
        Drift::Foreign { .. } => false,
    });
    let own: Vec<&Firing> = firings.iter().filter(|firing| hook.events.contains(&firing.event)).collect();
    let mut times: Vec<f64> = own.iter().map(|firing| firing.hook_ms).collect();
    times.sort_by(f64::total_cmp);
    let said_no = |decision: &&Decision| {
        decision.hook == hook.name && matches!(decision.verdict.as_str(), "deny" | "block")
    };
    HookStatus {
        name: hook.name,
        class,
        events: hook.events.iter().map(ToString::to_string).collect(),
        matchers,
        installed: !missing,
        enabled: always || !disabled.iter().any(|name| name == hook.name),
        fired: own.len(),
        last_fired: own.iter().map(|firing| &firing.at).max().cloned(),
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        blocks: own.iter().flat_map(|firing| &firing.decisions).filter(said_no).count(),
    }
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The readable lines at the end of a log; none if there is no log.
fn tail(file: &Path) -> Vec<Firing> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(file)?;
        let from = file.metadata()?.len().saturating_sub(MAX_LOG);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(MAX_LOG).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    // The first line may be cut; it is no JSON then.
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NOON: i64 = 1_795_348_800_000;

    fn log(paths: &AgentPaths, at_ms: i64, lines: &[serde_json::Value]) {
        std::fs::create_dir_all(paths.logs()).expect("logs");
        let day = rfc3339(at_ms);
        let mut text = lines.iter().map(serde_json::Value::to_string).collect::<Vec<_>>().join("\n");
        text.push('\n');
        std::fs::write(paths.logs().join(format!("hooks-{}.jsonl", &day[..10])), text).expect("write");
    }

    #[test]
    fn firings_of_two_days_are_counted_once_each() {
        let dir = tempfile::tempdir().expect("dir");
        let paths = AgentPaths::new(dir.path());
        let firing = |id: &str, ms: f64, verdict: &str| {
            json!({"id": id, "at": format!("2026-11-22T10:00:0{ms}Z"), "event": "PreToolUse", "hookMs": ms,
                "decisions": [{"hook": "dangerous-command-guard", "verdict": verdict}]})
        };
        log(&paths, NOON - DAY_MS, &[firing("a", 4.0, "deny"), firing("b", 1.0, "allow")]);
        log(&paths, NOON, &[firing("b", 1.0, "allow"), firing("c", 2.0, "deny"), json!("torn")]);
        let all = read(&paths, &["turn-context".to_owned(), "dangerous-command-guard".to_owned()], NOON);
        let of = |name: &str| all.iter().find(|hook| hook.name == name).expect(name);
        let guard = of("dangerous-command-guard");
        assert_eq!((guard.fired, guard.blocks, guard.p50, guard.p99), (3, 2, Some(2.0), Some(4.0)));
        assert_eq!(guard.last_fired.as_deref(), Some("2026-11-22T10:00:04Z"));
        assert!(guard.enabled && !guard.installed, "a safety hook can't be switched off; there is no file");
        assert!(!of("turn-context").enabled);
        assert_eq!((of("peer-firewall").fired, of("peer-firewall").blocks), (3, 0));
        assert_eq!((of("session-start").fired, of("session-start").p50), (0, None));
        settings::install(&dir.path().join(".claude/settings.json"), &paths.current().join("instar-hook"))
            .expect("install");
        assert!(read(&paths, &[], NOON).iter().all(|hook| hook.installed && hook.enabled));
    }

    proptest! {
        #[test]
        fn a_percentile_is_one_of_the_values(mut values in prop::collection::vec(0.0..1e6f64, 0..50), percent in 0usize..=100) {
            values.sort_by(f64::total_cmp);
            prop_assert_eq!(percentile(&values, percent).is_some(), !values.is_empty());
        }
    }
}
