//! A v1 client that costs the load generator as little as possible: non-blocking sockets, polled; frames built once.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};
use threadline::identity::{Identity, LoginNonce, Purpose};

use super::subject::Subject;

const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x88];
const PIECE: usize = 256 << 10;

thread_local! {
    /// What is read at a time, for all clients.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// WebSocket opcodes.
pub(crate) const TEXT: u8 = 1;
pub(crate) const PING: u8 = 9;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Upgrading,
    LoggingIn,
    Live,
    Closed,
}

/// What carries a connection.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn connect(at: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let socket = TcpStream::connect(at)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let Some(config) = tls else { return Ok(Self::Plain(socket)) };
        let connection = ClientConnection::new(Arc::clone(config), at.ip().into())?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, socket))))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: Stream,
    pub(crate) phase: Phase,
    identity: Option<Box<Identity>>,
    pub(crate) address: String,
    /// Text to send after the upgrade.
    first: Option<String>,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
}

/// What a text says, as far as the load generator reads it.
pub(crate) enum Heard<'a> {
    Message { id: &'a str },
    Ack { id: &'a str, status: &'a str },
    Other,
}

impl Client {
    /// Connects and asks for the upgrade; [`Client::poll`] does the rest. Without an identity it stays a bare
    /// WebSocket.
    pub(crate) fn start(at: SocketAddr, path: &str, identity: Option<Identity>) -> Result<Self> {
        Ok(Self::over(Stream::connect(at, None)?, at, path, identity))
    }

    /// The same to a relay that may speak TLS.
    pub(crate) fn start_with(relay: &Subject, path: &str, identity: Option<Identity>) -> Result<Self> {
        let tls = relay.tls.as_ref().map(|certificate| &certificate.client);
        Ok(Self::over(Stream::connect(relay.at, tls)?, relay.at, path, identity))
    }

    fn over(stream: Stream, at: SocketAddr, path: &str, identity: Option<Identity>) -> Self {
        let address = identity.as_ref().map(|identity| identity.fingerprint().to_string());
        let upgrade = format!(
            "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut client = Self {
            stream,
            phase: Phase::Upgrading,
            identity: identity.map(Box::new),
            address: address.unwrap_or_default(),
            first: None,
            input: Vec::new(),
            output: upgrade.into_bytes(),
            written: 0,
        };
        client.flush();
        client
    }

    /// A client that is logged in.
    pub(crate) fn log_in(at: SocketAddr, identity: Identity) -> Result<Self> {
        let mut client = Self::start(at, "/v1/connect", Some(identity))?;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while client.phase != Phase::Live {
            ensure!(client.phase != Phase::Closed, "the login was refused");
            ensure!(std::time::Instant::now() < deadline, "no answer to the login");
            client.poll(&mut |_, _| Ok(()))?;
        }
        Ok(client)
    }

    pub(crate) fn new_one(at: SocketAddr) -> Result<Self> {
        Self::log_in(at, Identity::generate(&mut rand::rng()))
    }

