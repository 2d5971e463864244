//! Append-only files of one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A failed append or open.
#[derive(Debug, thiserror::Error)]
pub enum JsonlError {
    /// The file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The value has no JSON form.
    #[error("value cannot be written as JSON: {0}")]
    Serialize(#[from] serde_json::Error),
}

/// A JSONL file with one writer. Each append is one `write` of one whole line.
#[derive(Debug)]
pub struct JsonlFile {
    file: File,
    path: PathBuf,
    /// Bytes of a torn last line that were cut off when the file was opened.
    pub torn_tail: Option<Vec<u8>>,
}

impl JsonlFile {
    /// Opens or creates the file (mode 0600) and cuts off a last line without a newline, which a crash left.
    pub fn open(path: &Path) -> Result<Self, JsonlError> {
        let io = |source| JsonlError::Io { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(io)?;
        let torn_tail = cut_torn_tail(&mut file).map_err(io)?;
        Ok(Self { file, path: path.to_owned(), torn_tail })
    }

    /// Appends one line. The data reaches the operating system, not necessarily the disk.
    pub fn append(&mut self, value: &impl Serialize) -> Result<(), JsonlError> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| JsonlError::Io { path: self.path.clone(), source })
    }

    /// Appends one line and waits until it is on disk (`fdatasync`).
    pub fn append_durable(&mut self, value: &impl Serialize) -> Result<(), JsonlError> {
        self.append(value)?;
        self.file.sync_data().map_err(|source| JsonlError::Io { path: self.path.clone(), source })
    }

    /// Bytes in the file.
    pub fn len(&self) -> Result<u64, JsonlError> {
        let meta =
            self.file.metadata().map_err(|source| JsonlError::Io { path: self.path.clone(), source })?;
        Ok(meta.len())
    }

    /// Whether nothing was ever appended.
    pub fn is_empty(&self) -> Result<bool, JsonlError> {
        self.len().map(|n| n == 0)
    }

    /// Streams the complete lines of a file, oldest first. A torn last line is left out.
    pub fn lines(path: &Path) -> Result<impl Iterator<Item = io::Result<String>> + use<>, JsonlError> {
        let file = File::open(path).map_err(|source| JsonlError::Io { path: path.to_owned(), source })?;
        let mut reader = BufReader::new(file);
        Ok(std::iter::from_fn(move || {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) => None,
                Ok(_) if line.ends_with('\n') => {
                    line.pop();
                    Some(Ok(line))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        }))
    }
}

fn cut_torn_tail(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    const BLOCK: u64 = 64 * 1024;
    let len = file.metadata()?.len();
    let mut end = len;
    let mut tail = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
        file.read_exact(&mut block)?;
        let newline = block.iter().rposition(|b| *b == b'\n');
        let keep = newline.map_or(0, |at| at + 1);
        tail.splice(0..0, block[keep..].iter().copied());
        if newline.is_some() {
            break;
        }
        end = start;
    }
    if tail.is_empty() {
        return Ok(None);
    }
    file.set_len(len - tail.len() as u64)?;
    file.sync_data()?;
    Ok(Some(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_and_returned() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, b"{\"a\":1}\n{\"b\"").expect("write");
        let mut file = JsonlFile::open(&path).expect("open");
        assert_eq!(file.torn_tail.as_deref(), Some(&b"{\"b\""[..]));
        file.append_durable(&serde_json::json!({"c": 3})).expect("append");
        let lines: Vec<String> = JsonlFile::lines(&path).expect("lines").map(|l| l.expect("line")).collect();
        assert_eq!(lines, [r#"{"a":1}"#, r#"{"c":3}"#]);
    }

    #[test]
    fn a_file_that_is_one_torn_line_becomes_empty() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, vec![b'x'; 200_000]).expect("write");
        let file = JsonlFile::open(&path).expect("open");
        assert_eq!(file.torn_tail.as_ref().map(Vec::len), Some(200_000));
        assert!(file.is_empty().expect("metadata"));
    }
}
