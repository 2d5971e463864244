//! The node's end of a session: the socket of a stdio supervisor, or a pane and the process in it.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::launch::Pids;
use crate::process;
use crate::supervisor::protocol::{Report, Request};

/// How a session is reached.
pub(crate) enum Link {
    /// Over the supervisor's socket.
    Host { lines: Lines<BufReader<OwnedReadHalf>>, writer: OwnedWriteHalf },
    /// In a pane.
    Pane {
        /// tmux id of the pane.
        pane: String,
        /// Tells of the end of the runtime.
        watch: ProcessWatch,
    },
}

/// What a link reports.
pub(crate) enum LinkEvent {
    /// A report of the supervisor.
    Report(Report),
    /// The supervisor hung up, or the process in the pane ended.
    Closed,
}

impl Link {
    /// Connects to a stdio supervisor and waits for its greeting.
    pub(crate) async fn to_host(socket: &Path) -> io::Result<(Self, Pids)> {
        let stream = connect(socket).await?;
        let (reader, writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let greeting = tokio::time::timeout(Duration::from_secs(5), lines.next_line()).await??;
        match greeting.as_deref().map(serde_json::from_str) {
            Some(Ok(Report::Hello { pids })) => Ok((Self::Host { lines, writer }, pids)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the supervisor did not greet")),
        }
    }

    /// The next event. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        match self {
            Self::Host { lines, .. } => loop {
                match lines.next_line().await {
                    Ok(Some(line)) => {
                        if let Ok(report) = serde_json::from_str(&line) {
                            return LinkEvent::Report(report);
                        }
                    }
                    Ok(None) | Err(_) => return LinkEvent::Closed,
                }
            },
            Self::Pane { watch, .. } => {
                watch.ended().await;
                LinkEvent::Closed
            }
        }
    }

    /// Tells a stdio supervisor something.
    pub(crate) async fn request(&mut self, request: &Request) -> io::Result<()> {
        let Self::Host { writer, .. } = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        writer.write_all(&line).await
    }
}

/// Waits for the end of one process without being its parent.
pub(crate) struct ProcessWatch {
    pid: i32,
    start_time: Option<u64>,
}

impl ProcessWatch {
    pub(crate) fn new(pid: i32, start_time: Option<u64>) -> Self {
        Self { pid, start_time }
    }

    pub(crate) fn is_alive(&self) -> bool {
        process::is_alive(self.pid, self.start_time)
    }

    /// Resolves once the process has ended, at most 0.5 s later.
    pub(crate) async fn ended(&self) {
        while self.is_alive() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Longest path that fits into a socket address everywhere.
const MAX_SOCKET_PATH: usize = 100;

/// A longer path is reached through an open handle of its directory.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return UnixStream::connect(socket).await;
    }
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(dir, flags, Mode::empty())?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", handle.as_raw_fd())).join(name)).await
}
