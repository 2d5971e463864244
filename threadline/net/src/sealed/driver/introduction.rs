//! What a relay is told at the login.

use threadline::v2::Blob;
use threadline::v2::frames::{Hello, Role, Visibility};

use super::Driver;

/// What a relay is told of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Name, ≤ 64 characters.
    pub name: String,
    /// Capability tags, ≤ 20.
    pub capabilities: Vec<String>,
    /// Who can find it.
    pub visibility: Visibility,
    /// Whether it is listed in the relay's directory.
    pub listed: bool,
}

impl Driver {
    pub(super) fn hello(&self) -> Option<Hello> {
        let row = self.mail.records().device.as_ref()?;
        let agent = (self.deps.introduce)();
        Some(Hello {
            v: 2,
            dev: row.device,
            cert: Blob(row.cert.bytes().to_vec()),
            cs: *row.cert.signature(),
            list: Blob(row.list.bytes().to_vec()),
            ls: *row.list.signature(),
            name: agent.name.chars().take(64).collect(),
            fw: Some("instar".into()),
            ver: Some(env!("CARGO_PKG_VERSION").into()),
            caps: agent.capabilities.into_iter().take(20).collect(),
            bio: None,
            tags: Vec::new(),
            vis: Some(agent.visibility),
            listed: agent.listed,
            role: Role::Active,
            sib: Vec::new(),
            vouch: None,
            win: None,
            ep: 0,
            nov1: false,
            feat: Vec::new(),
        })
    }
}
