//! The way to the node: HTTP/1.1 by hand over its Unix socket, every call with a deadline.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1024 * 1024;

/// The node's socket and this session's token.
#[derive(Debug, Clone)]
pub(crate) struct NodeClient {
    pub socket: PathBuf,
    pub token: Option<String>,
}

/// What the node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeError {
    /// Nobody listens on the socket.
    NotRunning,
    /// No answer in time.
    TimedOut,
    /// The answer is not HTTP, or too long.
    Malformed,
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeError::NotRunning => "the node is not running",
            NodeError::TimedOut => "the node did not answer in time",
            NodeError::Malformed => "the node's answer could not be read",
        })
    }
}

impl NodeClient {
    /// Sends one request; returns by the deadline whatever the node does.
    pub(crate) fn call(
        &self,
        method: &str,
        target: &str,
        body: Option<&[u8]>,
        deadline: Duration,
    ) -> Result<Answer, NodeError> {
        let request = self.request(method, target, body);
        let socket = self.socket.clone();
        let (sender, receiver) = mpsc::sync_channel(1);
        // Connecting to a full backlog blocks without a limit, so the exchange runs beside the clock.
        let exchange = thread::Builder::new().spawn(move || {
            let _ = sender.send(exchange(&socket, &request, deadline));
        });
        if exchange.is_err() {
            return Err(NodeError::NotRunning);
        }
        receiver.recv_timeout(deadline).unwrap_or(Err(NodeError::TimedOut))
    }

    fn request(&self, method: &str, target: &str, body: Option<&[u8]>) -> Vec<u8> {
        use std::fmt::Write as _;

        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: agent.sock\r\nConnection: close\r\n");
        let token = self.token.as_deref().filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
        if let Some(token) = token {
            let _ = write!(head, "Authorization: Bearer {token}\r\n");
        }
        if let Some(body) = body {
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body.unwrap_or_default());
        request
    }
}

fn exchange(socket: &std::path::Path, request: &[u8], deadline: Duration) -> Result<Answer, NodeError> {
    let end = Instant::now() + deadline;
    let mut stream = UnixStream::connect(socket).map_err(|_| NodeError::NotRunning)?;
    stream.set_write_timeout(Some(deadline)).map_err(|_| NodeError::NotRunning)?;
    stream.write_all(request).map_err(|error| failure(&error))?;
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 16 * 1024];
    loop {
        if let Some(answer) = whole_answer(&bytes) {
            return Ok(answer);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NodeError::TimedOut);
        }
        stream.set_read_timeout(Some(left)).map_err(|_| NodeError::TimedOut)?;
        match stream.read(&mut chunk) {
            Ok(0) => return parse_answer(&bytes).ok_or(NodeError::Malformed),
            Ok(read) => bytes.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) => return Err(failure(&error)),
        }
        if bytes.len() as u64 > MAX_ANSWER {
            return Err(NodeError::Malformed);
        }
    }
}

fn failure(error: &io::Error) -> NodeError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NodeError::TimedOut,
        _ => NodeError::NotRunning,
    }
}

/// The answer, once the announced length has arrived.
fn whole_answer(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = split_head(bytes)?;
    let length: usize = header(head, "content-length")?.parse().ok()?;
    (body.len() >= length).then(|| parse_answer(bytes))?
}

/// The answer in all the bytes that came before the end of the stream.
pub(crate) fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = split_head(bytes)?;
    let mut status_line = head.lines().next()?.split(' ');
    let status = status_line.next()?.starts_with("HTTP/1.").then(|| status_line.next()?.parse().ok())??;
    let body =
        if header(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            dechunk(body)?
        } else {
            match header(head, "content-length") {
                Some(length) => body.get(..length.parse().ok()?)?.to_vec(),
                None => body.to_vec(),
            }
        };
    Some(Answer { status, body })
}

fn split_head(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, rest) = bytes.split_at(end);
    Some((std::str::from_utf8(head).ok()?, rest.get(4..)?))
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(bytes.get(..end)?).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let from = end + 2;
        body.extend_from_slice(bytes.get(from..from.checked_add(size)?)?);
        bytes = bytes.get(from + size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_with_length_chunks_or_neither_are_read() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n",
            b"HTTP/1.0 200\r\n\r\nhi",
        ] {
            assert_eq!(parse_answer(answer), Some(Answer { status: 200, body: b"hi".to_vec() }));
        }
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
        ] {
            assert_eq!(parse_answer(answer), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_answer(&bytes);
            let chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", bytes.as_slice()].concat();
            let _ = parse_answer(&chunked);
        }
    }
}
