//! What a session is bound to, as a file that the node writes before the session starts.
//!
//! The environment alone must not be able to say that a session serves no peer: a settings file can change the
//! environment of a runtime. So the node states it a second time in `run/bindings/<session>.json`, and a hook takes
//! the stricter of the two.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// Content of `run/bindings/<session>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionBinding {
    /// The node's session id.
    pub session: String,
    /// The conversation that the session serves, `platform:id`; none for a session of nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Whether a peer speaks to this session: every tool call then needs the node's consent.
    pub serves_peer: bool,
}

/// What the binding file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindingState {
    /// There is none under any of the names.
    Absent,
    /// There is one that cannot be read: the session counts as serving a peer.
    Unreadable,
    /// It is read.
    Bound(SessionBinding),
}

impl SessionBinding {
    /// Writes the file, 0600, before the session starts.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let file = path(state_dir, &self.session).ok_or(io::ErrorKind::InvalidInput)?;
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        files::replace(&file, &text, 0o600)
    }

    /// Removes the file of a session that has ended.
    pub fn remove(state_dir: &Path, session: &str) -> io::Result<()> {
        let file = path(state_dir, session).ok_or(io::ErrorKind::InvalidInput)?;
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a tag at the start of a prompt may belong to this session.
    pub fn admits(&self, tag: &crate::tag::Tag<'_>) -> bool {
        let Some((platform, id)) = self.conversation.as_deref().and_then(|key| key.split_once(':')) else {
            return true;
        };
        if tag.platform != platform {
            // Notes of the node itself and files dropped by the owner go to any session.
            return matches!(tag.platform, "system" | "paste" | "dashboard");
        }
        if platform != "threadline" {
            return tag.id == id;
        }
        // The key is `threadline:<peer fingerprint>:<thread>`, the tag names the thread and the peer's first digits.
        let Some((peer, thread)) = id.split_once(':') else { return false };
        tag.id == thread && tag.from.is_none_or(|from| !from.is_empty() && peer.starts_with(from))
    }
}

/// The binding of a session that may be known under several names: the environment's id, the runtime's id, the id
/// inside the session token. One that serves a peer wins over one that does not.
pub fn look_up(state_dir: &Path, names: &[&str]) -> BindingState {
    let mut found = BindingState::Absent;
    for name in names {
        match (read_one(state_dir, name), &found) {
            (BindingState::Bound(binding), _) if binding.serves_peer => return BindingState::Bound(binding),
            (BindingState::Unreadable, _) => found = BindingState::Unreadable,
            (bound @ BindingState::Bound(_), BindingState::Absent) => found = bound,
            _ => {}
        }
    }
    found
}

fn read_one(state_dir: &Path, session: &str) -> BindingState {
    let Some(file) = path(state_dir, session) else { return BindingState::Absent };
    match fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_or(BindingState::Unreadable, BindingState::Bound),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BindingState::Absent,
        Err(_) => BindingState::Unreadable,
    }
}

fn path(state_dir: &Path, session: &str) -> Option<PathBuf> {
    let safe = (1..=128).contains(&session.len())
        && session.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    safe.then(|| state_dir.join("run/bindings").join(format!("{session}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tag::Tag;

    fn binding(session: &str, serves_peer: bool) -> SessionBinding {
        SessionBinding {
            session: session.into(),
            conversation: Some("threadline:0a1b2c3d4e5f:t-1".into()),
            serves_peer,
        }
    }

    #[test]
    fn the_strictest_name_decides() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path();
        binding("a", false).write(state).expect("writes");
        binding("b", true).write(state).expect("writes");
        assert_eq!(look_up(state, &["x", "../a"]), BindingState::Absent);
        assert_eq!(look_up(state, &["x", "a"]), BindingState::Bound(binding("a", false)));
        assert_eq!(look_up(state, &["a", "b"]), BindingState::Bound(binding("b", true)));
        fs::write(state.join("run/bindings/c.json"), "{").expect("writes");
        assert_eq!(look_up(state, &["a", "c"]), BindingState::Unreadable);
        SessionBinding::remove(state, "b").expect("removes");
        SessionBinding::remove(state, "b").expect("removes nothing");
        assert_eq!(look_up(state, &["b"]), BindingState::Absent);
    }

    #[test]
    fn only_tags_of_the_own_conversation_are_admitted() {
        let bound = binding("a", true);
        let admits = |prompt: &str| Tag::of_prompt(prompt).map(|tag| bound.admits(&tag));
        assert_eq!(admits("[threadline:t-1 from 0a1b2c3d \"B\" #x] hi"), Some(true));
        assert_eq!(admits("[threadline:t-2 from 0a1b2c3d \"B\" #x] hi"), Some(false));
        assert_eq!(admits("[threadline:t-1 from ffffffff \"B\" #x] hi"), Some(false));
        assert_eq!(admits("[telegram:7 from Ann #x] hi"), Some(false));
        assert_eq!(admits("[system:note] hi"), Some(true));
    }
}
