//! Where segments lie: a directory, or memory for simulations.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Numbered append-only files.
pub trait Medium: Send {
    /// Numbers and lengths, ascending.
    fn list(&mut self) -> Result<Vec<(u32, u64)>>;
    /// Makes an empty one; `sync` asks for its name to survive a power cut.
    fn create(&mut self, id: u32, sync: bool) -> Result<()>;
    /// Writes all bytes at a position.
    fn write(&mut self, id: u32, at: u64, bytes: &[u8]) -> Result<()>;
    /// Returns once everything written survives a power cut.
    fn sync(&mut self, id: u32) -> Result<()>;
    /// Reads up to the length of `into`; fewer bytes only at the end.
    fn read(&mut self, id: u32, at: u64, into: &mut [u8]) -> Result<usize>;
    /// Cuts off everything from `len` on.
    fn truncate(&mut self, id: u32, len: u64) -> Result<()>;
    /// Removes it.
    fn remove(&mut self, id: u32) -> Result<()>;
    /// Keeps a copy of a damaged one under another name, for a person to look at.
    fn keep_copy(&mut self, id: u32, now_ms: i64) -> Result<()>;
    /// Its name, for people.
    fn name(&self, id: u32) -> PathBuf;
}

/// Where the logs of the queue lie.
#[derive(Debug, Default)]
pub struct Media<M> {
    /// The mail.
    pub mail: M,
    /// What is remembered of mail that was confirmed.
    pub memories: M,
}

impl Media<Directory> {
    /// A directory, and `recent` in it for the memories; made if they are not there.
    pub fn in_directory(dir: &Path) -> Result<Self> {
        Ok(Self { mail: Directory::open(dir)?, memories: Directory::open(&dir.join("recent"))? })
    }
}

impl From<Memory> for Media<Memory> {
    /// With nothing remembered.
    fn from(mail: Memory) -> Self {
        Self { mail, memories: Memory::default() }
    }
}

/// Files `<16 hex digits>.log` in a directory.
pub struct Directory {
    dir: PathBuf,
    open: HashMap<u32, File>,
}

/// Descriptors that are kept for reading.
const OPEN: usize = 32;
/// Niceness of what frees space.
const STEP_BACK: i32 = 10;

impl Directory {
    /// Uses a directory, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned(), open: HashMap::new() })
    }

    fn file(&mut self, id: u32) -> Result<&File> {
        if self.open.len() >= OPEN && !self.open.contains_key(&id) {
            self.open.clear();
        }
        match self.open.entry(id) {
            std::collections::hash_map::Entry::Occupied(file) => Ok(file.into_mut()),
            std::collections::hash_map::Entry::Vacant(place) => {
                let path = self.dir.join(file_name(id));
                Ok(place.insert(OpenOptions::new().read(true).write(true).open(path)?))
            }
        }
    }

    fn sync_dir(&self) -> Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Medium for Directory {
    fn list(&mut self) -> Result<Vec<(u32, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(digits) = name.to_str().and_then(|name| name.strip_suffix(".log")) else { continue };
            if digits.len() == 16
                && let Ok(id) = u32::from_str_radix(digits, 16)
            {
                found.push((id, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&mut self, id: u32, sync: bool) -> Result<()> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(self.name(id))?;
        self.open.insert(id, file);
        if sync { self.sync_dir() } else { Ok(()) }
    }

    fn write(&mut self, id: u32, at: u64, bytes: &[u8]) -> Result<()> {
        self.file(id)?.write_all_at(bytes, at)
    }

    fn sync(&mut self, id: u32) -> Result<()> {
        self.file(id)?.sync_data()
    }

    fn read(&mut self, id: u32, at: u64, into: &mut [u8]) -> Result<usize> {
        let file = self.file(id)?;
        let mut read = 0;
        while read < into.len() {
            match file.read_at(&mut into[read..], at + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn truncate(&mut self, id: u32, len: u64) -> Result<()> {
        self.file(id)?.set_len(len)
    }

    fn remove(&mut self, id: u32) -> Result<()> {
        let file = self.file(id).and_then(File::try_clone);
        std::fs::remove_file(self.name(id))?;
        self.open.remove(&id);
        if let Ok(file) = file {
            free(file);
        }
        Ok(())
    }

    fn keep_copy(&mut self, id: u32, now_ms: i64) -> Result<()> {
        let path = self.name(id);
        std::fs::copy(&path, path.with_extension(format!("log.corrupt-{now_ms}"))).map(drop)
    }

    fn name(&self, id: u32) -> PathBuf {
        self.dir.join(file_name(id))
    }
}

/// Closes a file whose name is gone, beside the work of the queue: the system frees its space with the last close, which
/// takes milliseconds. Without a thread it is closed here.
fn free(file: File) {
    let close = move || {
        // Where that is not allowed, it is in the way a little more.
        let _ = rustix::process::nice(STEP_BACK);
        drop(file);
    };
    let _ = std::thread::Builder::new().name("segment".into()).spawn(close);
}

fn file_name(id: u32) -> String {
    format!("{id:016x}.log")
}

/// Segments in memory, with the accidents that a disk can have.
#[derive(Debug, Default)]
pub struct Memory {
    files: BTreeMap<u32, Vec<u8>>,
    /// Bytes that may be stored; more is a full disk.
    pub room: Option<u64>,
}

impl Memory {
    /// Puts a segment there as it is.
    pub fn put(&mut self, id: u32, bytes: Vec<u8>) {
        self.files.insert(id, bytes);
    }

    /// The bytes of a segment, to be damaged.
    pub fn bytes(&mut self, id: u32) -> Option<&mut Vec<u8>> {
        self.files.get_mut(&id)
    }

    fn file(&mut self, id: u32) -> Result<&mut Vec<u8>> {
        self.files.get_mut(&id).ok_or_else(|| Error::from(ErrorKind::NotFound))
    }
}

impl Medium for Memory {
    fn list(&mut self) -> Result<Vec<(u32, u64)>> {
        Ok(self.files.iter().map(|(id, bytes)| (*id, bytes.len() as u64)).collect())
    }

    fn create(&mut self, id: u32, _sync: bool) -> Result<()> {
        self.files.insert(id, Vec::new());
        Ok(())
    }

    fn write(&mut self, id: u32, at: u64, bytes: &[u8]) -> Result<()> {
        let used: u64 = self.files.values().map(|file| file.len() as u64).sum();
        let room = self.room.map(|room| room.saturating_sub(used) as usize);
        let file = self.file(id)?;
        // A disk that fills up takes the first part.
        let taken = room.map_or(bytes.len(), |room| room.min(bytes.len()));
        file.truncate(at as usize);
        file.resize(at as usize, 0);
        file.extend_from_slice(&bytes[..taken]);
        if taken < bytes.len() { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self, id: u32) -> Result<()> {
        self.file(id).map(drop)
    }

    fn read(&mut self, id: u32, at: u64, into: &mut [u8]) -> Result<usize> {
        let file = self.file(id)?;
        let rest = file.get(at as usize..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn truncate(&mut self, id: u32, len: u64) -> Result<()> {
        self.file(id)?.truncate(len as usize);
        Ok(())
    }

    fn remove(&mut self, id: u32) -> Result<()> {
        self.files.remove(&id).map(drop).ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn keep_copy(&mut self, _id: u32, _now_ms: i64) -> Result<()> {
        Ok(())
    }

    fn name(&self, id: u32) -> PathBuf {
        PathBuf::from(format!("memory/{id:016x}.log"))
    }
}
