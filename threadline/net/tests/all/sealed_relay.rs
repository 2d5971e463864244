//! A relay over WebSocket/2 that runs the relay's own session machine and says so in its document.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use futures::{SinkExt as _, StreamExt as _};
use threadline::identity::Identity;
use threadline::v2::frames::{
    Accepted, Custody, Deliver, FORMAT_V2, Frame, FramePhase, Keys, KeysOk, KeysPut, Pong, QueueSize,
    RelayLimits, Role, Send as SendFrame, SignedBytes, Standing, Target, Via, Welcome,
};
use threadline::v2::login::WellKnown;
use threadline::v2::session::{RelaySession, RelayStep, check_send};
use threadline::v2::{Bin, Key};
use threadline_net::sealed::SealedRelay;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::{Bytes, Message};

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("in range")
}

pub const HOST: &str = "127.0.0.1";

#[derive(Default)]
pub struct Shelf {
    pub put: Option<KeysPut>,
    one_time: VecDeque<SignedBytes>,
    count: u64,
}

/// What the relay keeps.
#[derive(Default)]
pub struct Disk {
    queue: BTreeMap<u64, (Key, Key, SendFrame)>,
    pub shelves: BTreeMap<Key, Shelf>,
    next: u64,
    /// Accepts and forgets.
    pub withholds: bool,
    /// Accepts and forgets what is for this one.
    pub withholds_from: Option<Key>,
    /// Sender and recipient of blobs, and what waits for either.
    blobs: BTreeMap<Bin<32>, (Key, Key)>,
    passing: Vec<(Key, Frame)>,
    /// Pieces of blobs that are to be damaged.
    pub damages: u32,
}

pub struct TestRelay {
    pub relay: SealedRelay,
    pub disk: Arc<Mutex<Disk>>,
    pub task: JoinHandle<()>,
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRelay {
    pub async fn has_keys_of(&self, key: Key) {
        loop {
            let published =
                self.disk.lock().expect("lock").shelves.get(&key).is_some_and(|shelf| shelf.put.is_some());
            if published {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn start(seed: u8) -> Self {
        let signer = SigningKey::from_bytes(&[seed; 32]);
        let key: Key = Identity::from_seed(&[seed; 32]).public().into();
        let listener = TcpListener::bind((HOST, 0)).await.expect("bind");
        let url = format!("ws://{}/v2/connect", listener.local_addr().expect("address"));
        let disk = Arc::new(Mutex::new(Disk::default()));
        let (shared, woken) = (Arc::clone(&disk), Arc::new(watch::channel(0_u64).0));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (disk, woken, signer) = (Arc::clone(&shared), Arc::clone(&woken), signer.clone());
                connections.spawn(async move { serve(stream, key, &signer, &disk, &woken).await });
            }
        });
        let relay = SealedRelay {
            name: url.clone(),
            url: Some(url),
            quic: Vec::new(),
            host: HOST.into(),
            key,
            remember: true,
        };
        Self { relay, disk, task }
    }
}

#[allow(clippy::result_large_err, reason = "the callback's type is the library's")]
async fn serve(
    stream: TcpStream,
    key: Key,
    signer: &SigningKey,
    disk: &Mutex<Disk>,
    woken: &watch::Sender<u64>,
) -> Option<()> {
    let mut changes = woken.subscribe();
    let mut stream = stream;
    let mut beginning = [0; 22];
    while stream.peek(&mut beginning).await.ok()? < beginning.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if &beginning == b"GET /.well-known/threa" {
        let port = stream.local_addr().ok()?.port();
        return tell(&mut stream, &document(signer, port)).await;
    }
    let protocol = |request: &Request, mut response: Response| {
        let name = "sec-websocket-protocol";
        let Some(wanted) = request.headers().get(name).cloned() else {
            return Err(ErrorResponse::new(Some("only v2 is spoken here".into())));
        };
        assert_eq!(wanted, "threadline.2.msgpack");
        response.headers_mut().insert(name, wanted);
        Ok(response)
    };
    let hosts = vec![HOST.to_owned(), format!("{HOST}:{}", stream.local_addr().ok()?.port())];
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, protocol).await.ok()?;
    let now = now();
    let (mut session, challenge) = RelaySession::websocket(key, hosts, Bin([7; 32]), now);
    socket.send(message(&challenge)).await.ok()?;
    loop {
        let steps = tokio::select! {
            received = socket.next() => {
                let Message::Binary(bytes) = received?.ok()? else { continue };
                let frame = Frame::decode(&bytes, FramePhase::Open).expect("a frame of ours");
                session.handle_frame(frame, now)
            }
            _ = changes.changed() => Vec::new(),
        };
        let mut pending: VecDeque<RelayStep> = steps.into();
        while let Some(step) = pending.pop_front() {
            match step {
                RelayStep::Write(frame) => socket.send(message(&frame)).await.ok()?,
                RelayStep::Close(_) => return None,
                RelayStep::Login(_) | RelayStep::WorkDone(_) => {
                    pending.extend(session.welcome(welcome(key, now), |text| signer.sign(text).to_bytes()));
                }
                RelayStep::Frame(frame) => {
                    let (from, ..) = session.open().map(|(key, device, role)| (*key, *device, role))?;
                    let answer = answer(from, *frame, &mut session, &mut disk.lock().expect("lock"), now);
                    if let Some(frame) = answer {
                        socket.send(message(&frame)).await.ok()?;
                    }
                    woken.send_modify(|count| *count += 1);
                }
            }
        }
        let frames = deliveries(&mut session, &mut disk.lock().expect("lock"), now);
        for frame in frames {
            socket.send(message(&frame)).await.ok()?;
        }
    }
}

