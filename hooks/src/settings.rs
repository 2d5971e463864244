//! Our entries in `.claude/settings.json`: what they should be, and how they get there without touching the rest.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::event::Event;
use crate::files;

/// One entry of the registration table (`hooks-identity-memory.md` §2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// Event.
    pub event: Event,
    /// Regular expression on the event's subject; none = every one.
    pub matcher: Option<&'static str>,
    /// Arguments after `on <Event>`.
    pub arguments: &'static str,
    /// Time-out that the runtime applies, in seconds.
    pub timeout_seconds: u64,
}

/// Everything that `instar-hook` is registered for.
pub const REGISTRATIONS: &[Registration] = &[
    start("startup|resume|clear|fork", "--part identity", 5),
    start("startup|resume|clear|fork", "--part conversation", 5),
    start("compact", "--part identity --compact", 8),
    start("compact", "--part conversation --compact", 8),
    all(Event::UserPromptSubmit, 5),
    all(Event::PreToolUse, 10),
    all(Event::PermissionRequest, 3),
    all(Event::PostToolUse, 5),
    all(Event::Stop, 20),
    all(Event::SubagentStart, 3),
    all(Event::SubagentStop, 3),
    all(Event::WorktreeCreate, 3),
    all(Event::WorktreeRemove, 3),
    all(Event::TaskCompleted, 3),
    all(Event::SessionEnd, 3),
    all(Event::PreCompact, 3),
    all(Event::PostCompact, 3),
    all(Event::Notification, 3),
    all(Event::InstructionsLoaded, 3),
];

const fn start(matcher: &'static str, arguments: &'static str, timeout_seconds: u64) -> Registration {
    Registration { event: Event::SessionStart, matcher: Some(matcher), arguments, timeout_seconds }
}

const fn all(event: Event, timeout_seconds: u64) -> Registration {
    Registration { event, matcher: None, arguments: "", timeout_seconds }
}

impl Registration {
    /// The command line for the runtime's shell, with the program in double quotes.
    pub fn command(&self, program: &Path) -> String {
        let mut quoted = String::from("\"");
        for letter in program.to_string_lossy().chars() {
            if matches!(letter, '"' | '\\' | '$' | '`') {
                quoted.push('\\');
            }
            quoted.push(letter);
        }
        let separator = if self.arguments.is_empty() { "" } else { " " };
        format!("{quoted}\" on {}{separator}{} --runtime claude", self.event, self.arguments)
    }

    fn group(&self, program: &Path) -> Value {
        let hook =
            json!({ "type": "command", "command": self.command(program), "timeout": self.timeout_seconds });
        match self.matcher {
            Some(matcher) => json!({ "matcher": matcher, "hooks": [hook] }),
            None => json!({ "hooks": [hook] }),
        }
    }
}

/// The `hooks` object with our entries alone, for a settings file of a session (`--settings`).
pub fn hooks_object(program: &Path) -> Value {
    let mut hooks = Map::new();
    for registration in REGISTRATIONS {
        let groups = hooks.entry(registration.event.name()).or_insert_with(|| json!([]));
        if let Value::Array(groups) = groups {
            groups.push(registration.group(program));
        }
    }
    Value::Object(hooks)
}

/// Why a settings file was left as it is.
#[derive(Debug)]
pub enum SettingsError {
    /// Reading or writing failed.
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file holds something that is not settings; what it should hold lies beside it.
    Unparsable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The proposal written beside it, for installs.
        proposal: Option<PathBuf>,
    },
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingsError::Io { file, source } => write!(f, "{}: {source}", file.display()),
            SettingsError::Unparsable { file, problem, proposal } => {
                write!(f, "{} was left as it is: {problem}", file.display())?;
                if let Some(proposal) = proposal {
                    write!(
                        f,
                        "; our hook entries are in {}: repair the file, then merge them or install again",
                        proposal.display()
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for SettingsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SettingsError::Io { source, .. } => Some(source),
            SettingsError::Unparsable { .. } => None,
        }
    }
}

/// What an install did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// There was no file.
    Created,
    /// Our entries were added or replaced.
    Updated,
    /// Everything was in place.
    Unchanged,
}

/// Merges our entries into a settings file, all else kept in place and order.
pub fn install(file: &Path, program: &Path) -> Result<Installed, SettingsError> {
    let existing = read(file)?;
    let merged = match merge(existing.as_deref(), Some(program)) {
        Ok(merged) => merged,
        Err(problem) => {
            let proposal = with_suffix(file, ".instar-new");
            let alone = pretty(&json!({ "hooks": hooks_object(program) }));
            write(&proposal, &alone)?;
            return Err(SettingsError::Unparsable { file: file.into(), problem, proposal: Some(proposal) });
        }
    };
    if existing.as_deref() == Some(merged.as_str()) {
        return Ok(Installed::Unchanged);
    }
    write(file, &merged)?;
    Ok(if existing.is_some() { Installed::Updated } else { Installed::Created })
}

