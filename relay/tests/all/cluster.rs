//! Several relays on real NATS servers on loopback.
//!
//! The servers sync before they acknowledge, so that acceptance means `replicated` where there are three. What is killed
//! are processes: that mail survives a power cut is not shown.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::json;
use tempfile::TempDir;
use threadline::v1::frames::Visibility;
use threadline::v2::frames::Custody;

use super::client::{Client, PATIENCE, address};
use super::operator::Admin;
use super::process::{Relay, command, run};
use super::v2::Session;

const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// NATS servers that form a cluster, or a single one.
pub(crate) struct Nats {
    dir: TempDir,
    ports: Vec<(u16, u16)>,
    children: Vec<Option<Child>>,
}

/// Ports that nobody listens on.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("address").port()).collect()
}

impl Nats {
    pub(crate) fn start(count: usize) -> Self {
        let ports = free_ports(2 * count);
        let ports = ports.chunks(2).map(|pair| (pair[0], pair[1])).collect();
        let dir = tempfile::tempdir().expect("directory");
        let mut nats = Self { dir, ports, children: (0..count).map(|_| None).collect() };
        (0..count).for_each(|n| nats.revive(n));
        nats
    }

    pub(crate) fn revive(&mut self, n: usize) {
        let (client, route) = self.ports[n];
        let config = self.dir.path().join(format!("{n}.conf"));
        let store = self.dir.path().join(n.to_string());
        let jetstream = format!("jetstream {{ store_dir: \"{}\", sync_interval: always }}", store.display());
        std::fs::write(&config, jetstream).expect("a configuration");
        let mut server = Command::new("nats-server");
        server.args(["--addr", "127.0.0.1", "--port", &client.to_string(), "--config"]).arg(config);
        server.args(["--name", &format!("n{n}")]);
        if self.ports.len() > 1 {
            let routes: Vec<String> =
                self.ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}")).collect();
            server.args(["--cluster_name", "test", "--cluster", &format!("nats://127.0.0.1:{route}")]);
            server.args(["--routes", &routes.join(",")]);
        }
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.children[n] = Some(child.expect("nats-server starts; tests/run installs it"));
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", client)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.children[n].take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }

    /// Waits until every server has all that the others have: three copies survive the loss of one, not of a second one
    /// before the first is whole again.
    pub(crate) async fn whole(&self) {
        let servers: Vec<String> = self.urls().split(',').map(str::to_owned).collect();
        let client = async_nats::connect(servers).await.expect("a connection");
        let context = async_nats::jetstream::new(client);
        let others = self.ports.len() - 1;
        let behind = || async {
            let mut behind = Vec::new();
            let mut streams = context.streams();
            while let Some(stream) = streams.next().await {
                let Ok(stream) = stream else { return vec!["no answer".to_owned()] };
                let copies = stream.cluster.as_ref().map_or(&[][..], |cluster| &cluster.replicas);
                let current =
                    copies.iter().filter(|copy| copy.current && !copy.offline && copy.lag.unwrap_or(0) == 0);
                if current.count() < others {
                    behind.push(stream.config.name);
                }
            }
            behind
        };
        wait_for(Duration::from_mins(1), "streams that are behind", behind, Vec::is_empty).await;
    }

    /// Comes back with nothing.
    fn wipe(&mut self, n: usize) {
        self.kill(n);
        std::fs::remove_dir_all(self.dir.path().join(n.to_string())).expect("removes");
        self.revive(n);
    }

    fn urls(&self) -> String {
        let urls: Vec<String> =
            self.ports.iter().map(|(client, _)| format!("nats://127.0.0.1:{client}")).collect();
        urls.join(",")
    }

    pub(crate) fn relay_command(&self, dir: &Path) -> Command {
        let mut command = command(dir);
        command.env("RELAY_ENGINE", "nats").env("RELAY_CLUSTER_SERVERS", self.urls());
        command.env("RELAY_CLUSTER_SECRET", SECRET);
        let alone = self.ports.len() == 1;
        command.env("RELAY_CLUSTER_REPLICAS", if alone { "1" } else { "3" });
        command.args(["--set", &format!("cluster.allow_weak={alone}")]);
        command.args(["--set", "cluster.stream_bytes=67108864"]);
        command
    }

    pub(crate) fn relay(&self, dir: &Path) -> Relay {
        Relay::spawn(&mut self.relay_command(dir))
    }

    /// A relay that says in a file of its directory what it stores and removes.
    pub(crate) fn talkative_relay(&self, dir: &Path) -> Relay {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
        Relay::spawn_logging(self.relay_command(dir).args(["--set", "log.level=debug"]), log)
    }

