//! Relays: the one that the account's nodes share, the switch between it and a configured one, and the commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use instar_api::Rooms;
use instar_mesh::{MeshConfig, RelaySwitch};
use instar_state::BoxFuture;
use instar_state::config::{Config, ConfigService, keys, set_at};
use instar_state::paths::AgentPaths;
use serde_json::json;
use threadline_relay::embedded::{self, Address, Place};
use threadline_relay::{DataDirLock, RelayConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings;
use super::supervise::Supervisor;
use crate::cli::{CommandResult, Ctx, Exit, Failure, Reply};

/// Whether this node runs or joins the account's own relay.
fn wants_own_relay(config: &Config) -> bool {
    config.get(keys::THREADLINE_ENABLED)
        && !config.get(keys::THREADLINE_RELAY_ENABLED)
        && config.get(keys::THREADLINE_LOCAL_RELAY) == "auto"
}

/// What the mesh is told: the configuration, and the shared relay's address where that one is used.
pub(super) fn mesh_config(config: &Config, place: &Place) -> MeshConfig {
    let mut mesh = MeshConfig::from_config(config);
    if wants_own_relay(config) {
        mesh.relay_is_ours = true;
        mesh.relay_url = place.address().map(Address::url);
    }
    mesh
}

/// Keeps the shared relay running or joined while the configuration asks for it.
pub(super) fn run_embedded(
    supervisor: &Supervisor,
    config: &Arc<ConfigService>,
    dir: PathBuf,
    env: impl Fn(&str) -> Option<String> + Clone + Send + Sync + 'static,
    place: watch::Sender<Place>,
) {
    let config = Arc::clone(config);
    supervisor.run("relay", move |stop| {
        let (config, dir, env, place) = (Arc::clone(&config), dir.clone(), env.clone(), place.clone());
        async move {
            let mut changes = config.watch();
            while !stop.is_cancelled() {
                if !wants_own_relay(&changes.borrow_and_update()) {
                    place.send_replace(Place::Unknown);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        _ = changes.changed() => continue,
                    }
                }
                let relay = match RelayConfig::embedded_with(&dir, &env) {
                    Ok(relay) => relay,
                    Err(error) => {
                        tracing::error!(%error, "the account's relay is not configured correctly");
                        return;
                    }
                };
                let while_wanted = stop.child_token();
                let running = embedded::join_or_run(relay, place.clone(), while_wanted.clone());
                tokio::pin!(running);
                let ended = loop {
                    tokio::select! {
                        ended = &mut running => break ended,
                        _ = changes.changed() => {
                            if !wants_own_relay(&changes.borrow_and_update()) {
                                while_wanted.cancel();
                            }
                        }
                    }
                };
                if let Err(error) = ended {
                    tracing::error!(%error, "the account's relay ended");
                    return;
                }
            }
        }
    });
}

/// Writes the relay's switch into the configuration.
pub(super) struct ConfigRelaySwitch {
    config: Arc<ConfigService>,
}

impl ConfigRelaySwitch {
    pub(super) fn new(config: Arc<ConfigService>) -> Self {
        Self { config }
    }
}

impl RelaySwitch for ConfigRelaySwitch {
    fn set(&self, enabled: bool, visibility: Option<String>) -> BoxFuture<'_, Result<(), String>> {
        let config = Arc::clone(&self.config);
        Box::pin(async move {
            let edited = tokio::task::spawn_blocking(move || {
                config.edit(|root| {
                    set_at(root, keys::THREADLINE_RELAY_ENABLED.path(), json!(enabled))?;
                    if let Some(visibility) = visibility {
                        set_at(root, keys::THREADLINE_VISIBILITY.path(), json!(visibility))?;
                    }
                    Ok(())
                })
            });
            edited.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        })
    }
}

/// `instar relay start`: the stand-alone relay in the foreground.
pub(crate) fn relay_start(options: Vec<OsString>) -> CommandResult {
    let arguments = std::iter::once(OsString::from("instar relay start")).chain(options);
    let code = threadline_relay::program::main_from_args(arguments);
    std::process::exit(i32::from(code));
}

