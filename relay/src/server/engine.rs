//! Joins the cluster that the configuration names.

use std::sync::Arc;

use instar_durable::Database;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::cluster::{Engine, EngineError, FromEngine, Options, Rules};
use crate::config::{EngineKind, RelayConfig};
use crate::store::{BodyCipher, Peers};

/// The secret that all relays of the cluster share; `None` without a cluster.
pub(super) fn secret(config: &RelayConfig) -> Option<Zeroizing<[u8; 32]>> {
    if config.engine == EngineKind::Nats { config.cluster.secret_bytes() } else { None }
}

/// Seals bodies in the engine.
pub(super) fn cipher(secret: &Zeroizing<[u8; 32]>) -> BodyCipher {
    BodyCipher::new(&derived(secret, b"threadline cluster mail\0"))
}

/// All relays of a cluster are one to their clients: without a key file they make the same key.
pub(super) fn signing_seed(secret: &Zeroizing<[u8; 32]>) -> Zeroizing<[u8; 32]> {
    derived(secret, b"threadline cluster relay key\0")
}

fn derived(secret: &Zeroizing<[u8; 32]>, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(Sha256::new().chain_update(purpose).chain_update(secret.as_slice()).finalize().into())
}

pub(super) async fn join(
    config: &RelayConfig,
    tables: (Peers, Database),
    cipher: BodyCipher,
    told: mpsc::Sender<FromEngine>,
) -> Result<Arc<Engine>, EngineError> {
    let cluster = &config.cluster;
    let path = |path: &std::path::PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
    let nkey = match path(&cluster.nkey_file) {
        None => None,
        Some(path) => match tokio::fs::read_to_string(&path).await {
            Ok(seed) => Some(Zeroizing::new(seed.trim().to_owned())),
            Err(source) => return Err(EngineError::File { path, source }),
        },
    };
    let options = Options {
        servers: cluster.servers.clone(),
        nkey,
        credentials: path(&cluster.credentials),
        ca: path(&cluster.ca),
        allow_weak: cluster.allow_weak,
    };
    let layout = Rules {
        replicas: cluster.replicas as usize,
        per_pair: i64::from(config.queue.per_pair),
        stream_bytes: i64::try_from(cluster.stream_bytes).unwrap_or(i64::MAX),
    };
    let engine = Engine::connect(&options, layout, config.queue.clone(), cipher, tables, told).await?;
    if engine.is_weak() {
        tracing::warn!("cluster.allow_weak: acceptance means stored in the engine, not on disk");
    }
    Ok(engine)
}
