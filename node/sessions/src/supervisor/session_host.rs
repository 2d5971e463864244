//! Supervisor of a session over pipes: owns the runtime's input and output and a socket for the node.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use instar_state::ids::SessionId;
use rustix::process::Signal;
use serde_json::json;

use super::event_log::{EventLog, MAX_LINE};
use super::protocol::{Report, Request};
use super::{NOT_STARTED, child_exec, exit_of, heartbeat, wait_for_end, write_exit, write_pids};
use crate::launch::{self, LaunchSpec, Pids, SessionFiles};
use crate::process;
use crate::record::ExitRecord;

/// Lines that may wait for the runtime to read its input.
const INPUT_QUEUE: usize = 64;
/// Time between the steps of an orderly end.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of error output that are kept.
const MAX_STDERR_LINES: usize = 2000;

/// Runs the runtime of this session until it ends, in a session of its own so that no terminal reaches it.
pub fn run(state_dir: PathBuf, id: SessionId) -> io::Result<()> {
    // Already the leader of a session: then there is nothing to leave.
    let _ = rustix::process::setsid();
    let files = SessionFiles::new(&state_dir, id);
    let spec = launch::take(&files)?;
    let listener = listen(&files)?;
    let shared = Arc::new(Shared {
        log: Mutex::new(LogState { log: EventLog::open(&files.log())?, end: 0, exit: None }),
        grown: Condvar::new(),
        input: Mutex::new(None),
        child: Mutex::new(None),
    });
    supervise(&spec, &files, id, &shared, listener)
}

struct Shared {
    log: Mutex<LogState>,
    grown: Condvar,
    /// `None` once the runtime's input is closed.
    input: Mutex<Option<SyncSender<Vec<u8>>>>,
    /// Process group of the runtime while its process id cannot have been given away.
    child: Mutex<Option<i32>>,
}

struct LogState {
    log: EventLog,
    end: u64,
    exit: Option<ExitRecord>,
}

fn supervise(
    spec: &LaunchSpec,
    files: &SessionFiles,
    id: SessionId,
    shared: &Arc<Shared>,
    listener: UnixListener,
) -> io::Result<()> {
    let spawned = Command::new(&spec.program)
        .args(child_exec::arguments(&spec.argv, false))
        .env_clear()
        .envs(&spec.env)
        .current_dir(&spec.cwd)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            shared.remark(&format!("cannot start {}: {error}", spec.program.display()));
            write_exit(files, NOT_STARTED)?;
            return Err(error);
        }
    };
    let pids = write_pids(files, i32::try_from(child.id()).map_err(io::Error::other)?)?;
    *lock(&shared.child) = Some(pids.child);

    let (input, lines) = sync_channel(INPUT_QUEUE);
    for line in &spec.first_lines {
        let _ = input.try_send(with_newline(line));
    }
    *lock(&shared.input) = Some(input);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::spawn(move || stdin.map(|stdin| write_input(stdin, &lines)));
    let output = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || stdout.map(|stdout| read_output(stdout, &shared)))
    };
    let errors = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || stderr.map(|stderr| read_errors(stderr, &shared)))
    };
    {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || accept(&listener, &shared, pids));
    }
    let beat = spec.heartbeat.clone().map(|spec| heartbeat::Heartbeat::start(spec, pids.child));

    wait_for_end(&child)?;
    drop(beat);
    // From here on the process id may be reused, so nobody may send it a signal any more.
    *lock(&shared.child) = None;
    process::kill_remains(pids.child, &id.to_string());
    let status = child.wait()?;
    drop(lock(&shared.input).take());
    // With the whole group gone both pipes are at their end, unless a stranger inherited one.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !(output.is_finished() && errors.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let record = write_exit(files, exit_of(status))?;
    shared.finish(record);
    let _ = fs::remove_file(files.socket());
    Ok(())
}

/// Binds by the relative name: an absolute path may be longer than a socket address.
fn listen(files: &SessionFiles) -> io::Result<UnixListener> {
    let path = files.socket();
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    std::env::set_current_dir(dir)?;
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(name)
}

