//! QUIC against the real program: raw keys both ways, streams as the protocol wants them, and who breaks its rules.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::crypto::{aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use threadline::v2::frames::{
    Deliver, Frame, FrameBuffer, FrameId, FramePhase, Outcome, Ping, Role, Taken, Welcome,
};
use threadline::v2::login::{SignedWellKnown, WellKnown};
use threadline::v2::raw_key::{ALPN, spki};
use threadline::v2::{Bin, Code};

use super::client::PATIENCE;
use super::operator::Admin;
use super::process::Relay;
use super::stores::{House, On, on_every_store};
use super::v2::{Machine, Session, key, send};

const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Accepts one key.
#[derive(Debug)]
struct Pinned(Vec<u8>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        assert_eq!(end_entity.as_ref(), self.0, "the key of the relay's document");
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        panic!("TLS 1.2")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let provider = aws_lc_rs::default_provider();
        verify_tls13_signature_with_raw_key(message, &key, dss, &provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

pub(crate) struct Client {
    pub(crate) connection: Connection,
    _endpoint: Endpoint,
    control: (SendStream, Frames),
    welcome: Welcome,
}

/// The frames of one stream.
pub(crate) struct Frames(RecvStream, FrameBuffer);

impl Frames {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.1.next(FramePhase::Open).expect("frames") {
                return Some(frame);
            }
            let chunk =
                tokio::time::timeout(PATIENCE, self.0.read_chunk(65_536, true)).await.expect("in time");
            self.1.extend(&chunk.ok()??.bytes);
        }
    }

    pub(crate) async fn expect<T>(&mut self, wanted: impl Fn(Frame) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await.expect("a frame")) {
                return found;
            }
        }
    }
}

pub(crate) async fn document(relay: &Relay) -> WellKnown {
    let url = format!("http://{}/.well-known/threadline", relay.at);
    let bytes = reqwest::get(&url).await.expect("answers").bytes().await.expect("bytes");
    let signed: SignedWellKnown = serde_json::from_slice(&bytes).expect("JSON");
    WellKnown::parse(&signed).expect("signed")
}

/// How a client shows itself.
struct Guise {
    /// The key it shows, unless it shows none.
    key: Option<[u8; 32]>,
    /// The seed of the key that it signs with.
    seed: [u8; 32],
    alpn: Vec<Vec<u8>>,
}

impl Guise {
    fn honest(n: u8) -> Self {
        Self { key: Some(key(n).0), seed: [n; 32], alpn: vec![ALPN.to_vec()] }
    }
}

async fn connect(document: &WellKnown, guise: Guise) -> Result<(Connection, Endpoint), ConnectionError> {
    let relay = spki(&document.key().expect("a key").0);
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(relay)));
    let mut tls = match guise.key {
        None => tls.with_no_client_auth(),
        Some(shown) => {
            let pkcs8 = [PKCS8_HEAD.as_slice(), &guise.seed].concat();
            let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).expect("a key");
            let own = CertifiedKey::new(vec![CertificateDer::from(spki(&shown))], signer);
            tls.with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(own))))
        }
    };
    tls.alpn_protocols = guise.alpn;
    tls.resumption = Resumption::disabled();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("suites")));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
    let address = document.quic.first().expect("QUIC is spoken");
    assert_eq!(address.host, "127.0.0.1");
    let target: SocketAddr = (Ipv4Addr::LOCALHOST, address.port).into();
    let connection = endpoint.connect_with(config, target, "relay").expect("an address").await?;
    Ok((connection, endpoint))
}

/// The code with which the relay ends a connection.
pub(crate) async fn end(connection: &Connection) -> u64 {
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("in time");
    let ConnectionError::ApplicationClosed(close) = closed else { panic!("{closed}") };
    close.error_code.into_inner()
}

impl Client {
    pub(crate) async fn log_in(document: &WellKnown, n: u8) -> Self {
        let (connection, endpoint) = connect(document, Guise::honest(n)).await.expect("connects");
        let (mut sending, receiving) = connection.open_bi().await.expect("a stream");
        sending.write_all(&Frame::from(Machine::of(n).hello()).encode()).await.expect("writes");
        let mut frames = Frames(receiving, FrameBuffer::default());
        let Some(Frame::Welcome(welcome)) = frames.next().await else { panic!("a welcome") };
        Self { connection, _endpoint: endpoint, control: (sending, frames), welcome }
    }

    pub(crate) async fn say(&mut self, frame: impl Into<Frame>) {
        self.control.0.write_all(&frame.into().encode()).await.expect("writes");
    }

    async fn stream(&self) -> (SendStream, Frames) {
        let (sending, receiving) = tokio::time::timeout(PATIENCE, self.connection.open_bi())
            .await
            .expect("in time")
            .expect("a stream");
        (sending, Frames(receiving, FrameBuffer::default()))
    }

    pub(crate) async fn deliveries(&self) -> Frames {
        let stream = tokio::time::timeout(PATIENCE, self.connection.accept_uni()).await.expect("in time");
        Frames(stream.expect("a stream of deliveries"), FrameBuffer::default())
    }
}

