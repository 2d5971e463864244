//! Checks a whole file against the table and finds every problem at once.

use serde::Serialize;
use serde_json::{Map, Value};

use super::keys::{self, table};
use super::schema::{KeySpec, Kind};

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Dot path.
    pub path: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Everything that [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The file can't be used with these.
    pub problems: Vec<Problem>,
    /// The file works; these keys do nothing or need care.
    pub warnings: Vec<Problem>,
}

/// Finds all problems and warnings of a file.
pub fn check(root: &Map<String, Value>) -> Findings {
    let mut findings = Findings::default();
    walk(root, &mut Vec::new(), &mut findings);
    relations(root, &mut findings.problems);
    findings
}

/// Finds what is wrong with the value of a group of keys, as far as that shows without the rest of the file. A key
/// that nothing reads is a problem here: whoever sets a group names its keys.
pub fn check_group(path: &str, value: &Map<String, Value>) -> Vec<Problem> {
    let mut findings = Findings::default();
    walk(value, &mut path.split('.').collect(), &mut findings);
    findings.problems.extend(findings.warnings);
    findings.problems
}

/// Every key of the table that has a value in this group, with its row.
pub fn keys_of_group(path: &str, value: &Map<String, Value>) -> Vec<(String, &'static KeySpec)> {
    let mut found = Vec::new();
    for (name, inner) in value {
        let inner_path = format!("{path}.{name}");
        match (spec_of(&inner_path), inner.as_object()) {
            (Some(spec), _) => found.push((inner_path, spec)),
            (None, Some(group)) => found.extend(keys_of_group(&inner_path, group)),
            (None, None) => {}
        }
    }
    found
}

/// The row of the table for a dot path.
pub fn spec_of(path: &str) -> Option<&'static KeySpec> {
    let segments: Vec<&str> = path.split('.').collect();
    table().find(|spec| spec.matches(&segments))
}

/// Whether the path is a group of keys.
pub fn is_group(path: &str) -> bool {
    let segments: Vec<&str> = path.split('.').collect();
    table().any(|spec| spec.is_below(&segments))
}

/// The known key that looks most like `path`, if any is close.
pub fn closest_key(path: &str) -> Option<&'static str> {
    let best = table().map(|spec| (distance(path, spec.path), spec.path)).min()?;
    (best.0 <= (path.chars().count() / 3).max(2)).then_some(best.1)
}

fn walk<'a>(object: &'a Map<String, Value>, path: &mut Vec<&'a str>, findings: &mut Findings) {
    for (name, value) in object {
        path.push(name);
        let dotted = || path.join(".");
        if let Some(spec) = table().find(|spec| spec.matches(path)) {
            one(spec, value, &dotted(), findings);
        } else if table().any(|spec| spec.is_below(path)) {
            match value.as_object() {
                Some(inner) => walk(inner, path, findings),
                None => findings
                    .problems
                    .push(Problem { path: dotted(), problem: "must be an object with further keys".into() }),
            }
        } else {
            let hint = closest_key(&dotted()).map(|key| format!("; did you mean {key}?")).unwrap_or_default();
            findings.warnings.push(Problem { path: dotted(), problem: format!("unknown key{hint}") });
        }
        path.pop();
    }
}

fn one(spec: &KeySpec, value: &Value, path: &str, findings: &mut Findings) {
    if spec.accepts(value) {
        if matches!(spec.kind, Kind::Secret) && value.is_string() {
            findings.warnings.push(Problem {
                path: path.to_owned(),
                problem: "is a secret in plain text; `instar secrets import` moves it into the store".into(),
            });
        }
        return;
    }
    let given = match spec.kind {
        Kind::Secret => "the given value".to_owned(),
        _ => shown(value),
    };
    findings.problems.push(Problem {
        path: path.to_owned(),
        problem: format!("must be {}, not {given}", spec.expected()),
    });
}

