//! The same tests against both stores: the log of one relay, and NATS.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::cluster::Nats;
use super::process::{Relay, command};

/// What a relay keeps its mail in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Log,
    Nats,
}

/// A place for one relay that is killed and started again.
pub(crate) struct House {
    dir: TempDir,
    nats: Option<Nats>,
}

impl House {
    pub(crate) fn on(on: On) -> Self {
        let nats = (on == On::Nats).then(|| Nats::start(1));
        Self { dir: tempfile::tempdir().expect("directory"), nats }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self) -> Command {
        self.nats.as_ref().map_or_else(|| command(self.path()), |nats| nats.relay_command(self.path()))
    }

    pub(crate) fn relay(&self) -> Relay {
        self.relay_with(&[])
    }

    /// With further settings.
    pub(crate) fn relay_with(&self, settings: &[&str]) -> Relay {
        let mut command = self.command();
        for setting in settings {
            command.args(["--set", setting]);
        }
        Relay::spawn(&mut command)
    }
}

macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod log {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::On::Log).await;
            })*
        }
        mod nats {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::On::Nats).await;
            })*
        }
    };
}
pub(crate) use on_every_store;