/// Options of `instar relay status` and `stop`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DirArgs {
    /// Data directory of a relay; by default the one that this account's nodes share
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl DirArgs {
    fn dir(&self, ctx: &Ctx) -> PathBuf {
        self.data_dir.as_ref().map_or_else(|| ctx.account.relay(), |dir| ctx.absolute(dir))
    }
}

/// `instar relay status`.
pub(crate) fn relay_status(ctx: &Ctx, args: &DirArgs) -> Reply {
    let dir = args.dir(ctx);
    let Some(pid) = DataDirLock::holder(&dir) else {
        let value = json!({"running": false, "dataDir": dir});
        return Reply::new(value, format!("no relay runs on {}", dir.display())).failing(Exit::NoNode);
    };
    let address = Address::read(&dir).filter(|address| address.pid == pid);
    let by = node_of(ctx, pid);
    let url = address.as_ref().map(Address::url);
    let lines = [
        Some(format!("running (pid {pid}) on {}", dir.display())),
        url.as_ref().map(|url| format!("address: {url}")),
        by.as_ref().map(|name| format!("inside the node of {name}")),
    ];
    let text = lines.into_iter().flatten().collect::<Vec<_>>().join("\n");
    Reply::new(json!({"running": true, "pid": pid, "dataDir": dir, "url": url, "node": by}), text)
}

/// `instar relay stop`.
pub(crate) fn relay_stop(ctx: &Ctx, args: &DirArgs) -> CommandResult {
    const PATIENCE: Duration = Duration::from_secs(30);
    let dir = args.dir(ctx);
    let pid = DataDirLock::holder(&dir).ok_or_else(|| {
        Failure::new(Exit::NoNode, "not_running", format!("no relay runs on {}", dir.display()))
    })?;
    if let Some(name) = node_of(ctx, pid) {
        return Err(Failure::refused(format!(
            "this relay runs inside the node of {name}; `instar server stop {name}` ends both, \
             `instar config set threadline.localRelay off` keeps a node from running it"
        )));
    }
    let process = rustix::process::Pid::from_raw(pid as i32)
        .ok_or_else(|| Failure::failed("the relay's lock names no process"))?;
    rustix::process::kill_process(process, rustix::process::Signal::TERM)
        .map_err(|e| Failure::failed(format!("cannot signal process {pid}: {e}")))?;
    let deadline = std::time::Instant::now() + PATIENCE;
    while DataDirLock::holder(&dir) == Some(pid) {
        if std::time::Instant::now() > deadline {
            return Err(Failure::failed(format!(
                "process {pid} did not stop within {} s",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Reply::new(json!({"stopped": true, "pid": pid}), format!("relay {pid} stopped")))
}

/// Name of the agent whose node is this process.
fn node_of(ctx: &Ctx, pid: u32) -> Option<String> {
    let entries = ctx.registry().read().ok()?;
    entries.into_iter().find(|entry| entry.pid == Some(pid as i32)).map(|entry| entry.name)
}

/// Follows configuration and shared relay, and tells the rooms and the hooks.
pub(super) async fn follow(
    config: Arc<ConfigService>,
    mut places: watch::Receiver<Place>,
    rooms: Rooms,
    state_dir: PathBuf,
    stop: CancellationToken,
) {
    let mut changes = config.watch();
    let paths = AgentPaths::of_state_dir(&state_dir);
    loop {
        let current = Arc::clone(&changes.borrow_and_update());
        let mesh = mesh_config(&current, &places.borrow_and_update());
        rooms.sessions.set_config(settings::sessions(&current));
        rooms.mesh.set_config(mesh).await;
        if let Err(error) = settings::hooks(&current, &paths).write(&state_dir) {
            tracing::warn!(%error, "the hooks read config.json itself: their snapshot was not written");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            changed = places.changed() => if changed.is_err() { return },
        }
    }
}
