//! One WebSocket: bytes in, events to the core; bytes out.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use threadline::v1::MAX_FRAME;
use threadline::v1::frames::FrameError;
use threadline::v2::frames::FramePhase;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::Shared;
use super::clock::Clock;
use super::outbox::{Next, Outbox};
use crate::core::{ConnId, Event, Inbound, InboundFrame, Source, V2Carrier, V2Frame};
use crate::frames::{Decoder, Incoming, ProtocolError};

/// A client that takes nothing for this long is closed.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// Time a client has to answer a close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Largest message before the login.
const BEFORE_LOGIN: usize = 4 << 10;
/// Most bytes read at a time.
const READ: usize = 32 << 10;
/// Fewest bytes that may be read at a time.
const READ_LEAST: usize = 2 << 10;
/// Frames read at a time, about: the others wait until these are decoded.
const FRAMES: usize = 64;
/// Appended to the key of a handshake (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

thread_local! {
    /// What was just read, for all connections of a thread: none of them keeps a buffer while it is idle.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Why a request is no WebSocket handshake.
pub(super) enum NotWebSocket {
    /// Another method than GET.
    Method,
    /// The headers ask for something else.
    Headers,
}

/// The handshake that a request asks for: how to take the connection over, and the headers of the answer.
pub(super) fn handshake(
    method: &Method,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
) -> Result<(OnUpgrade, Response), NotWebSocket> {
    if method != Method::GET {
        return Err(NotWebSocket::Method);
    }
    let says = |name, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    let asks = says(header::CONNECTION, "upgrade")
        && says(header::UPGRADE, "websocket")
        && says(header::SEC_WEBSOCKET_VERSION, "13");
    let (Some(key), Some(upgrade), true) = (headers.get(header::SEC_WEBSOCKET_KEY), upgrade, asks) else {
        return Err(NotWebSocket::Headers);
    };
    let accept = STANDARD.encode(Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize());
    let accept = HeaderValue::from_str(&accept).map_err(|_| NotWebSocket::Headers)?;
    let answer = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    Ok((upgrade, (StatusCode::SWITCHING_PROTOCOLS, answer).into_response()))
}

/// Takes an upgraded connection over and serves it until it is closed by either side.
pub(super) async fn run(upgrade: OnUpgrade, source: Source, v2: bool, shared: Arc<Shared>) {
    let Ok(upgraded) = upgrade.await else { return };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(Parts { io, read_buf, .. }) => {
            let (reader, writer) = io.into_inner().into_split();
            let early = read_buf.to_vec();
            // Even where it is empty it holds the 8 KiB that the request was read into.
            drop(read_buf);
            serve(reader, writer, early, (source, v2), &shared).await;
        }
        Err(other) => other_stream(other, (source, v2), &shared).await,
    }
}

/// A stream that is no plain TCP: boxed, since it is larger and rarer.
fn other_stream<'a>(
    upgraded: Upgraded,
    from: (Source, bool),
    shared: &'a Shared,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        serve(reader, writer, Vec::new(), from, shared).await;
    })
}

async fn serve(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    early: Vec<u8>,
    (source, v2): (Source, bool),
    shared: &Shared,
) {
    let outbox = Arc::new(if v2 { Outbox::v2() } else { Outbox::default() });
    let carrier = v2.then_some(V2Carrier::WebSocket);
    let Some(id) = shared.driver.open(source, Arc::clone(&outbox), carrier).await else { return };
    let (decoder, clock) = (Decoder::default(), shared.clock.clone());
    let mut incoming = Reading { reader, decoder, outbox: &outbox, early, deaf: false, most: READ, clock };
    let closed = {
        let reading = std::pin::pin!(incoming.pass_on(id, shared));
        let writing = std::pin::pin!(write_out(&mut writer, &outbox));
        tokio::select! {
            () = reading => false,
            closed = writing => closed,
        }
    };
    if outbox.was_cut_off() {
        shared.measured.cut_off();
    }
    shared.driver.event(Event::Closed { conn: id }).await;
    if !closed {
        // What was said last, such as a close, may still go out.
        let _ = tokio::time::timeout(CLOSE_WITHIN, write_out(&mut writer, &outbox)).await;
    }
    let _ = tokio::time::timeout(CLOSE_WITHIN, incoming.discard()).await;
}

/// Writes until the close frame is out (true) or the client takes nothing any more.
async fn write_out(writer: &mut (impl AsyncWrite + Unpin), outbox: &Outbox) -> bool {
    loop {
        let (bytes, last) = match outbox.next().await {
            Next::Write(bytes) => (bytes, false),
            Next::Last(bytes) => (bytes, true),
            Next::Ended => return true,
        };
        let written = tokio::time::timeout(WRITE_WITHIN, writer.write_all(&bytes)).await;
        if !matches!(written, Ok(Ok(()))) || last {
            return last;
        }
    }
}

