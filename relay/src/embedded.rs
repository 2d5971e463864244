//! The relay that the nodes of one account share: whoever holds the lock runs it, the others connect to it, and when
//! the holder ends one of them takes over.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::RelayConfig;
use crate::lock::{DataDirError, DataDirLock};
use crate::server::{self, Launch, RelayError};

/// Port that is tried first.
pub const PORT: u16 = 8787;
/// How often the others look whether the holder is gone.
const LOOK: Duration = Duration::from_millis(500);

/// `address.json`: where the shared relay of this account is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Loopback address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Process that runs it.
    pub pid: u32,
}

impl Address {
    /// URL that agents connect to.
    pub fn url(&self) -> String {
        format!("ws://{}:{}/v1/connect", self.host, self.port)
    }

    /// Reads `<dir>/address.json`.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join("address.json")).ok()?).ok()
    }
}

/// Where this node finds the shared relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Not known yet, or the holder is just changing.
    Unknown,
    /// Run by another process.
    Other(Address),
    /// Run by this process.
    Ours(Address),
}

impl Place {
    /// The address, if it is known.
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Unknown => None,
            Self::Other(address) | Self::Ours(address) => Some(address),
        }
    }
}

/// Joins the shared relay of the account, or runs it while nobody else does, until `shutdown`.
///
/// `config` is [`RelayConfig::embedded`] or [`RelayConfig::embedded_with`]; its `data_dir` is the shared directory.
/// `place` always holds where the relay is. A relay that cannot start is an error; losing the lock to another
/// process is not.
pub async fn join_or_run(
    config: RelayConfig,
    place: watch::Sender<Place>,
    shutdown: CancellationToken,
) -> Result<(), RelayError> {
    loop {
        match DataDirLock::try_take(&config.data_dir) {
            Ok(lock) => {
                run(&config, lock, &place, &shutdown).await?;
                return Ok(());
            }
            Err(DataDirError::Held { .. }) => {
                let other = Address::read(&config.data_dir).map_or(Place::Unknown, Place::Other);
                place.send_if_modified(|known| std::mem::replace(known, other.clone()) != other);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

async fn run(
    config: &RelayConfig,
    lock: DataDirLock,
    place: &watch::Sender<Place>,
    shutdown: &CancellationToken,
) -> Result<(), RelayError> {
    let listener = bind(config)?;
    let (ready, address) = oneshot::channel();
    let launch = Launch {
        lock: Some(lock),
        listener: Some(listener),
        ready: Some(ready),
        hurry: shutdown.clone(),
        ..Launch::default()
    };
    let dir = config.data_dir.clone();
    let announce = async {
        let Ok(bound) = address.await else { return };
        let address = Address { host: bound.ip().to_string(), port: bound.port(), pid: std::process::id() };
        let json = serde_json::to_vec_pretty(&address).unwrap_or_default();
        let written = tokio::task::spawn_blocking(move || {
            instar_durable::write_atomic(&dir.join("address.json"), &json, 0o600)
        });
        if !matches!(written.await, Ok(Ok(()))) {
            tracing::error!(
                "address.json could not be written: other agents of this account will not find the relay"
            );
        }
        place.send_replace(Place::Ours(address));
    };
    let (served, ()) =
        tokio::join!(Box::pin(server::serve(config.clone(), launch, shutdown.clone())), announce);
    place.send_replace(Place::Unknown);
    served.map(drop)
}

/// The port of the last holder, else the configured one, else 8787, else a free one.
fn bind(config: &RelayConfig) -> Result<std::net::TcpListener, RelayError> {
    let kept = Address::read(&config.data_dir).map(|address| address.port);
    let wanted = [kept, Some(config.port), Some(PORT), Some(0)];
    let mut failed = None;
    for port in wanted.into_iter().flatten() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match server::listen(address) {
            Ok(listener) => return Ok(listener),
            Err(source) => failed = Some(RelayError::Listen { address, source }),
        }
    }
    Err(failed.unwrap_or_else(|| RelayError::Internal("no port to try".into())))
}