/// Rules between keys.
fn relations(root: &Map<String, Value>, problems: &mut Vec<Problem>) {
    let text = |path: &str| lookup(root, path).and_then(Value::as_str);
    let yes = |path: &str| lookup(root, path).and_then(Value::as_bool) == Some(true);
    if text("host").is_some_and(|h| !is_loopback(h)) && !yes("allowNonLoopback") {
        problems.push(Problem {
            path: "host".into(),
            problem: "is not a loopback address; that needs \"allowNonLoopback\": true".into(),
        });
    }
    if text("threadline.mcp.host").is_some_and(|h| !is_loopback(h)) && !yes("threadline.mcp.behindProxy") {
        problems.push(Problem {
            path: "threadline.mcp.host".into(),
            problem: "is not a loopback address; that needs a TLS proxy and \"behindProxy\": true".into(),
        });
    }
    // The first of the list stands in for the single address.
    let listed =
        lookup(root, "threadline.relays").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    if yes("threadline.relayEnabled") && text("threadline.relayUrl").is_none() && !listed {
        problems.push(Problem {
            path: "threadline.relayUrl".into(),
            problem: "is needed when threadline.relayEnabled is true, for example wss://relay.example.org/v1/connect"
                .into(),
        });
    }
    let minutes = |key: super::Key<u64>| {
        lookup(root, key.path()).cloned().or_else(|| key.spec().default_value()).and_then(|v| v.as_i64())
    };
    let (free, bound) = (minutes(keys::SESSIONS_IDLE_MINUTES), minutes(keys::SESSIONS_IDLE_MINUTES_BOUND));
    if let (Some(free), Some(bound)) = (free, bound)
        && bound < free
    {
        problems.push(Problem {
            path: keys::SESSIONS_IDLE_MINUTES_BOUND.path().into(),
            problem: format!("must be at least sessions.idlePromptKillMinutes, which is {free}"),
        });
    }
    if let Some(Value::Object(credentials)) = lookup(root, "sessions.credentials") {
        for (provider, credential) in credentials {
            for needed in ["kind", "value"] {
                if credential.as_object().is_some_and(|c| !c.contains_key(needed)) {
                    problems.push(Problem {
                        path: format!("sessions.credentials.{provider}.{needed}"),
                        problem: "is missing".into(),
                    });
                }
            }
        }
    }
}

/// Whether a host name or address is this machine's own.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The value at a dot path.
pub fn lookup<'a>(root: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut segments = path.split('.');
    let mut value = root.get(segments.next()?)?;
    for segment in segments {
        value = value.as_object()?.get(segment)?;
    }
    Some(value)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(59).chain(['…']).collect()
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn findings(value: &Value) -> Findings {
        check(value.as_object().expect("object"))
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let found = findings(&json!({
            "port": 80, "host": "0.0.0.0", "logging": {"level": "loud"},
            "sessions": {"maxSessions": "ten", "idlePromptKillMinutes": 300},
            "threadline": {"limits": {"verified": {"messagesPerHour": -1}}, "relayEnabled": true},
        }));
        let paths: Vec<&str> = found.problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "port",
                "logging.level",
                "sessions.maxSessions",
                "threadline.limits.verified.messagesPerHour",
                "host",
                "threadline.relayUrl",
                "sessions.idlePromptKillMinutesBoundToTopic",
            ]
        );
        assert_eq!(found.problems[0].problem, "must be a whole number from 1024 to 65535, not 80");
    }

    #[test]
    fn an_unknown_key_is_a_warning_that_names_the_closest_one() {
        let found = findings(&json!({"sessions": {"maxSesions": 3}, "somethingElseEntirely": 1}));
        assert!(found.problems.is_empty());
        assert_eq!(found.warnings[0].problem, "unknown key; did you mean sessions.maxSessions?");
        assert_eq!(found.warnings[1].problem, "unknown key");
    }

    #[test]
    fn secrets_are_never_shown() {
        let found = findings(&json!({"authToken": 12345, "dashboardPin": "123456"}));
        assert!(!found.problems[0].problem.contains("12345"));
        assert_eq!(found.warnings[0].path, "dashboardPin");
    }

    #[test]
    fn credentials_need_kind_and_value() {
        let found = findings(&json!({"sessions": {"credentials": {"anthropic": {"kind": "api-key"}}}}));
        assert_eq!(found.problems[0].path, "sessions.credentials.anthropic.value");
    }

    #[test]
    fn a_group_is_checked_like_the_file_but_unknown_keys_are_problems() {
        let group = json!({"kind": "api-kez", "value": {"secret": true}, "baseURL": "https://a.example"});
        let group = group.as_object().expect("object");
        let found = check_group("sessions.credentials.anthropic", group);
        let paths: Vec<&str> = found.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["sessions.credentials.anthropic.kind", "sessions.credentials.anthropic.baseURL"]);
        let keys: Vec<String> = keys_of_group("sessions.credentials.anthropic", group)
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        assert_eq!(keys, ["sessions.credentials.anthropic.kind", "sessions.credentials.anthropic.value"]);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        let names = prop_oneof![
            prop::sample::select(vec![
                "port",
                "host",
                "sessions",
                "credentials",
                "threadline",
                "limits",
                "mcp",
                "*",
                "version",
            ])
            .prop_map(str::to_owned),
            ".{0,8}",
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_the_checker_fail(value in any_json()) {
            if let Some(root) = value.as_object() {
                let found = check(root);
                for problem in found.problems.iter().chain(&found.warnings) {
                    prop_assert!(!problem.problem.is_empty());
                }
            }
        }

        #[test]
        fn distance_is_a_metric(a in "[a-c.]{0,8}", b in "[a-c.]{0,8}", c in "[a-c.]{0,8}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert!(distance(&a, &c) <= distance(&a, &b) + distance(&b, &c));
        }
    }
}