/// Removes our entries and nothing else. Returns whether there were any.
pub fn uninstall(file: &Path) -> Result<bool, SettingsError> {
    let Some(existing) = read(file)? else { return Ok(false) };
    let stripped = merge(Some(&existing), None).map_err(|problem| SettingsError::Unparsable {
        file: file.into(),
        problem,
        proposal: None,
    })?;
    if parse(&stripped) == parse(&existing) {
        return Ok(false);
    }
    write(file, &stripped)?;
    Ok(true)
}

/// One difference between a settings file and the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// There is no settings file.
    NoFile,
    /// An entry of the table is not there.
    Missing {
        /// Event.
        event: Event,
        /// Its matcher.
        matcher: Option<&'static str>,
    },
    /// An entry of ours is there that the table does not have.
    Foreign {
        /// Event as the file names it.
        event: String,
        /// Its command.
        command: String,
    },
    /// The file switches all hooks off.
    AllDisabled,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Drift::NoFile => f.write_str("there is no settings file"),
            Drift::Missing { event, matcher: Some(matcher) } => write!(f, "missing: {event} ({matcher})"),
            Drift::Missing { event, matcher: None } => write!(f, "missing: {event}"),
            Drift::Foreign { event, command } => write!(f, "not in the table: {event}: {command}"),
            Drift::AllDisabled => f.write_str("\"disableAllHooks\" is true: no hook runs"),
        }
    }
}

/// Compares a settings file with the table.
pub fn verify(file: &Path, program: &Path) -> Result<Vec<Drift>, SettingsError> {
    let Some(text) = read(file)? else { return Ok(vec![Drift::NoFile]) };
    let unparsable = |problem| SettingsError::Unparsable { file: file.into(), problem, proposal: None };
    let settings = parse(&text).map_err(unparsable)?;
    let mut drift = Vec::new();
    if settings.get("disableAllHooks") == Some(&Value::Bool(true)) {
        drift.push(Drift::AllDisabled);
    }
    let mut present: Vec<(String, Value)> = Vec::new();
    for (event, groups) in settings.get("hooks").and_then(Value::as_object).into_iter().flatten() {
        for group in groups.as_array().into_iter().flatten() {
            if let Some(ours) = only_ours(group) {
                present.push((event.clone(), ours));
            }
        }
    }
    for registration in REGISTRATIONS {
        let wanted = (registration.event.name().to_owned(), registration.group(program));
        match present.iter().position(|found| *found == wanted) {
            Some(at) => drop(present.remove(at)),
            None => drift.push(Drift::Missing { event: registration.event, matcher: registration.matcher }),
        }
    }
    drift.extend(present.into_iter().flat_map(|(event, group)| {
        let hooks = group.get("hooks").and_then(Value::as_array).cloned().unwrap_or_default();
        hooks.into_iter().map(move |hook| Drift::Foreign {
            event: event.clone(),
            command: hook.get("command").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }));
    Ok(drift)
}

/// The settings with our entries replaced by the table's, or removed when there is no program.
///
/// The error says what is wrong with the existing text. Applying it twice changes nothing more.
pub fn merge(existing: Option<&str>, program: Option<&Path>) -> Result<String, String> {
    let mut settings = match existing {
        Some(text) if !text.trim().is_empty() => parse(text)?,
        _ => Map::new(),
    };
    let mut hooks = match settings.get("hooks") {
        None => Map::new(),
        Some(Value::Object(hooks)) => hooks.clone(),
        Some(_) => return Err("\"hooks\" is not an object".to_owned()),
    };
    let mut places: Vec<(String, usize)> = Vec::new();
    for (event, groups) in &mut hooks {
        let Value::Array(groups) = groups else { return Err(format!("\"hooks.{event}\" is not a list")) };
        let kept: Vec<(usize, Option<Value>)> =
            groups.iter().enumerate().map(|(at, group)| (at, without_ours(group))).collect();
        if let Some((first, _)) = kept.iter().find(|(at, rest)| rest.as_ref() != groups.get(*at)) {
            let before = kept.iter().take(*first).filter(|(_, rest)| rest.is_some()).count();
            places.push((event.clone(), before));
        }
        *groups = kept.into_iter().filter_map(|(_, rest)| rest).collect();
    }
    if let Some(program) = program {
        let Value::Object(ours) = hooks_object(program) else { return Err("no hooks".to_owned()) };
        for (event, added) in ours {
            let place = places.iter().find(|(name, _)| *name == event).map(|(_, at)| *at);
            let groups = hooks.entry(event).or_insert_with(|| json!([]));
            if let (Value::Array(groups), Value::Array(added)) = (groups, added) {
                let at = place.unwrap_or(groups.len()).min(groups.len());
                groups.splice(at..at, added);
            }
        }
    }
    hooks.retain(|event, groups| {
        groups.as_array().is_none_or(|groups| !groups.is_empty())
            || !places.iter().any(|(name, _)| name == event)
    });
    if hooks.is_empty() && settings.get("hooks").is_some_and(|before| *before != json!({})) {
        settings.shift_remove("hooks");
    } else if !hooks.is_empty() {
        settings.insert("hooks".to_owned(), Value::Object(hooks));
    }
    Ok(pretty(&Value::Object(settings)))
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(settings)) => Ok(settings),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(format!("it is not valid JSON ({error})")),
    }
}

