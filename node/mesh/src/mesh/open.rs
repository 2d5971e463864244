//! Opening what lies on disk: identity, store, records.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instar_durable::{DatabaseError, create_dir_private};
use instar_state::paths::AgentPaths;
use instar_state::ports::SharedNotices;
use instar_state::secret::Secret;
use threadline::identity::IdentityError;
use threadline::trust::Profiles;
use threadline::v1::local::AgentName;
use threadline_net::store::{Store, StoreError};
use threadline_net::{IdentityFileError, MachineLimits, Minting, SharedFiles, open_identity};

use super::Refusal;
use crate::audit::AuditLog;
use crate::records::{Controls, KnownAgents, Nicknames, Pairings, Record, RecordError};

/// Everything that was opened on disk.
pub(super) struct Opened {
    pub(super) identity: threadline_net::OpenedIdentity,
    pub(super) store: Store,
    pub(super) machine: Option<MachineLimits>,
    pub(super) profiles: Arc<Record<Profiles>>,
    pub(super) nicknames: Arc<Record<Nicknames>>,
    pub(super) controls: Arc<Record<Controls>>,
    pub(super) pairings: Arc<Record<Pairings>>,
    pub(super) known_agents: Arc<Record<KnownAgents>>,
    pub(super) own_token: Option<String>,
    pub(super) audit: AuditLog,
    pub(super) set_aside: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
}

/// Opens everything on disk. Blocks.
pub(super) fn open_files(
    paths: &AgentPaths,
    passphrase: Option<&Secret<String>>,
    machine: Option<MachineLimits>,
    files: &SharedFiles,
    name: Option<&AgentName>,
) -> Result<Opened, OpenError> {
    let now = instar_state::time::now_ms();
    let passphrase = passphrase.map(|p| p.expose().as_str());
    let identity = open_identity(paths.state(), passphrase, Minting::WithoutRecovery, now)?;
    let store = Store::open(&paths.threadline_db())?;
    let dir = paths.threadline();
    let profiles = Record::open(&dir.join("trust-profiles.json"), Profiles::default(), now)?;
    let nicknames = Record::open(&dir.join("nicknames.json"), Nicknames::default(), now)?;
    let controls = Record::open(&dir.join("agent-controls.json"), Controls::restrictive(), now)?;
    let pairings = Record::open(&dir.join("relay-tokens.json"), Pairings::default(), now)?;
    let known_agents = Record::open(&dir.join("known-agents.json"), KnownAgents::default(), now)?;
    let own_token = name.and_then(|name| match files.own_token(name) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::warn!(%error, "without a token file no agent of this host can write here");
            None
        }
    });
    let audit = AuditLog::open(&dir, Arc::new(identity.identity.clone()), now)?;
    let set_aside = [
        profiles.set_aside,
        nicknames.set_aside,
        controls.set_aside,
        pairings.set_aside,
        known_agents.set_aside,
    ]
    .into_iter()
    .flatten()
    .collect();
    Ok(Opened {
        identity,
        store,
        machine,
        profiles: profiles.record,
        nicknames: nicknames.record,
        controls: controls.record,
        pairings: pairings.record,
        known_agents: known_agents.record,
        own_token,
        audit,
        set_aside,
    })
}

/// The counters that the agents of the account share. A damaged file begins anew; without one, only this agent's own
/// limits hold. Blocks.
pub(super) fn open_machine_limits(path: &Path, notices: &SharedNotices) -> Option<MachineLimits> {
    if let Some(dir) = path.parent()
        && let Err(error) = create_dir_private(dir)
    {
        tracing::warn!(%error, dir = %dir.display(), "directory was not made");
    }
    let mut opened = MachineLimits::open(path);
    if let Err(DatabaseError::Corrupt { .. }) = &opened
        && instar_durable::set_aside(path, instar_state::time::now_ms()).is_ok()
    {
        opened = MachineLimits::open(path);
    }
    match opened {
        Ok(limits) => {
            notices.resolve("machine_limits");
            Some(limits)
        }
        Err(error) => {
            let reason = format!("The limit of all agents of this account together does not hold: {error}");
            notices.degrade("machine_limits", &reason);
            None
        }
    }
}

pub(super) fn refusal_of(error: &OpenError) -> Refusal {
    let code = match error {
        OpenError::Identity(IdentityFileError::Identity(
            IdentityError::Locked | IdentityError::WrongPassphrase,
        )) => "locked",
        OpenError::Identity(IdentityFileError::Identity(error)) => error.code(),
        OpenError::Store(StoreError::Database(DatabaseError::SchemaTooNew { .. })) => "state-too-new",
        _ => "unavailable",
    };
    Refusal { code, message: error.to_string() }
}
