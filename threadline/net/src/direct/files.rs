//! Files that the agents of one account share: their tokens, and messages for those that are down
//! (`threadline-wire.md` §3.3).

use std::io;
use std::path::{Path, PathBuf};

use instar_durable::{create_dir_private, write_atomic};
use serde_json::Value;
use threadline::MessageId;
use threadline::v1::local::{AgentName, MAX_BYTES};

/// The shared folders of one account.
#[derive(Debug, Clone)]
pub struct SharedFiles {
    tokens: PathBuf,
    drops: PathBuf,
}

impl SharedFiles {
    /// `tokens` is `~/.instar/agent-tokens`, `drops` is `~/.instar/messages/drop`.
    pub fn new(tokens: PathBuf, drops: PathBuf) -> Self {
        Self { tokens, drops }
    }

    /// The token of this agent; made when there is none. Blocks.
    pub fn own_token(&self, name: &AgentName) -> io::Result<String> {
        if let Some(token) = self.token(name)? {
            return Ok(token);
        }
        create_dir_private(&self.tokens)?;
        let token = hex::encode(rand::random::<[u8; 32]>());
        write_atomic(&self.token_path(name), token.as_bytes(), 0o600).map_err(|e| e.source)?;
        Ok(token)
    }

    /// Removes the token of an agent that is no more, and what waits for it. Whether there was anything. Blocks.
    pub fn forget(&self, name: &AgentName) -> io::Result<bool> {
        let absent = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        };
        let token = std::fs::remove_file(self.token_path(name)).map(|()| true).or_else(absent)?;
        let drops = std::fs::remove_dir_all(self.drops_of(name)).map(|()| true).or_else(absent)?;
        Ok(token || drops)
    }

    /// The token of an agent, if it has a usable one. Blocks.
    pub fn token(&self, name: &AgentName) -> io::Result<Option<String>> {
        let text = match std::fs::read_to_string(self.token_path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let token = text.trim();
        let usable = token.len() == 64 && token.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(usable.then(|| token.to_owned()))
    }

    /// Leaves a message for an agent that is down. A repetition changes nothing. Blocks.
    pub fn put_drop(&self, target: &AgentName, id: &MessageId, file: &Value) -> io::Result<()> {
        let dir = self.drops_of(target);
        create_dir_private(&dir)?;
        let path = dir.join(format!("{id}.json"));
        if path.exists() {
            return Ok(());
        }
        write_atomic(&path, file.to_string().as_bytes(), 0o600).map_err(|e| e.source)
    }

    /// Folder of messages for an agent.
    pub fn drops_of(&self, target: &AgentName) -> PathBuf {
        self.drops.join(target.as_str())
    }

    /// Files that wait for an agent, in order of their times. Blocks.
    pub fn waiting(&self, target: &AgentName) -> io::Result<Vec<PathBuf>> {
        let dir = match std::fs::read_dir(self.drops_of(target)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut files = Vec::new();
        for entry in dir {
            let entry = entry?;
            let path = entry.path();
            let meta = entry.metadata()?;
            if meta.is_file() && path.extension().is_some_and(|e| e == "json") {
                files.push((meta.modified()?, path));
            }
        }
        files.sort();
        Ok(files.into_iter().map(|(_, path)| path).collect())
    }

    /// Reads a waiting file; one that is too large reads as empty, which is no message. Blocks.
    pub fn read(path: &Path) -> io::Result<Vec<u8>> {
        if std::fs::metadata(path)?.len() > MAX_BYTES as u64 {
            return Ok(Vec::new());
        }
        std::fs::read(path)
    }

    /// Forgets a file that was taken. Blocks.
    pub fn taken(path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Puts a file aside that nobody can vouch for. Blocks.
    pub fn reject(&self, target: &AgentName, path: &Path) -> io::Result<()> {
        let dir = self.drops_of(target).join("rejected");
        create_dir_private(&dir)?;
        let name = path.file_name().unwrap_or_default();
        std::fs::rename(path, dir.join(name))
    }

    fn token_path(&self, name: &AgentName) -> PathBuf {
        self.tokens.join(format!("{name}.token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_token_is_made_once_and_private() {
        let dir = tempfile::tempdir().expect("dir");
        let files = SharedFiles::new(dir.path().join("agent-tokens"), dir.path().join("drop"));
        let name = AgentName::parse("bob").expect("name");
        assert_eq!(files.token(&name).expect("read"), None);
        let token = files.own_token(&name).expect("made");
        assert_eq!(files.own_token(&name).expect("kept"), token);
        let mode = |path: &str| {
            std::fs::metadata(dir.path().join(path)).expect("there").permissions().mode() & 0o777
        };
        assert_eq!((mode("agent-tokens"), mode("agent-tokens/bob.token")), (0o700, 0o600));
        std::fs::write(dir.path().join("agent-tokens/bob.token"), "short").expect("write");
        assert_eq!(files.token(&name).expect("read"), None, "a torn token opens nothing");
    }

    #[test]
    fn drops_wait_in_order_and_leave_when_taken() {
        let dir = tempfile::tempdir().expect("dir");
        let files = SharedFiles::new(dir.path().join("t"), dir.path().join("drop"));
        let name = AgentName::parse("bob").expect("name");
        assert!(files.waiting(&name).expect("none").is_empty());
        let id = |text: &str| -> MessageId { text.parse().expect("id") };
        files.put_drop(&name, &id("m2"), &json!({"n": 2})).expect("put");
        files.put_drop(&name, &id("m2"), &json!({"n": 3})).expect("repeated");
        let waiting = files.waiting(&name).expect("one");
        assert_eq!(SharedFiles::read(&waiting[0]).expect("read"), br#"{"n":2}"#);
        files.reject(&name, &waiting[0]).expect("rejected");
        assert!(files.waiting(&name).expect("none").is_empty());
        assert!(dir.path().join("drop/bob/rejected/m2.json").exists());
    }
}