fn is_ours(hook: &Value) -> bool {
    hook.get("command").and_then(Value::as_str).is_some_and(|command| command.contains("instar-hook"))
}

/// The group without our entries; none when nothing but ours was in it.
fn without_ours(group: &Value) -> Option<Value> {
    let Some(hooks) = group.get("hooks").and_then(Value::as_array) else { return Some(group.clone()) };
    if !hooks.iter().any(is_ours) {
        return Some(group.clone());
    }
    let rest: Vec<Value> = hooks.iter().filter(|hook| !is_ours(hook)).cloned().collect();
    with_hooks(group, rest)
}

/// The group with our entries alone; none when there is none of ours in it.
fn only_ours(group: &Value) -> Option<Value> {
    let hooks = group.get("hooks").and_then(Value::as_array)?;
    with_hooks(group, hooks.iter().filter(|hook| is_ours(hook)).cloned().collect())
}

fn with_hooks(group: &Value, hooks: Vec<Value>) -> Option<Value> {
    if hooks.is_empty() {
        return None;
    }
    let mut group = group.clone();
    group.as_object_mut()?.insert("hooks".to_owned(), Value::Array(hooks));
    Some(group)
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn read(file: &Path) -> Result<Option<String>, SettingsError> {
    match fs::read(file) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| SettingsError::Unparsable {
            file: file.into(),
            problem: "it is not UTF-8".to_owned(),
            proposal: None,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::Io { file: file.into(), source }),
    }
}

