//! Runs a scenario alone: its own network (loopback only), its own processes, its own mounts.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Set inside the namespaces.
const INSIDE: &str = "INSTAR_TESTS_ISOLATED";

/// What the namespaces' first process does: it brings loopback up and reaps whatever the scenario leaves behind.
const INIT: &str = r#"ip link set lo up || exit 97; "$@" & wait $!"#;

/// Runs the scenario of the test function `test` in fresh namespaces, by running the test binary again inside them.
///
/// All processes that the scenario started end with it.
///
/// # Panics
/// If the scenario fails, or the namespaces cannot be made: a scenario that could not run has failed.
pub fn isolated<T, F>(_test: T, scenario: F)
where
    F: Future<Output = anyhow::Result<()>>,
{
    if std::env::var_os(INSIDE).is_some() {
        return run(scenario);
    }
    let path = std::any::type_name::<T>();
    let (_, name) = path.split_once("::").expect("the path of a function");
    let user_namespace: &[&str] =
        if rustix::process::getuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let status = Command::new("unshare")
        .args(user_namespace)
        .args(["--net", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .args(["bash", "-c", INIT, "init"])
        .arg(std::env::current_exe().expect("path of the test binary"))
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare (util-linux) runs");
    assert!(status.success(), "{name} failed inside its namespaces: {status}");
}

/// What goes to stderr if the scenario fails: logs of agents that are gone by then.
static LOGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps a text until it is known whether the scenario failed.
pub(super) fn keep_for_failure(text: String) {
    LOGS.lock().unwrap_or_else(PoisonError::into_inner).push(text);
}

fn run<F: Future<Output = anyhow::Result<()>>>(scenario: F) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if let Err(error) = runtime.block_on(scenario) {
        for log in LOGS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            eprintln!("{log}");
        }
        panic!("{error:?}");
    }
}
