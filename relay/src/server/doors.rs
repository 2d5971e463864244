//! The listeners beside the public one: admin and metrics. They are bound before anything starts, so that an address
//! that is taken is an error and no surprise.

use std::net::SocketAddr;
use std::path::Path;

use rand::Rng as _;
use tokio::net::TcpListener;

use super::tls::Acceptor;
use super::{RelayError, listen};
use crate::config::{RelayConfig, Secret};
use crate::keys::KeyError;

pub(super) struct Doors {
    /// For the public listener.
    pub(super) tls: Option<Acceptor>,
    pub(super) admin: Option<(TcpListener, Option<Acceptor>)>,
    pub(super) admin_address: Option<SocketAddr>,
    pub(super) admin_key: String,
    pub(super) metrics: Option<TcpListener>,
}

impl Doors {
    pub(super) fn open(config: &RelayConfig) -> Result<Self, RelayError> {
        let tls = config.has_tls().then(|| Acceptor::new(&config.tls)).transpose()?;
        let mut doors =
            Self { tls, admin: None, admin_address: None, admin_key: String::new(), metrics: None };
        if config.admin.enabled {
            let listener = bind((config.admin.host, config.admin_port()).into())?;
            doors.admin_address = listener.local_addr().ok();
            // On loopback a certificate for the public name would only be in the way.
            let tls = doors.tls.clone().filter(|_| !config.admin.host.is_loopback());
            doors.admin_key = admin_key(&config.data_dir, config.admin.key.as_ref())?;
            doors.admin = Some((listener, tls));
        }
        doors.metrics = config.metrics_listen.map(bind).transpose()?;
        Ok(doors)
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, RelayError> {
    let bound = listen(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.map_err(|source| RelayError::Listen { address, source })
}

/// The configured key, else the one in `<data>/admin-key`, which is made when it is not there.
fn admin_key(dir: &Path, configured: Option<&Secret>) -> Result<String, RelayError> {
    if let Some(key) = configured {
        return Ok(key.expose().to_owned());
    }
    let path = dir.join("admin-key");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= crate::admin::MIN_KEY => Ok(text.trim().to_owned()),
        Ok(_) => Err(KeyError::Damaged { path, what: "a key of at least 16 characters" }.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            rand::rng().fill_bytes(&mut bytes);
            let key = hex::encode(bytes);
            instar_durable::write_atomic(&path, key.as_bytes(), 0o600).map_err(KeyError::from)?;
            tracing::info!(file = %path.display(), "a key for the admin interface was made");
            Ok(key)
        }
        Err(source) => Err(KeyError::Read { path, source }.into()),
    }
}