struct Reading<'a, R> {
    reader: R,
    decoder: Decoder,
    outbox: &'a Outbox,
    /// What came together with the handshake.
    early: Vec<u8>,
    /// The rest of a message that is too large is not looked at.
    deaf: bool,
    /// Bytes to read next: who sends tiny frames is read in small pieces.
    most: usize,
    clock: Clock,
}

/// What one read brought.
#[derive(Default)]
struct Brought {
    frames: Vec<Inbound>,
    end: bool,
}

impl<R: AsyncRead + Unpin> Reading<'_, R> {
    /// Hands everything to the core until the connection ends.
    async fn pass_on(&mut self, id: ConnId, shared: &Shared) {
        loop {
            let brought = match self.read().await {
                Ok(brought) => brought,
                Err(error) => return self.outbox.close(error.code, error.reason),
            };
            if !brought.frames.is_empty() {
                shared.driver.received(id, brought.frames).await;
            }
            if brought.end {
                return self.outbox.close(threadline::v1::close::NORMAL, "");
            }
            self.outbox.room().await;
        }
    }

    async fn read(&mut self) -> Result<Brought, ProtocolError> {
        let Self { reader, decoder, outbox, early, deaf, most, clock } = self;
        if !early.is_empty() {
            let mut early = std::mem::take(early);
            return decode(decoder, outbox, deaf, &mut early, clock.now_ms());
        }
        poll_fn(|context| {
            SCRATCH.with_borrow_mut(|scratch| {
                let mut buffer = ReadBuf::new(&mut scratch[..*most]);
                let read = ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer));
                let filled = buffer.filled_mut();
                if read.is_err() || filled.is_empty() {
                    return Poll::Ready(Ok(Brought { end: true, ..Brought::default() }));
                }
                let bytes = filled.len();
                let brought = decode(decoder, outbox, deaf, filled, clock.now_ms());
                if let Ok(brought) = &brought {
                    let each = bytes / brought.frames.len().max(1);
                    *most = (each * FRAMES).clamp(READ_LEAST, READ);
                }
                Poll::Ready(brought)
            })
        })
        .await
    }

    /// Reads and forgets, until the client has closed its side.
    async fn discard(&mut self) {
        loop {
            let read: io::Result<usize> = poll_fn(|context| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buffer = ReadBuf::new(scratch);
                    let read = ready!(Pin::new(&mut self.reader).poll_read(context, &mut buffer));
                    Poll::Ready(read.map(|()| buffer.filled().len()))
                })
            })
            .await;
            if !matches!(read, Ok(1..)) {
                return;
            }
        }
    }
}

fn phase(admitted: bool) -> FramePhase {
    if admitted { FramePhase::Open } else { FramePhase::Early }
}

fn decode(
    decoder: &mut Decoder,
    outbox: &Outbox,
    deaf: &mut bool,
    bytes: &mut [u8],
    now_ms: i64,
) -> Result<Brought, ProtocolError> {
    let mut brought = Brought::default();
    if *deaf || outbox.is_closing() {
        return Ok(brought);
    }
    let most = match (outbox.is_v2(), outbox.is_admitted()) {
        (false, true) => MAX_FRAME,
        (false, false) => BEFORE_LOGIN,
        (true, admitted) => phase(admitted).largest() + 4,
    };
    decoder.feed(bytes, most, &mut |incoming| {
        match incoming {
            Incoming::Binary(bytes) if outbox.is_v2() => {
                let frame = V2Frame::read(bytes, phase(outbox.is_admitted()), now_ms);
                brought
                    .frames
                    .push(Inbound { bytes: bytes.len(), content: Ok(InboundFrame::V2(Box::new(frame))) });
            }
            // A text is no frame of v2.
            Incoming::Text(_) if outbox.is_v2() => {
                let frame = V2Frame::read(&[], FramePhase::Early, now_ms);
                brought.frames.push(Inbound { bytes: 0, content: Ok(InboundFrame::V2(Box::new(frame))) });
            }
            Incoming::Text(text) => brought.frames.push(Inbound::read(text)),
            Incoming::Binary(_) => brought.frames.push(Inbound::read("")),
            Incoming::Ping(payload) => {
                outbox.pong(payload);
                brought.frames.push(Inbound { bytes: payload.len(), content: Ok(InboundFrame::Control) });
            }
            Incoming::Pong => brought.frames.push(Inbound { bytes: 0, content: Ok(InboundFrame::Control) }),
            Incoming::TooLarge(size) => {
                *deaf = true;
                let content = Err(FrameError::TooLarge(size));
                brought.frames.push(Inbound { bytes: size, content });
            }
            Incoming::Close => {
                brought.end = true;
                return false;
            }
        }
        true
    })?;
    Ok(brought)
}