    /// Prints what lies in the engine and what the relays said of mail: a loss has to be explained.
    pub(crate) async fn explain(&self, dirs: &[TempDir]) {
        let servers: Vec<String> = self.urls().split(',').map(str::to_owned).collect();
        let client = async_nats::connect(servers).await.expect("a connection");
        let mut streams = async_nats::jetstream::new(client).streams();
        while let Some(Ok(stream)) = streams.next().await {
            if stream.config.name.starts_with("TLQ") && stream.state.last_sequence > 0 {
                println!("{} {:?} {:?}", stream.config.name, stream.state, stream.cluster);
            }
        }
        for (n, dir) in dirs.iter().enumerate() {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            for line in log.lines().filter(|line| line.contains("threadline_relay::cluster")) {
                println!("relay {n}: {line}");
            }
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|n| self.kill(n));
    }
}

pub(crate) fn dirs<const N: usize>() -> [TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().expect("directory"))
}

async fn health(at: SocketAddr) -> serde_json::Value {
    reqwest::get(format!("http://{at}/health")).await.expect("answers").json().await.expect("json")
}

#[tokio::test]
async fn agents_of_two_relays_write_to_each_other() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut alice = Client::log_in(here.at, 1).await;
    alice.send(2, "before").await;
    assert_eq!(alice.next("ack").await["status"], "queued");
    let mut bob = Client::log_in(there.at, 2).await;
    assert_eq!(bob.message_id().await, "before", "it waited in the engine");
    bob.ack("before").await;
    let ack = alice.next("ack").await;
    assert_eq!((&ack["messageId"], &ack["status"]), (&json!("before"), &json!("delivered")));
    for n in 0..20 {
        alice.send(2, &format!("a{n}")).await;
        bob.send(1, &format!("b{n}")).await;
    }
    for n in 0..20 {
        assert_eq!(bob.message_id().await, format!("a{n}"), "in order");
        bob.ack(&format!("a{n}")).await;
        assert_eq!(alice.message_id().await, format!("b{n}"), "in order");
        alice.ack(&format!("b{n}")).await;
    }
    let health = health(here.at).await;
    assert_eq!(health["status"], "degraded");
    assert!(health["reason"].as_str().expect("text").contains("allow_weak"), "{health}");
    assert_eq!((here.stop(), there.stop()), (Some(0), Some(0)));
}

#[tokio::test]
async fn presence_crosses_and_an_agent_that_moves_takes_its_session_along() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut watcher = Client::log_in(here.at, 1).await;
    watcher.say(json!({"type": "subscribe", "agentIds": [address(2)]}).to_string()).await;
    let mut bob = Client::log_in_as(there.at, 2, Visibility::Public).await;
    let change = watcher.next("presence_change").await;
    assert_eq!((&change["agentId"], &change["status"]), (&json!(address(2)), &json!("online")));
    watcher.say(json!({"type": "discover", "filter": {}}).to_string()).await;
    let found = watcher.next("discover_result").await;
    assert!(found.to_string().contains(&address(2)), "{found}");
    // The same agent on the other relay: the first session ends, and nobody hears of an absence.
    let mut moved = Client::log_in_as(here.at, 2, Visibility::Public).await;
    bob.next("displaced").await;
    assert_eq!(bob.closed().await, 4001);
    watcher.send(2, "m1").await;
    assert_eq!(moved.message_id().await, "m1");
    moved.ack("m1").await;
    let frames = watcher.rest(Duration::from_millis(3_500)).await;
    assert!(!frames.iter().any(|frame| frame["type"] == "presence_change"), "{frames:?}");
    drop(moved);
    assert_eq!(watcher.next("presence_change").await["status"], "offline");
}

