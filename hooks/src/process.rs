//! The executable: arguments, environment, standard input, answer and report.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::binding::{self, BindingState};
use crate::client::NodeClient;
use crate::context;
use crate::dispatch::{self, Firing, HOOKS, Part};
use crate::event::{BadInput, Event, EventInput, MAX_INPUT, Runtime};
use crate::guard::Places;
use crate::report::{HookReport, ReportFacts};
use crate::snapshot::HookConfig;
use crate::spool;

/// Time that standard input has to arrive.
const INPUT_DEADLINE: Duration = Duration::from_secs(1);
/// Time that the node has to take a report.
const REPORT_DEADLINE: Duration = Duration::from_millis(50);

const USAGE: &str =
    "usage: instar-hook on <Event> [--runtime claude|codex] [--part identity|conversation] [--compact]
       instar-hook <hook> [--runtime claude|codex]
       instar-hook test <hook|Event> --event FILE [--runtime claude|codex]
The event is one JSON object on standard input.";

/// Runs the hook program on its arguments, the program's own name first; both `instar-hook` and `instar` call it.
///
/// Exit 0 with the answer on standard output, exit 2 with the reason on standard error when a safety hook could not
/// do its work, exit 64 for arguments that are none.
pub fn main_from_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let started = Instant::now();
    let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let program = args.first().cloned().unwrap_or_default();
    let call = match Call::parse(args.get(1..).unwrap_or_default()) {
        Ok(call) => call,
        Err(Refusal::Version) => {
            println!("instar-hook {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        // An event that this build does not know is none of its business.
        Err(Refusal::UnknownEvent) => return ExitCode::SUCCESS,
        Err(Refusal::Usage(problem)) => {
            eprintln!("instar-hook: {problem}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let safety = call.event.is_none_or(Event::is_safety);
    // A panic's own message would reach the model on standard error.
    panic::set_hook(Box::new(|_| {}));
    match panic::catch_unwind(panic::AssertUnwindSafe(|| call.run(&program, started))) {
        Ok(Err(failure)) if safety => {
            eprintln!("instar-hook: {failure}; command not run");
            ExitCode::from(2)
        }
        Err(_) if safety => {
            eprintln!("instar-hook: guard failed internally; command not run");
            ExitCode::from(2)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// What the arguments ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    event: Option<Event>,
    hook: Option<&'static str>,
    runtime: Option<Runtime>,
    part: Option<Part>,
    compact: bool,
    event_file: Option<PathBuf>,
    trial: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Version,
    UnknownEvent,
    Usage(String),
}

impl Call {
    fn parse(args: &[String]) -> Result<Self, Refusal> {
        let usage = |problem: &str| Refusal::Usage(problem.to_owned());
        let mut args = args.iter().map(String::as_str);
        let mut call = Self::default();
        match args.next() {
            None => return Err(usage("an event or a hook is needed")),
            Some("--version" | "-V") => return Err(Refusal::Version),
            Some("on") => {
                let name = args.next().ok_or_else(|| usage("`on` needs an event"))?;
                call.event = Some(name.parse().map_err(|_| Refusal::UnknownEvent)?);
            }
            Some("test") => {
                call.trial = true;
                let name = args.next().ok_or_else(|| usage("`test` needs a hook or an event"))?;
                call.name(name)?;
            }
            Some(name) => call.name(name)?,
        }
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or_else(|| Refusal::Usage(format!("{flag} needs a value")));
            match flag {
                "--runtime" => {
                    let runtime = value()?.parse().map_err(|_| usage("--runtime is claude or codex"))?;
                    call.runtime = Some(runtime);
                }
                "--part" => {
                    call.part = Some(match value()? {
                        "identity" => Part::Identity,
                        "conversation" => Part::Conversation,
                        _ => return Err(usage("--part is identity or conversation")),
                    });
                }
                "--compact" => call.compact = true,
                "--event" => call.event_file = Some(value()?.into()),
                other => return Err(Refusal::Usage(format!("{other} is not an option"))),
            }
        }
        Ok(call)
    }

    fn name(&mut self, name: &str) -> Result<(), Refusal> {
        if let Ok(event) = name.parse::<Event>() {
            self.event = Some(event);
            return Ok(());
        }
        let hook = HOOKS.iter().find(|hook| hook.name == name);
        self.hook =
            Some(hook.ok_or_else(|| Refusal::Usage(format!("{name:?} is no hook and no event")))?.name);
        Ok(())
    }

    fn run(&self, program: &str, started: Instant) -> Result<(), BadInput> {
        let bytes = match &self.event_file {
            Some(file) => std::fs::read(file).map_err(|_| BadInput::Unreadable),
            None => read_input(),
        };
        let environment = Environment::read(program);
        let input = match bytes.and_then(|bytes| EventInput::parse(&bytes)) {
            Ok(input) => input,
            // Without a state directory this is a foreign project, where no hook of ours has a say.
            Err(_) if environment.state_dir(None).is_none() => return Ok(()),
            Err(bad) => return Err(bad),
        };
        let Some(state_dir) = environment.state_dir(input.text("cwd")) else { return Ok(()) };
        let named =
            self.hook.and_then(|name| HOOKS.iter().find(|hook| hook.name == name)?.events.first().copied());
        let said = input.text("hook_event_name").and_then(|name| name.parse().ok());
        let Some(event) = self.event.or(said).or(named) else { return Ok(()) };
        let runtime = match self.runtime {
            Some(Runtime::Claude) | None => input.looks_like(),
            Some(Runtime::Codex) => Runtime::Codex,
        };

        let (config, _) = HookConfig::load(&state_dir);
        let node = environment.node(&state_dir);
        let binding = environment.binding(&state_dir, input.session_id());
        let bound = match &binding {
            BindingState::Bound(binding) => binding.conversation.clone(),
            _ => None,
        };
        let conversation = bound.or_else(|| environment.conversation.clone());
        let session = environment.session.clone().or_else(|| input.session_id().map(str::to_owned));
        let firing = Firing {
            event,
            input: &input,
            config: &config,
            binding: &binding,
            environment_serves_peer: environment.serves_peer,
            session: session.as_deref(),
            conversation: conversation.as_deref(),
            node: node.as_ref(),
            places: environment.places(&state_dir, input.text("cwd")),
            state_dir: state_dir.clone(),
            part: self.part,
            compact: self.compact || input.text("source") == Some("compact"),
            now: chrono::Local::now().format(context::CLOCK_FORMAT).to_string(),
        };
        let reporter = Reporter { state_dir: &state_dir, node: node.as_ref(), environment: &environment };
        // A session is known from its first second; the second part of its start is no second start.
        let early = event == Event::SessionStart;
        let reports = !self.trial && self.part != Some(Part::Conversation);
        if early && reports {
            reporter.send(event, &input, runtime, started, Vec::new());
        }
        let (outcome, decisions) = dispatch::run(&firing, self.hook);
        let output = outcome.render(event, runtime);
        if !output.is_empty() {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush());
        }
        if !early && reports {
            reporter.send(event, &input, runtime, started, decisions);
        }
        Ok(())
    }
}

/// Reads standard input up to [`MAX_INPUT`] bytes and not for longer than [`INPUT_DEADLINE`].
fn read_input() -> Result<Vec<u8>, BadInput> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let reader = thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(MAX_INPUT as u64 + 1).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    if reader.is_err() {
        return Err(BadInput::Unreadable);
    }
    match receiver.recv_timeout(INPUT_DEADLINE) {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(BadInput::Unreadable),
        Err(_) => Err(BadInput::TimedOut),
    }
}

/// The environment as far as it concerns the hooks.
#[derive(Debug, Default)]
struct Environment {
    program: PathBuf,
    state_dir: Option<PathBuf>,
    project_dir: Option<PathBuf>,
    home: String,
    session: Option<String>,
    socket: Option<PathBuf>,
    token: Option<String>,
    conversation: Option<String>,
    serves_peer: bool,
}

impl Environment {
    fn read(program: &str) -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            program: program.into(),
            state_dir: text("INSTAR_STATE_DIR").map(PathBuf::from),
            project_dir: text("CLAUDE_PROJECT_DIR").map(PathBuf::from),
            home: text("HOME").unwrap_or_default(),
            session: text("INSTAR_SESSION_ID"),
            socket: text("INSTAR_SOCKET").map(PathBuf::from),
            token: text("INSTAR_AUTH_TOKEN"),
            conversation: text("INSTAR_CONVERSATION"),
            serves_peer: text("INSTAR_SERVES_PEER").is_some_and(|value| value != "0"),
        }
    }

    /// The state directory: that of the link through which the program was called, which nothing in the environment
    /// can change; else the one that is named; else the project's; else the next one upwards.
    fn state_dir(&self, cwd: Option<&str>) -> Option<PathBuf> {
        let current = self.program.parent().filter(|directory| directory.ends_with("current"));
        let own = current.and_then(Path::parent).filter(|directory| directory.join("config.json").is_file());
        let project = self.project_dir.as_ref().map(|directory| directory.join(".instar"));
        let fixed = [own.map(Path::to_path_buf), self.state_dir.clone(), project];
        fixed.into_iter().flatten().find(|directory| directory.is_dir()).or_else(|| {
            let start = cwd.map(PathBuf::from).or_else(|| std::env::current_dir().ok())?;
            start.ancestors().map(|directory| directory.join(".instar")).find(|directory| directory.is_dir())
        })
    }

    /// The node of this state directory. Its own socket goes before one that the environment names.
    fn node(&self, state_dir: &Path) -> Option<NodeClient> {
        let own = state_dir.join("run/agent.sock");
        let named = self.socket.clone().filter(|_| !own.exists());
        let socket = named.unwrap_or(own);
        socket.exists().then(|| NodeClient { socket, token: self.token.clone() })
    }

    fn binding(&self, state_dir: &Path, runtime_session: Option<&str>) -> BindingState {
        // `ist_<id>_<rand>`
        let in_token = self.token.as_deref().and_then(|token| token.strip_prefix("ist_")?.rsplit_once('_'));
        let names: Vec<&str> = [self.session.as_deref(), runtime_session, in_token.map(|(id, _)| id)]
            .into_iter()
            .flatten()
            .collect();
        binding::look_up(state_dir, &names)
    }

    fn places(&self, state_dir: &Path, cwd: Option<&str>) -> Places {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let parent = state_dir.parent().map(text).unwrap_or_default();
        let project = self.project_dir.as_deref().map_or(parent, text);
        Places {
            home: self.home.clone(),
            state: text(state_dir),
            cwd: cwd.map_or_else(|| project.clone(), str::to_owned),
            project,
        }
    }
}

/// Hands reports to the node, or keeps them for it.
struct Reporter<'r> {
    state_dir: &'r Path,
    node: Option<&'r NodeClient>,
    environment: &'r Environment,
}

