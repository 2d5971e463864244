//! Sealed mail from end to end: a text is committed by one node's mail and sealed, the relay carries it, the other
//! node's mail opens and stores it, and its signed receipt comes back, sealed, by the same way.
//!
//! Both are the mail of the shipped node with a store of its own each, in the process of the load generator; the relay
//! is a process. What a whole node does before (who may say what) and after (which session hears it) is not in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use instar_outbound::{
    Channel, ChannelId, Cleared, Latch, Moment, Origin, OutboundMessage, Pel, PelConfig, Recipient,
    RecipientKind, ReplyTarget, SendFlags, SendGateway, SendOutcome,
};
use threadline::delivery::{DEFAULT_TTL_MS, Delivery};
use threadline::identity::Identity;
use threadline::v2::frames::Visibility;
use threadline::v2::{Bin, Id, Key};
use threadline::{Fingerprint, MessageId, ThreadKey, TrustLevel};
use threadline_net::sealed::{
    Introduction, SealedDeps, SealedDraft, SealedEvent, SealedHandle, SealedRelay, Standing, run_sealed,
};
use threadline_net::store::{Auth, OutboundDraft, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Plan;
use super::scratch;
use super::sealed::on_one_thread;
use super::subject::Subject;
use super::v2_client::{Carrier, Place};
use crate::report::{self, Samples};

const SIZE: usize = 1024;
/// Round trips one after the other.
const ONE_BY_ONE: usize = 200;
/// Messages a second, open loop.
const RATE: f64 = 20.0;
/// Messages without a receipt, and messages, when looking for how many go through.
const WINDOW: usize = 64;
const MANY: usize = 1_000;
/// Longest wait for one receipt.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn figures(relay: &Subject, durability: &str, carrier: Carrier, plan: &Plan) -> Result<()> {
    on_one_thread(async {
        let place = Place::find(relay).await?;
        let (mut alice, mut bob) =
            (Party::start(&place, carrier).await?, Party::start(&place, carrier).await?);
        // Both have a session with each other before anything is measured.
        alice.round_trip(&bob).await?;
        bob.round_trip(&alice).await?;
        let what = format!("sealed, {}, 1 KiB, {durability}", carrier.name());
        let mut samples = Samples::new();
        for _ in 0..ONE_BY_ONE {
            samples.record(alice.round_trip(&bob).await?);
        }
        report::times(&format!("{what}: text to signed receipt, one at a time"), &samples, "-", None);
        let samples = alice.paced(&bob, RATE, plan.length()).await?;
        report::times(&format!("{what}: text to signed receipt, {RATE:.0}/s"), &samples, "-", None);
        let cpu = relay.cpu()?;
        let start = Instant::now();
        alice.many(&bob).await?;
        let rate = MANY as f64 / start.elapsed().as_secs_f64();
        let us_each = relay.cpu()?.saturating_sub(cpu).as_secs_f64() * 1e6 / MANY as f64;
        report::figure(
            &format!("{what}: confirmed messages"),
            &format!(
                "{rate:.0}/s (window {WINDOW}, one pair; {us_each:.0} us CPU of the relay each, receipt included)"
            ),
            "-",
        );
        alice.stop().await;
        bob.stop().await;
        Ok(())
    })
}