fn write_input(mut stdin: ChildStdin, lines: &Receiver<Vec<u8>>) {
    while let Ok(line) = lines.recv() {
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_output(stdout: impl Read, shared: &Shared) {
    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    loop {
        let mut line = Vec::new();
        let Ok(read) = reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line) else { return };
        if read == 0 {
            return;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read == MAX_LINE {
            shared.remark(&format!("a line of more than {MAX_LINE} bytes was dropped"));
            if skip_line(&mut reader).is_err() {
                return;
            }
            continue;
        }
        shared.append(&line);
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let newline = buffer.iter().position(|b| *b == b'\n');
        let used = newline.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if newline.is_some() {
            return Ok(());
        }
    }
}

fn read_errors(stderr: impl Read, shared: &Shared) {
    let lines = BufReader::new(stderr).split(b'\n').map_while(Result::ok);
    for (n, line) in lines.enumerate() {
        // The pipe is read to its end even when nothing is kept: a full pipe would block the runtime.
        if n < MAX_STDERR_LINES && !line.is_empty() {
            let text: String = String::from_utf8_lossy(&line).chars().take(2000).collect();
            shared.remark(&text);
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, pids: Pids) {
    for stream in listener.incoming().flatten() {
        let (shared, reader) = (Arc::clone(shared), stream.try_clone());
        let Ok(reader) = reader else { continue };
        let answers = Arc::new(Mutex::new(stream));
        {
            let (shared, answers) = (Arc::clone(&shared), Arc::clone(&answers));
            std::thread::spawn(move || follow_log(&shared, &answers, pids));
        }
        std::thread::spawn(move || serve(reader, &shared, &answers));
    }
}

/// Tells the node how far the log reaches, until the node or the runtime is gone.
fn follow_log(shared: &Shared, answers: &Mutex<UnixStream>, pids: Pids) {
    if report(answers, &Report::Hello { pids }).is_err() {
        return;
    }
    let mut told = 0;
    loop {
        let (end, exit) = shared.wait_beyond(told);
        if end > told && report(answers, &Report::Log { end }).is_err() {
            return;
        }
        told = end;
        if let Some(record) = exit {
            let _ = report(answers, &Report::Exit { record });
            let _ = lock(answers).shutdown(Shutdown::Both);
            return;
        }
    }
}

fn serve(reader: UnixStream, shared: &Arc<Shared>, answers: &Mutex<UnixStream>) {
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Request::Write { line }) => {
                if let Err(reason) = shared.write(&line) {
                    let _ = report(answers, &Report::Refused { reason: reason.to_owned() });
                }
            }
            Ok(Request::End) => {
                let shared = Arc::clone(shared);
                std::thread::spawn(move || shared.end());
            }
            Err(error) => {
                let _ = report(answers, &Report::Refused { reason: error.to_string() });
            }
        }
    }
}

fn report(stream: &Mutex<UnixStream>, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    lock(stream).write_all(&line)
}

impl Shared {
    fn append(&self, line: &[u8]) {
        let mut state = lock(&self.log);
        // A full disk must not stop the runtime from being read; the event is lost, the session is not.
        if let Ok(end) = state.log.append(line) {
            state.end = end;
        }
        self.grown.notify_all();
    }

    fn remark(&self, text: &str) {
        self.append(json!({"type": "supervisor", "stderr": text}).to_string().as_bytes());
    }

    fn finish(&self, record: ExitRecord) {
        lock(&self.log).exit = Some(record);
        self.grown.notify_all();
        // The node learns the end from the socket, or from the exit record if this is too short.
        std::thread::sleep(Duration::from_millis(50));
    }

    fn wait_beyond(&self, told: u64) -> (u64, Option<ExitRecord>) {
        let mut state = lock(&self.log);
        while state.end <= told && state.exit.is_none() {
            state = self.grown.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.end, state.exit)
    }

    fn write(&self, line: &str) -> Result<(), &'static str> {
        let input = lock(&self.input);
        let Some(input) = input.as_ref() else { return Err("the runtime's input is closed") };
        match input.try_send(with_newline(line)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("the runtime does not read its input"),
            Err(TrySendError::Disconnected(_)) => Err("the runtime closed its input"),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = *lock(&self.child) {
            process::signal_group(group, signal);
        }
    }

    fn end(&self) {
        drop(lock(&self.input).take());
        for signal in [Signal::TERM, Signal::KILL] {
            if self.wait_for_exit(GRACE) {
                return;
            }
            self.signal(signal);
        }
    }

    fn wait_for_exit(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.log);
        while state.exit.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn with_newline(line: &str) -> Vec<u8> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(b'\n');
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