impl Reporter<'_> {
    fn send(
        &self,
        event: Event,
        input: &EventInput,
        runtime: Runtime,
        started: Instant,
        decisions: Vec<crate::report::HookDecision>,
    ) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = ReportFacts {
            id: format!("{:x}-{:x}", std::process::id(), now.as_nanos()),
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            runtime,
            instar_session_id: self.environment.session.clone(),
            hook_ms: started.elapsed().as_secs_f64() * 1_000.0,
            decisions,
        };
        let report = HookReport::new(event, input, facts);
        let sent = serde_json::to_vec(&report).is_ok_and(|body| {
            let answer =
                self.node.map(|node| node.call("POST", "/hooks/events", Some(&body), REPORT_DEADLINE));
            matches!(answer, Some(Ok(answer)) if answer.status < 500)
        });
        if !sent {
            let _ = spool::keep(self.state_dir, &report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Call, Refusal> {
        Call::parse(&args.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn registered_commands_are_understood() {
        let program = Path::new("/x/instar-hook");
        for registration in crate::settings::REGISTRATIONS {
            let command = registration.command(program);
            let arguments = command.split_once("\" ").map_or("", |(_, arguments)| arguments);
            let call = parse(arguments).expect("a call");
            assert_eq!((call.event, call.runtime), (Some(registration.event), Some(Runtime::Claude)));
        }
    }

    #[test]
    fn other_arguments_are_named_or_ignored() {
        assert_eq!(parse("on Nonsense"), Err(Refusal::UnknownEvent));
        assert_eq!(parse("--version"), Err(Refusal::Version));
        for wrong in
            ["", "nonsense", "on", "on Stop --part x", "on Stop --runtime", "test", "peer-firewall --x"]
        {
            assert!(matches!(parse(wrong), Err(Refusal::Usage(_))), "{wrong}");
        }
        assert_eq!(parse("peer-firewall").map(|call| call.hook), Ok(Some("peer-firewall")));
    }

    #[test]
    fn the_link_decides_before_the_environment() {
        let directory = tempfile::tempdir().expect("a directory");
        let (own, other) = (directory.path().join("a/.instar"), directory.path().join("b/.instar"));
        for state in [&own, &other] {
            std::fs::create_dir_all(state).expect("makes");
            std::fs::write(state.join("config.json"), "{}").expect("writes");
        }
        let mut environment = Environment {
            program: own.join("current/instar-hook"),
            state_dir: Some(other.clone()),
            ..Environment::default()
        };
        assert_eq!(environment.state_dir(None), Some(own.clone()));
        environment.program = "instar-hook".into();
        assert_eq!(environment.state_dir(None), Some(other));
        environment.state_dir = Some(directory.path().join("missing"));
        let inside = own.join("jobs/x");
        assert_eq!(environment.state_dir(inside.to_str()), Some(own));
    }
}