/// The mail of one node.
struct Party {
    key: Key,
    address: Fingerprint,
    handle: SealedHandle,
    gateway: SendGateway,
    /// What its peers signed for, and when that was heard.
    confirmed: mpsc::Receiver<(Id, Instant)>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Party {
    async fn start(place: &Place, carrier: Carrier) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sealed-bench-").tempdir_in(scratch())?;
        let store = Store::open(&dir.path().join("threadline.sqlite"))?;
        let identity = Arc::new(Identity::generate(&mut rand::rng()));
        let (key, address) = (identity.public().into(), identity.fingerprint());
        let quic = if carrier == Carrier::Quic { place.quic.clone() } else { Vec::new() };
        let relay = SealedRelay {
            name: "bench".into(),
            url: (carrier != Carrier::Quic).then(|| place.url()),
            quic,
            host: "127.0.0.1".into(),
            key: place.key,
            remember: false,
        };
        let (events_tx, mut events) = mpsc::channel(256);
        let (confirmed_tx, confirmed) = mpsc::channel(MANY);
        let deps = SealedDeps {
            identity,
            store,
            device_name: "bench".into(),
            introduce: Arc::new(|| Introduction {
                name: "bench".into(),
                capabilities: Vec::new(),
                visibility: Visibility::Unlisted,
                listed: false,
            }),
            relays: watch::channel(vec![relay]).1,
            standing: Arc::new(|_: &Key| Standing::Contact),
            events: events_tx,
            now: now_ms,
            link: None,
        };
        let stop = CancellationToken::new();
        let (handle, mail) = run_sealed(deps, stop.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(mail);
        tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                if let SealedEvent::Delivery(change) = event
                    && change.confirmed
                    && confirmed_tx.send((change.id, Instant::now())).await.is_err()
                {
                    return;
                }
            }
        });
        let mut status = handle.watch_status();
        let ready = status.wait_for(|relays| relays.iter().any(|relay| relay.state == "ready"));
        tokio::time::timeout(PATIENCE, ready).await.context("no session with the relay")??;
        let gateway =
            SendGateway::new(Arc::new(Pel::new(PelConfig::default(), Arc::new(|_: &str| Vec::new()))));
        gateway.register(Channel::threadline());
        Ok(Self { key, address, handle, gateway, confirmed, stop, tasks, _dir: dir })
    }

    async fn stop(mut self) {
        self.stop.cancel();
        drop(self.confirmed);
        while self.tasks.join_next().await.is_some() {}
    }

    fn cleared(&self, to: &Self) -> Result<Cleared<OutboundMessage>> {
        let recipient = Recipient {
            kind: RecipientKind::Agent,
            id: to.address.to_string(),
            trust: None,
            own_values: Vec::new(),
        };
        let message = OutboundMessage {
            text: "x".repeat(SIZE),
            subject: None,
            target: ReplyTarget { channel: ChannelId::THREADLINE, recipient, conversation: None },
            origin: Origin::Threadline,
            session_id: None,
            flags: SendFlags::default(),
            idempotency_key: None,
        };
        let moment = Moment { now_ms: now_ms(), verdict_id: uuid::Uuid::nil(), latch: Latch::Open };
        match self.gateway.review(message, &moment, &[]) {
            SendOutcome::Cleared(cleared) => Ok(cleared),
            other => bail!("the text was not cleared: {other:?}"),
        }
    }

    /// Returns when the text is on the disk.
    async fn say(&self, to: &Self, id: uuid::Uuid) -> Result<()> {
        let draft = OutboundDraft {
            key: ThreadKey { peer: to.address, thread: "bench".parse()? },
            peer_name: "bench".into(),
            id: MessageId::from_uuid(id),
            kind: "chat".into(),
            subject: String::new(),
            in_reply_to: None,
            auth: Auth::E2e,
            trust: TrustLevel::Trusted,
            author_session: None,
            origin_topic_id: None,
            idempotency_key: None,
            windows: Vec::new(),
            delivery: Delivery::new(now_ms(), DEFAULT_TTL_MS, true),
        };
        let sealed = SealedDraft { need: None, ttl_ms: DEFAULT_TTL_MS.unsigned_abs(), priority: 1 };
        self.handle.submit(to.key, self.cleared(to)?, draft, sealed).await?;
        Ok(())
    }

    /// The next confirmation.
    async fn hear(&mut self) -> Result<(Id, Instant)> {
        let heard = tokio::time::timeout(PATIENCE, self.confirmed.recv()).await;
        heard.context("no receipt came")?.context("sealed mail stopped")
    }

    async fn round_trip(&mut self, to: &Self) -> Result<Duration> {
        let (id, start) = (uuid::Uuid::now_v7(), Instant::now());
        self.say(to, id).await?;
        loop {
            let (confirmed, at) = self.hear().await?;
            if confirmed == Bin(id.into_bytes()) {
                return Ok(at - start);
            }
        }
    }

    /// Messages at a fixed rate whatever becomes of them, each counted from the time that it was meant for.
    async fn paced(&mut self, to: &Self, rate: f64, length: Duration) -> Result<Samples> {
        let count = (rate * length.as_secs_f64()) as u64;
        let (tick, mut ticks) = mpsc::channel(WINDOW);
        // A thread of its own: the runtime's timers are coarser than what is measured.
        let pacing = std::thread::spawn(move || {
            let start = Instant::now();
            for number in 0..count {
                let intended = start + Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(intended.saturating_duration_since(Instant::now()));
                if tick.blocking_send(intended).is_err() {
                    return;
                }
            }
        });
        let (mut samples, mut open) = (Samples::new(), HashMap::new());
        while samples.len() < count {
            tokio::select! {
                Some(intended) = ticks.recv() => {
                    let id = uuid::Uuid::now_v7();
                    open.insert(Bin(id.into_bytes()), intended);
                    self.say(to, id).await?;
                }
                heard = self.hear() => {
                    let (id, at) = heard?;
                    if let Some(intended) = open.remove(&id) {
                        samples.record(at - intended);
                    }
                }
            }
        }
        pacing.join().map_err(|_| anyhow::anyhow!("the pacing thread panicked"))?;
        Ok(samples)
    }

    /// Closed loop with a window.
    async fn many(&mut self, to: &Self) -> Result<()> {
        let (mut sent, mut confirmed) = (0, 0);
        while confirmed < MANY {
            while sent < MANY && sent - confirmed < WINDOW {
                self.say(to, uuid::Uuid::now_v7()).await?;
                sent += 1;
            }
            self.hear().await?;
            confirmed += 1;
        }
        Ok(())
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