fn write(file: &Path, text: &str) -> Result<(), SettingsError> {
    // A linked settings file stays a link: people keep theirs under version control elsewhere.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    files::replace(&target, text.as_bytes(), 0o644)
        .map_err(|source| SettingsError::Io { file: file.into(), source })
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROGRAM: &str = "/agent one/.instar/current/instar-hook";

    fn program() -> &'static Path {
        Path::new(PROGRAM)
    }

    fn merged(existing: &str) -> Value {
        serde_json::from_str(&merge(Some(existing), Some(program())).expect("merges")).expect("JSON")
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let path = Path::new("/a \"b\"/$c/instar-hook");
        assert_eq!(
            all(Event::Stop, 1).command(path),
            r#""/a \"b\"/\$c/instar-hook" on Stop --runtime claude"#
        );
        assert_eq!(
            start("compact", "--part identity --compact", 8).command(program()),
            format!("\"{PROGRAM}\" on SessionStart --part identity --compact --runtime claude")
        );
    }

    #[test]
    fn every_event_is_registered_once_but_for_session_start() {
        for event in Event::ALL {
            let entries = REGISTRATIONS.iter().filter(|entry| entry.event == *event).count();
            assert_eq!(entries, if *event == Event::SessionStart { 4 } else { 1 }, "{event}");
        }
    }

    #[test]
    fn the_rest_keeps_its_place_and_order() {
        let existing = r#"{"z":1,"hooks":{"Stop":[
            {"hooks":[{"type":"command","command":"first"}]},
            {"matcher":"x","hooks":[{"type":"command","command":"mine"},{"type":"command","command":"\"/old/instar-hook\" on Stop"}]},
            {"hooks":[{"type":"command","command":"/old/instar-hook on Stop"}]},
            {"hooks":[{"type":"command","command":"last"}]}],
            "Custom":[{"hooks":[]}]},"a":{"b":[1.5,null]}}"#;
        let settings = merged(existing);
        assert_eq!(
            settings.as_object().map(|m| m.keys().cloned().collect::<Vec<_>>()),
            Some(vec!["z".into(), "hooks".into(), "a".into()])
        );
        let stop = &settings["hooks"]["Stop"];
        let commands: Vec<&str> = stop
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|group| group["hooks"][0]["command"].as_str())
            .collect();
        let ours = format!("\"{PROGRAM}\" on Stop --runtime claude");
        assert_eq!(commands, ["first", &ours, "mine", "last"]);
        assert_eq!(settings["hooks"]["Custom"], json!([{ "hooks": [] }]));
        assert_eq!(settings["a"], json!({ "b": [1.5, null] }));
    }

    #[test]
    fn unusable_files_are_named_and_left() {
        for (text, problem) in [
            ("{", "not valid JSON"),
            ("[]", "not a JSON object"),
            (r#"{"hooks":[]}"#, "\"hooks\" is not an object"),
            (r#"{"hooks":{"Stop":{}}}"#, "\"hooks.Stop\" is not a list"),
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("settings.json");
            fs::write(&file, text).expect("writes");
            let error = install(&file, program()).expect_err("unusable").to_string();
            assert!(error.contains(problem) && error.contains("settings.json.instar-new"), "{error}");
            assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(text));
            let proposal =
                fs::read_to_string(directory.path().join("settings.json.instar-new")).expect("a proposal");
            assert!(proposal.contains("on PreToolUse"));
        }
    }

    #[test]
    fn install_verify_and_uninstall_agree() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(".claude/settings.json");
        assert_eq!(verify(&file, program()).ok(), Some(vec![Drift::NoFile]));
        assert_eq!(install(&file, program()).ok(), Some(Installed::Created));
        assert_eq!(install(&file, program()).ok(), Some(Installed::Unchanged));
        assert_eq!(verify(&file, program()).ok(), Some(vec![]));

        let text = fs::read_to_string(&file).expect("reads");
        fs::write(
            &file,
            text.replace("on PreToolUse", "on Nothing").replacen('{', "{\"disableAllHooks\": true,", 1),
        )
        .expect("writes");
        let drift = verify(&file, program()).expect("verifies");
        assert!(drift.contains(&Drift::AllDisabled), "{drift:?}");
        assert!(drift.contains(&Drift::Missing { event: Event::PreToolUse, matcher: None }), "{drift:?}");
        assert!(drift.iter().any(|d| matches!(d, Drift::Foreign { .. })), "{drift:?}");

        assert_eq!(install(&file, program()).ok(), Some(Installed::Updated));
        assert_eq!(uninstall(&file).ok(), Some(true));
        assert_eq!(uninstall(&file).ok(), Some(false));
        assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some("{\n  \"disableAllHooks\": true\n}\n"));
    }

    #[test]
    fn a_linked_file_stays_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (real, link) = (directory.path().join("real.json"), directory.path().join("settings.json"));
        fs::write(&real, "{}").expect("writes");
        std::os::unix::fs::symlink(&real, &link).expect("links");
        install(&link, program()).expect("installs");
        assert!(link.is_symlink() && fs::read_to_string(&real).is_ok_and(|text| text.contains("PreToolUse")));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-zA-Z \"\\\\é/]{0,12}".prop_map(Value::from),
            Just(Value::from("\"/x/instar-hook\" on Stop")),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(
                    (prop_oneof!["hooks|command|matcher|type", "[a-z]{1,4}"], inner),
                    0..4
                )
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_keeps_all_else_and_is_stable(
            rest in any_json(),
            stop in proptest::collection::vec(any_json(), 0..4),
            other in proptest::collection::vec(any_json(), 0..3),
        ) {
            let existing = json!({ "rest": rest, "hooks": { "Stop": stop, "Other": other } });
            let once = merge(Some(&existing.to_string()), Some(program())).expect("merges");
            prop_assert_eq!(merge(Some(&once), Some(program())), Ok(once.clone()));
            let parsed: Value = serde_json::from_str(&once).expect("JSON");
            prop_assert_eq!(&parsed["rest"], &existing["rest"]);
            let strip = |groups: &[Value]| groups.iter().filter_map(without_ours).collect::<Vec<_>>();
            let kept = strip(parsed["hooks"]["Stop"].as_array().map_or(&[], Vec::as_slice));
            prop_assert_eq!(kept, strip(&stop));
        }

        #[test]
        fn any_text_merges_or_is_refused(text in "\\PC{0,60}") {
            let _ = merge(Some(&text), Some(program()));
        }
    }
}