pub(crate) fn deliver(frame: Frame) -> Option<Deliver> {
    if let Frame::Deliver(deliver) = frame { Some(deliver) } else { None }
}

async fn threads_have_streams_of_their_own_and_what_is_accepted_survives_the_relay(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let before = document(&relay).await;
    let mut alice = Client::log_in(&before, 1).await;
    assert_eq!((alice.welcome.role, alice.welcome.rs), (Role::Active, None), "TLS proved the relay");
    drop(Client::log_in(&before, 2).await);
    let (mut sending, mut answers) = alice.stream().await;
    for id in 1..=5 {
        sending.write_all(&Frame::from(send(1, 2, id, 1)).encode()).await.expect("writes");
        let Some(Frame::Accepted(answer)) = answers.next().await else {
            panic!("on the stream of the thread")
        };
        assert_eq!(answer.id, FrameId::Bin(Bin([id; 16])));
    }
    alice.say(Ping { t: 5, tok: false }).await;
    let pong = alice.control.1.expect(|f| if let Frame::Pong(pong) = f { Some(pong) } else { None }).await;
    assert_eq!(pong.t, 5);
    relay.kill();

    let mut relay = house.relay();
    let document = document(&relay).await;
    assert_eq!(document.key(), before.key());
    let mut alice = Client::log_in(&document, 1).await;
    let mut bob = Client::log_in(&document, 2).await;
    let mut deliveries = bob.deliveries().await;
    for id in 1..=5 {
        let delivery = deliveries.expect(deliver).await;
        assert_eq!(delivery.id, FrameId::Bin(Bin([id; 16])), "one stream, in order");
        bob.say(Taken { dids: vec![delivery.did] }).await;
        let status =
            alice.control.1.expect(|f| if let Frame::Status(status) = f { Some(status) } else { None });
        assert_eq!(status.await.st, Outcome::Taken);
    }
    let text = Admin::of(&mut relay, house.path()).text("/admin/metrics").await;
    for line in [
        "threadline_sessions{carrier=\"quic\"} 2",
        "threadline_sessions{carrier=\"ws2\"} 0",
        "threadline_carrier_confirmed_total{carrier=\"quic\"} 5",
        "threadline_quic_handshakes_total{result=\"completed\"} 2",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

async fn a_device_that_changes_its_carrier_replaces_itself_and_misses_nothing(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let document = document(&relay).await;
    let mut alice = Session::log_in(relay.at, 1).await;
    let mut old = Session::log_in(relay.at, 2).await;
    alice.send(2, 1, 1).await;
    assert_eq!(old.delivered().await.id, FrameId::Bin(Bin([1; 16])));
    let mut bob = Client::log_in(&document, 2).await;
    assert_eq!(old.end().await.1, 4_005);
    let mut deliveries = bob.deliveries().await;
    let again = deliveries.expect(deliver).await;
    assert_eq!(again.id, FrameId::Bin(Bin([1; 16])), "what was not taken moves along");
    bob.say(Taken { dids: vec![again.did] }).await;
    let back = Session::log_in(relay.at, 2).await;
    assert_eq!(end(&bob.connection).await, 5);
    drop(back);
}

async fn what_follows_a_refused_message_on_its_stream_is_refused_with_it(on: On) {
    let house = House::on(on);
    let relay = house.relay_with(&["queue.per_pair=1"]);
    let document = document(&relay).await;
    let alice = Client::log_in(&document, 1).await;
    let (mut sending, mut answers) = alice.stream().await;
    let mut say = async |id: u8, to: u8| {
        sending.write_all(&Frame::from(send(1, to, id, 1)).encode()).await.expect("writes");
        match answers.next().await {
            Some(Frame::Accepted(_)) => Ok(()),
            Some(Frame::Rejected(answer)) => Err(answer.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(say(1, 2).await, Ok(()));
    assert_eq!(say(2, 2).await, Err(Code::SenderFull));
    assert_eq!(say(3, 3).await, Err(Code::SenderFull), "though there is room for it");
    let (mut sending, mut answers) = alice.stream().await;
    sending.write_all(&Frame::from(send(1, 3, 3, 1)).encode()).await.expect("writes");
    assert!(matches!(answers.next().await, Some(Frame::Accepted(_))), "a new stream begins anew");
}

async fn who_shows_no_key_or_a_key_of_another_or_speaks_another_protocol_does_not_get_in(on: On) {
    let house = House::on(on);
    let mut relay = house.relay();
    let document = document(&relay).await;
    let guises = [
        Guise { alpn: vec![b"h3".to_vec()], ..Guise::honest(3) },
        Guise { alpn: Vec::new(), ..Guise::honest(3) },
        Guise { key: None, ..Guise::honest(3) },
        Guise { key: Some(key(4).0), ..Guise::honest(3) },
        Guise { key: Some([0; 32]), ..Guise::honest(3) },
    ];
    for (at, guise) in guises.into_iter().enumerate() {
        // A client counts itself connected before the relay has seen its key.
        if let Ok((connection, _endpoint)) = connect(&document, guise).await {
            let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("in time");
            assert!(matches!(closed, ConnectionError::ConnectionClosed(_)), "{at}: {closed:?}");
        }
    }
    let text = Admin::of(&mut relay, house.path()).text("/admin/metrics").await;
    for line in [
        "threadline_sessions{carrier=\"quic\"} 0",
        "threadline_carrier_logins_total{carrier=\"quic\"} 0",
        "threadline_quic_handshakes_total{result=\"completed\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
    Client::log_in(&document, 3).await;
}

async fn who_breaks_the_rules_is_cut_off(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let document = document(&relay).await;
    let raw = async || connect(&document, Guise::honest(1)).await.expect("connects");

    let (silent, _silent_endpoint) = raw().await;
    let (connection, _endpoint) = raw().await;
    let (mut sending, _receiving) = connection.open_bi().await.expect("a stream");
    sending.write_all(&Frame::from(Ping { t: 1, tok: false }).encode()).await.expect("writes");
    assert_eq!(end(&connection).await, 1, "something else before HELLO");

    let (connection, _endpoint) = raw().await;
    let uni = tokio::time::timeout(Duration::from_millis(100), connection.open_uni());
    assert!(uni.await.is_err(), "no stream of this kind before the welcome");
    let second = tokio::time::timeout(Duration::from_millis(300), async {
        let _first = connection.open_bi().await;
        connection.open_bi().await.map(drop)
    });
    assert!(second.await.is_err(), "and one of the other");

    let (connection, _endpoint) = raw().await;
    let (mut sending, receiving) = connection.open_bi().await.expect("a stream");
    sending.write_all(&(1_u32 << 20).to_be_bytes()).await.expect("writes");
    let mut frames = Frames(receiving, FrameBuffer::default());
    let fault = frames.expect(|f| if let Frame::Fault(fault) = f { Some(fault.code) } else { None }).await;
    assert_eq!((fault, end(&connection).await), (Code::BadRequest, 1), "too large before HELLO");

    let mut client = Client::log_in(&document, 1).await;
    let (mut sending, _answers) = client.stream().await;
    sending.write_all(&400_000_u32.to_be_bytes()).await.expect("writes");
    let control = &mut client.control.1;
    let fault = control.expect(|f| if let Frame::Fault(fault) = f { Some(fault.code) } else { None }).await;
    assert_eq!((fault, end(&client.connection).await), (Code::BadRequest, 1), "too large in a session");

    let mut client = Client::log_in(&document, 1).await;
    let half = Frame::from(send(1, 2, 1, 1)).encode();
    let (mut sending, _answers) = client.stream().await;
    sending.write_all(&half[..half.len() / 2]).await.expect("writes");
    sending.reset(quinn::VarInt::from_u32(0)).expect("resets");
    client.say(Ping { t: 9, tok: false }).await;
    let pong = client.control.1.expect(|f| if let Frame::Pong(pong) = f { Some(pong.t) } else { None }).await;
    assert_eq!(pong, 9, "a stream that is reset affects only itself");
    client.control.0.finish().expect("says good-bye");
    assert_eq!(end(&client.connection).await, 0);

    assert_eq!(end(&silent).await, 1, "silence is no HELLO");
}

async fn a_stop_says_good_bye(on: On) {
    let house = House::on(on);
    let relay = house.relay();
    let document = document(&relay).await;
    let mut client = Client::log_in(&document, 1).await;
    relay.signal(rustix::process::Signal::TERM);
    let away = client.control.1.expect(|f| if let Frame::GoAway(away) = f { Some(away.code) } else { None });
    assert_eq!(away.await, "draining");
    assert_eq!(end(&client.connection).await, 4);
    assert_eq!(relay.stop(), Some(0));
}

#[tokio::test]
async fn a_document_names_quic_only_where_it_is_spoken() {
    let dir = tempfile::tempdir().expect("dir");
    let relay = Relay::start_with(dir.path(), &["quic.enabled=false"]);
    assert!(document(&relay).await.quic.is_empty());
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let dir = tempfile::tempdir().expect("dir");
    let mut command = super::process::command(dir.path());
    let (code, text) = super::process::run(command.args(["--set", &format!("quic.port={port}")]));
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(&format!("cannot listen on 127.0.0.1:{port}")) && text.contains("quic.port"),
        "{text}"
    );
}

on_every_store!(
    threads_have_streams_of_their_own_and_what_is_accepted_survives_the_relay,
    a_device_that_changes_its_carrier_replaces_itself_and_misses_nothing,
    what_follows_a_refused_message_on_its_stream_is_refused_with_it,
    who_shows_no_key_or_a_key_of_another_or_speaks_another_protocol_does_not_get_in,
    who_breaks_the_rules_is_cut_off,
    a_stop_says_good_bye,
);