#[tokio::test]
async fn relays_of_a_cluster_are_one_to_their_clients() {
    let nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let alice = Client::log_in_as(here.at, 1, Visibility::Public).await;
    let token = alice.login["registry_token"].as_str().expect("token").to_owned();
    let client = reqwest::Client::new();
    let me = format!("http://{}/v1/registry/me", there.at);
    let answer = client.get(me).bearer_auth(token).send().await.expect("answers");
    assert_eq!(answer.status(), 200, "a token of one is good at the other");
    let begun = Instant::now();
    loop {
        let found = client.get(format!("http://{}/v1/registry/agent/{}", there.at, address(1)));
        if found.send().await.expect("answers").status() == 200 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the directory of one is that of the other");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn three_copies_on_current_servers_are_replicated() {
    let nats = Nats::start(3);
    let [dir] = dirs();
    let relay = nats.relay(dir.path());
    let health = health(relay.at).await;
    assert_eq!(health["status"], "ok", "{health}");
    let mut alice = Session::log_in(relay.at, 1).await;
    alice.send(2, 1, 1).await;
    assert_eq!(alice.answer(1).await.expect("accepted").cu, Custody::Replicated);
}

#[test]
fn a_weak_engine_is_refused_and_named() {
    let nats = Nats::start(1);
    let [dir] = dirs();
    let mut strict = nats.relay_command(dir.path());
    let (code, text) = run(strict.args(["--set", "cluster.allow_weak=false"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("2.10 or later") && text.contains("cluster.allow_weak"), "{text}");
}

#[test]
fn a_plain_connection_to_another_host_is_refused() {
    let [dir] = dirs();
    let mut command = command(dir.path());
    command.args(["check-config", "--set", "engine=nats", "--set", "cluster.servers=nats://10.0.0.1:4222"]);
    let (code, text) = run(command.env("RELAY_CLUSTER_SECRET", "short"));
    assert_eq!(code, Some(2));
    assert!(text.contains("tls://host:port") && text.contains("64 hex digits"), "{text}");
    assert!(!text.contains("short"), "{text}");
}

/// Everything in the engine is lost: what the relays know of the directory feeds it again.
#[tokio::test]
async fn a_wiped_engine_gets_its_directory_back_from_a_relay() {
    let mut nats = Nats::start(1);
    let [a, b, c] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let listed = |at: SocketAddr| async move {
        let url = format!("http://{at}/v1/registry/agent/{}", address(1));
        reqwest::get(url).await.expect("answers").status().as_u16()
    };
    let _alice = Client::log_in_as(here.at, 1, Visibility::Public).await;
    wait_for(PATIENCE, "the other relay knows it", || listed(there.at), |code| *code == 200).await;
    here.kill();
    there.kill();
    nats.wipe(0);
    let (again, new) = (nats.relay(b.path()), nats.relay(c.path()));
    for relay in [&again, &new] {
        wait_for(PATIENCE, "it is known again", || listed(relay.at), |code| *code == 200).await;
    }
    // Who had mail waiting there sends it again; for new mail there is room.
    let mut sender = Client::log_in(again.at, 2).await;
    sender.send(1, "after").await;
    assert_eq!(sender.next("ack").await["status"], "queued");
    let mut alice = Client::log_in(new.at, 1).await;
    assert_eq!(alice.message_id().await, "after");
}

/// What one recipient got.
#[derive(Default)]
struct Inbox {
    /// First copies in the order of arrival.
    first: Vec<u64>,
    seen: BTreeSet<u64>,
    again: u32,
}

impl Inbox {
    async fn take(&mut self, recipient: &mut Client, frame: &serde_json::Value) {
        let Some(id) = frame["envelope"]["messageId"].as_str() else { return };
        let n: u64 = id.parse().expect("number");
        if self.seen.insert(n) {
            self.first.push(n);
        } else {
            self.again += 1;
        }
        // A relay that was killed has left frames behind; what they brought comes again.
        recipient.try_ack(id).await;
    }
}

fn answered(frame: &serde_json::Value) -> Option<u64> {
    let ours = frame["type"] == "ack" && frame["status"] != "rejected";
    ours.then(|| frame["messageId"].as_str().expect("id").parse().expect("number"))
}

/// Three relays on three servers under load; each round a server or a relay dies by SIGKILL while messages are on their
/// way, and comes back.
#[tokio::test]
async fn killed_relays_and_servers_lose_nothing_that_was_accepted() {
    println!("kills processes only: survival of a power cut is NOT proven by this test");
    let mut nats = Nats::start(3);
    let dirs: [TempDir; 3] = dirs();
    let mut relays: Vec<Option<Relay>> =
        dirs.iter().map(|dir| Some(nats.talkative_relay(dir.path()))).collect();
    let (mut inbox, mut next, mut open) = (Inbox::default(), 0_u64, BTreeSet::<u64>::new());
    let mut repeated = BTreeSet::new();
    let start = Instant::now();
    for round in 0..6_usize {
        let at = |n: usize| relays[n % 3].as_ref().expect("runs").at;
        println!("{:5.1} s: round {round}, {} open", start.elapsed().as_secs_f32(), open.len());
        let mut recipient = Client::log_in(at(round + 1), 2).await;
        println!("{:5.1} s: recipient in", start.elapsed().as_secs_f32());
        let mut sender = Client::log_in(at(round), 1).await;
        println!("{:5.1} s: sender in", start.elapsed().as_secs_f32());
        let fresh = next..next + 30;
        next = fresh.end;
        repeated.extend(open.iter().copied());
        for n in open.iter().copied().chain(fresh.clone()) {
            sender.send(2, &format!("{n:06}")).await;
        }
        open.extend(fresh);
        let moment = tokio::time::sleep(Duration::from_millis(20 + 30 * round as u64));
        let end = tokio::time::sleep(Duration::from_secs(8));
        tokio::pin!(moment, end);
        let mut killed = false;
        while !killed || !open.is_empty() {
            tokio::select! {
                () = &mut moment, if !killed => {
                    killed = true;
                    match round % 2 {
                        0 => nats.kill(round % 3),
                        _ => relays[(round + round / 2) % 3].take().expect("runs").kill(),
                    }
                }
                () = &mut end => break,
                frame = sender.frame() => match frame {
                    Ok(frame) => drop(answered(&frame).map(|n| open.remove(&n))),
                    Err(_) => break,
                },
                frame = recipient.frame() => match frame {
                    Ok(frame) => inbox.take(&mut recipient, &frame).await,
                    Err(_) => break,
                },
            }
        }
        println!("{:5.1} s: round over, {} open", start.elapsed().as_secs_f32(), open.len());
        if round % 2 == 0 {
            nats.revive(round % 3);
            nats.whole().await;
        }
        for (relay, dir) in relays.iter_mut().zip(&dirs).filter(|(relay, _)| relay.is_none()) {
            *relay = Some(nats.talkative_relay(dir.path()));
        }
    }
    println!("{:5.1} s: all run again", start.elapsed().as_secs_f32());
    repeated.extend(open.iter().copied());
    let mut sender = Client::log_in(relays[1].as_ref().expect("runs").at, 1).await;
    println!("{:5.1} s: sender in", start.elapsed().as_secs_f32());
    let begun = Instant::now();
    while !open.is_empty() && begun.elapsed() < PATIENCE {
        for n in open.clone() {
            sender.send(2, &format!("{n:06}")).await;
        }
        for frame in sender.rest(Duration::from_secs(3)).await {
            answered(&frame).map(|n| open.remove(&n));
        }
    }
    println!("{:5.1} s: all accepted", start.elapsed().as_secs_f32());
    let mut recipient = Client::log_in(relays[2].as_ref().expect("runs").at, 2).await;
    println!("{:5.1} s: recipient in", start.elapsed().as_secs_f32());
    // What a killed relay had taken from the engine comes again when the engine misses its confirmation.
    let begun = Instant::now();
    while (0..next).any(|n| !inbox.seen.contains(&n)) && begun.elapsed() < 3 * PATIENCE {
        match tokio::time::timeout(Duration::from_secs(1), recipient.frame()).await {
            Ok(Ok(frame)) => inbox.take(&mut recipient, &frame).await,
            Ok(Err(code)) => panic!("the recipient's session ended with {code}: nobody else has one"),
            Err(_) => {}
        }
    }
    println!("the last came {:.1} s after the recipient", begun.elapsed().as_secs_f32());
    assert!(open.is_empty(), "never accepted: {open:?}");
    let lost: Vec<u64> = (0..next).filter(|n| !inbox.seen.contains(n)).collect();
    if !lost.is_empty() {
        nats.explain(&dirs).await;
    }
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let once: Vec<u64> = inbox.first.iter().copied().filter(|n| !repeated.contains(n)).collect();
    assert!(once.is_sorted(), "what was sent once came out of order: {once:?}");
    println!(
        "{next} messages, {} of them sent again, {} copies delivered again",
        repeated.len(),
        inbox.again
    );
    let waiting = recipient.rest(Duration::from_millis(500)).await;
    assert!(waiting.iter().all(|frame| frame["type"] != "message"), "confirmed is gone: {waiting:?}");
}

/// Asks until the answer is as wanted; the last answer if it never is.
async fn wait_for<T: std::fmt::Debug>(
    within: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let seen = look().await;
        if good(&seen) {
            return seen;
        }
        assert!(begun.elapsed() < within, "{what}: not within {within:?}, last {seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ready(at: SocketAddr) -> u16 {
    reqwest::get(format!("http://{at}/ready")).await.expect("answers").status().as_u16()
}

/// Two of three servers die: nothing is accepted any more, every sender hears so, and nothing has to be done when they
/// come back.
#[tokio::test]
async fn without_a_quorum_nothing_is_accepted_and_nothing_accepted_is_lost() {
    let mut nats = Nats::start(3);
    let [a, b] = dirs();
    let (mut here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let mut sender = Client::log_in(here.at, 1).await;
    let mut accepted = Vec::new();
    for n in 0..15 {
        let id = format!("before-{n:02}");
        sender.send(2, &id).await;
        assert_eq!(sender.next("ack").await["status"], "queued");
        accepted.push(id);
    }
    nats.kill(1);
    nats.kill(2);
    let begun = Instant::now();
    for n in 0..3 {
        sender.send(2, &format!("during-{n}")).await;
    }
    for _ in 0..3 {
        let answer = sender.next("ack").await;
        assert_eq!(answer["status"], "rejected", "{answer}");
        assert_eq!(answer["reason"], "Relay storage unavailable", "{answer}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "refused after {:?}", begun.elapsed());
    let closed =
        wait_for(Duration::from_secs(30), "balancers go elsewhere", || ready(here.at), |code| *code == 503);
    closed.await;
    let degraded = health(here.at).await;
    assert_eq!(degraded["status"], "degraded", "{degraded}");

    nats.revive(1);
    nats.revive(2);
    let open =
        wait_for(Duration::from_mins(1), "it takes writes again", || ready(here.at), |code| *code == 200);
    open.await;
    // The session may have been sent elsewhere meanwhile.
    let mut sender = Client::log_in(there.at, 1).await;
    for n in 0..5 {
        let id = format!("after-{n}");
        // The streams find their leaders one after another; who is refused sends again.
        let begun = Instant::now();
        loop {
            sender.send(2, &id).await;
            if sender.next("ack").await["status"] == "queued" {
                break;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "{id} is refused for ever");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        accepted.push(id);
    }
    let mut recipient = Client::log_in(here.at, 2).await;
    let mut got = Vec::new();
    while got.len() < accepted.len() {
        let id = recipient.message_id().await;
        recipient.ack(&id).await;
        // A message whose acceptance was lost with the quorum may have been stored all the same.
        if !id.starts_with("during-") && !got.contains(&id) {
            got.push(id);
        }
    }
    assert_eq!(got, accepted, "all of it, in order");
    let admin = Admin::of(&mut here, a.path()).text("/admin/metrics").await;
    let retried = admin.lines().find_map(|line| line.strip_prefix("threadline_engine_retries_total "));
    let published =
        admin.lines().find_map(|line| line.strip_prefix("threadline_engine_publish_seconds_count "));
    assert!(published.is_some_and(|count| count != "0"), "{admin}");
    assert!(retried.is_some(), "{admin}");
}

/// What the directory says of an agent.
async fn online(at: SocketAddr, token: &str, n: u8) -> Option<bool> {
    let url = format!("http://{at}/v1/registry/agent/{}", address(n));
    let asked = reqwest::Client::new().get(url).bearer_auth(token);
    let answer = asked.send().await.expect("answers");
    let body: serde_json::Value = answer.json().await.expect("json");
    body["online"].as_bool()
}

/// All relays die with their agents logged in, and the engine forgets who was where: the directory must not show for
/// ever who was there at that moment.
#[tokio::test]
async fn after_a_crash_of_everything_nobody_is_shown_who_is_not_there() {
    let mut nats = Nats::start(1);
    let [a, b] = dirs();
    let (here, there) = (nats.relay(a.path()), nats.relay(b.path()));
    let watcher = Client::log_in(there.at, 3).await;
    let token = watcher.login["registry_token"].as_str().expect("a token").to_owned();
    let gone = Client::log_in_as(here.at, 1, Visibility::Public).await;
    let back = Client::log_in_as(here.at, 2, Visibility::Public).await;
    for n in [1, 2] {
        wait_for(
            PATIENCE,
            "the other relay shows it",
            || online(there.at, &token, n),
            |online| *online == Some(true),
        )
        .await;
    }
    here.kill();
    there.kill();
    drop((gone, back));
    nats.kill(0);
    nats.revive(0);
    let [c, d] = dirs();
    let (first, second) = (nats.relay(c.path()), nats.relay(d.path()));
    let _back = Client::log_in_as(second.at, 2, Visibility::Public).await;
    for relay in [&first, &second] {
        let within = Duration::from_mins(1);
        wait_for(within, "who is away", || online(relay.at, &token, 1), |online| *online == Some(false))
            .await;
        wait_for(within, "who is there", || online(relay.at, &token, 2), |online| *online == Some(true))
            .await;
    }
}