    /// Queues a frame.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        self.output.extend_from_slice(frame);
    }

    pub(crate) fn push_text(&mut self, text: &str) {
        let frame = encode(TEXT, text.as_bytes());
        self.push(&frame);
    }

    /// Reads and forgets: neither pings nor messages are answered.
    pub(crate) fn swallow(&mut self) {
        let read = SCRATCH.with_borrow_mut(|scratch| self.stream.read(scratch));
        match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(count) if count > 0 => {}
            _ => self.phase = Phase::Closed,
        }
    }

    /// Sent once the upgrade is through, by a client without an identity.
    pub(crate) fn say_when_live(&mut self, text: String) {
        self.first = Some(text);
    }

    /// What will be written at the next poll.
    pub(crate) fn output_mut(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes that the server has not taken yet.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len() - self.written
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.phase = Phase::Closed;
                    break;
                }
            }
        }
        self.output.clear();
        self.written = 0;
    }

    /// Reads what there is, answers pings and the challenge, hands every other text to `hear`, then writes.
    pub(crate) fn poll(&mut self, hear: &mut dyn FnMut(&mut Vec<u8>, Heard<'_>) -> Result<()>) -> Result<()> {
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = self.stream.read(scratch);
            if let Ok(count) = read {
                self.input.extend_from_slice(&scratch[..count]);
            }
            read
        });
        let read = match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Ok(count) if count > 0 => count,
            _ => {
                self.phase = Phase::Closed;
                0
            }
        };
        if read > 0 || !self.input.is_empty() {
            self.take(hear)?;
        }
        if !self.output.is_empty() {
            self.flush();
        }
        Ok(())
    }

    fn take(&mut self, hear: &mut dyn FnMut(&mut Vec<u8>, Heard<'_>) -> Result<()>) -> Result<()> {
        if self.phase == Phase::Upgrading {
            let Some(end) = find(&self.input, b"\r\n\r\n") else { return Ok(()) };
            ensure!(self.input.starts_with(b"HTTP/1.1 101"), "the upgrade was refused");
            self.input.drain(..end + 4);
            self.phase = if self.identity.is_some() { Phase::LoggingIn } else { Phase::Live };
            if let Some(text) = self.first.take() {
                self.push_text(&text);
            }
        }
        let input = std::mem::take(&mut self.input);
        let before = self.phase;
        let mut at = 0;
        while let Some((opcode, start, end)) = frame(&input[at..]) {
            let payload = &input[at + start..at + end];
            at += end;
            match opcode {
                TEXT => self.text(std::str::from_utf8(payload)?, hear)?,
                8 => self.phase = Phase::Closed,
                _ => {}
            }
            // Mail that came with the end of the login is for whoever polls next.
            if before == Phase::LoggingIn && self.phase == Phase::Live {
                break;
            }
        }
        self.input = input;
        self.input.drain(..at);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(())
    }

    fn text(
        &mut self,
        text: &str,
        hear: &mut dyn FnMut(&mut Vec<u8>, Heard<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.phase == Phase::LoggingIn {
            return self.logging_in(text);
        }
        if text.starts_with(r#"{"type":"ping""#) {
            self.push_text(r#"{"type":"pong"}"#);
            return Ok(());
        }
        let heard = if text.starts_with(r#"{"type":"message""#) {
            Heard::Message { id: member(text, r#""messageId":""#).context("a message without id")? }
        } else if text.starts_with(r#"{"type":"ack""#) {
            let id = member(text, r#""messageId":""#).context("an ack without id")?;
            Heard::Ack { id, status: member(text, r#""status":""#).context("an ack without status")? }
        } else {
            Heard::Other
        };
        hear(&mut self.output, heard)
    }

    fn logging_in(&mut self, text: &str) -> Result<()> {
        let frame: Value = serde_json::from_str(text)?;
        match frame["type"].as_str() {
            Some("challenge") => {
                let identity = self.identity.take().context("one challenge")?;
                let nonce = frame["nonce"].as_str().and_then(LoginNonce::parse).context("challenge")?;
                let signature = identity.sign(&Purpose::V1Login(&nonce));
                let auth = json!({"type": "auth", "agentId": self.address,
                    "publicKey": STANDARD.encode(identity.public().as_bytes()),
                    "signature": STANDARD.encode(signature), "metadata": {"name": "bench"}});
                self.push_text(&auth.to_string());
            }
            Some("auth_ok") => self.phase = Phase::Live,
            Some("auth_error") => self.phase = Phase::Closed,
            _ => bail!("unexpected before login: {text}"),
        }
        Ok(())
    }
}

/// The text after `name` up to the next quotation mark.
fn member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(name)? + name.len();
    let length = text[start..].find('"')?;
    Some(&text[start..start + length])
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Opcode, start and end of the payload of the first whole frame of a server.
fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (start, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?) as usize),
        length => (2, usize::from(length)),
    };
    (bytes.len() >= start + length).then_some((first & 15, start, start + length))
}

/// A whole frame of a client.
pub(crate) fn encode(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ ..126 => frame.push(0x80 | length as u8),
        length @ ..65_536 => {
            frame.push(0x80 | 0x7e);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 0x7f);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    let start = frame.len();
    frame.extend_from_slice(payload);
    for (byte, key) in frame[start..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= key;
    }
    frame
}

/// A `message` frame whose id is put in later: built and masked once, so that a message costs one copy.
pub(crate) struct Template {
    frame: Vec<u8>,
    at: usize,
}

const DIGITS: usize = 12;

impl Template {
    /// `size` is that of the text inside.
    pub(crate) fn new(from: &str, to: &str, size: usize) -> Self {
        let empty = json!({"text": "", "type": "chat"}).to_string().len();
        let text = "x".repeat(size.saturating_sub(empty));
        let payload = STANDARD.encode(json!({"text": text, "type": "chat"}).to_string());
        let place = "#".repeat(DIGITS);
        let message = json!({"type": "message", "envelope": {
            "from": from, "to": to, "messageId": place, "threadId": "bench",
            "timestamp": "2026-01-01T00:00:00.000Z", "payload": payload}})
        .to_string();
        let offset = message.find(&place).unwrap_or_default();
        let frame = encode(TEXT, message.as_bytes());
        let at = frame.len() - message.len() + offset;
        Self { frame, at }
    }

    /// Appends the message with this number to what a client will write.
    pub(crate) fn write(&self, number: u64, output: &mut Vec<u8>) {
        let start = output.len();
        output.extend_from_slice(&self.frame);
        let header = self.frame.len() - self.payload_length();
        let digits = format!("{number:0DIGITS$}");
        for (index, digit) in digits.bytes().enumerate() {
            let place = self.at + index;
            output[start + place] = digit ^ MASK[(place - header) % 4];
        }
    }

    fn payload_length(&self) -> usize {
        match self.frame[1] & 0x7f {
            126 => self.frame.len() - 8,
            127 => self.frame.len() - 14,
            _ => self.frame.len() - 6,
        }
    }
}

/// The number in an id.
pub(crate) fn number(id: &str) -> Option<u64> {
    id.parse().ok()
}

/// Queues the acknowledgement of a message.
pub(crate) fn acknowledge(id: &str, output: &mut Vec<u8>) {
    let text = format!(r#"{{"type":"ack","messageId":"{id}","status":"delivered"}}"#);
    output.extend_from_slice(&encode(TEXT, text.as_bytes()));
}