/// What the relay says of itself, signed.
fn document(signer: &SigningKey, port: u16) -> String {
    let text = serde_json::json!({
        "v": 2, "relay_id": "scripted", "relay_key": URL_SAFE_NO_PAD.encode(signer.verifying_key().as_bytes()),
        "protocols": ["threadline/2"], "ws2": "/v2/connect", "hosts": [HOST, format!("{HOST}:{port}")],
        "expires": "2999-01-01T00:00:00.000Z",
    })
    .to_string();
    let signature = signer.sign(&WellKnown::text_to_sign(&text)).to_bytes();
    let signed =
        serde_json::json!({"doc": URL_SAFE_NO_PAD.encode(&text), "sig": URL_SAFE_NO_PAD.encode(signature)});
    signed.to_string()
}

async fn tell(stream: &mut TcpStream, body: &str) -> Option<()> {
    let _ = stream.read(&mut [0; 2_048]).await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

fn message(frame: &Frame) -> Message {
    Message::Binary(Bytes::from(frame.encode()))
}

pub fn welcome(relay: Key, now: u64) -> Welcome {
    Welcome {
        sid: Bin([0; 16]),
        relay,
        now,
        lim: RelayLimits { env: 262_144, ttl_s: 2_592_000, msg_min: 60, msg_hour: 1_000, disc_min: 10 },
        q: QueueSize { n: 0, bytes: 0 },
        tok: None,
        tok_x: None,
        age_ms: 0,
        hw: (0, 0),
        ep: 0,
        role: Role::Active,
        notice: None,
        rs: None,
    }
}

pub fn answer(
    from: Key,
    frame: Frame,
    session: &mut RelaySession,
    disk: &mut Disk,
    now: u64,
) -> Option<Frame> {
    match frame {
        Frame::Send(send) => {
            let header = check_send(&send, &from, now).expect("a good SEND").header;
            let (rid, id) = (send.rid, send.id.clone());
            if !disk.withholds && disk.withholds_from != Some(header.to) {
                disk.next += 1;
                disk.queue.insert(disk.next, (from, header.to, send));
            }
            let (cu, st) = (Custody::Durable, Standing::Queued);
            Some(Accepted { rid, id, cu, st, exp: header.expires, dup: false }.into())
        }
        Frame::Taken(taken) => {
            for delivery in taken.dids {
                session.confirmed(delivery);
                disk.queue.remove(&delivery);
            }
            None
        }
        Frame::NotTaken(refused) => panic!("{refused:?}"),
        Frame::KeysPut(put) => {
            let shelf = disk.shelves.entry(from).or_default();
            shelf.count += put.otks.len() as u64 + 1;
            shelf.one_time.extend(put.otks.clone());
            shelf.put = Some(put);
            Some(KeysOk { have: shelf.one_time.len() as u16, hw: shelf.count }.into())
        }
        Frame::KeysClaim(claim) => {
            let Target::Key(key) = claim.to else { panic!("a key") };
            let shelf = disk.shelves.get_mut(&key)?;
            let put = shelf.put.clone()?;
            let (prekey, signature) = shelf.one_time.pop_front()?;
            let devs = vec![(put.cert, put.cs, prekey, signature, 0)];
            Some(Keys { rid: claim.rid, devs, list: put.list, ls: put.ls }.into())
        }
        Frame::BlobOpen(open) => {
            disk.blobs.insert(open.id, (from, open.to));
            disk.passing.push((open.to, Frame::BlobOpen(open)));
            None
        }
        Frame::BlobGo(go) => {
            let (sender, _) = *disk.blobs.get(&go.id)?;
            disk.passing.push((sender, go.into()));
            None
        }
        Frame::BlobData(mut data) => {
            let (_, recipient) = *disk.blobs.get(&data.id)?;
            if let (Some(left), Some(byte)) = (disk.damages.checked_sub(1), data.bytes.0.first_mut()) {
                *byte ^= 1;
                disk.damages = left;
            }
            disk.passing.push((recipient, data.into()));
            None
        }
        Frame::BlobEnd(end) => {
            let (_, recipient) = *disk.blobs.get(&end.hash)?;
            disk.passing.push((recipient, end.into()));
            None
        }
        Frame::Ping(ping) => Some(Pong { t: ping.t, now, ep: 0, role: None, tok: None, tok_x: None }.into()),
        _ => None,
    }
}

pub fn deliveries(session: &mut RelaySession, disk: &mut Disk, now: u64) -> Vec<Frame> {
    let Some((key, ..)) = session.open().map(|(key, device, role)| (*key, *device, role)) else {
        return Vec::new();
    };
    let under_way: Vec<u64> = session.unconfirmed().collect();
    let mine = disk.queue.iter().filter(|(did, (_, to, _))| *to == key && !under_way.contains(did));
    let passed: Vec<Frame> =
        disk.passing.extract_if(.., |(to, _)| *to == key).map(|(_, frame)| frame).collect();
    let mine = mine.filter_map(|(did, (from, _, send))| {
        session.deliver(Deliver {
            did: *did,
            id: send.id.clone(),
            from: Target::Key(*from),
            tt: send.tt,
            fmt: FORMAT_V2,
            env: send.env.clone(),
            at: now,
            attempt: 1,
            via: Via::V2,
        })
    });
    mine.chain(passed).collect()
}
