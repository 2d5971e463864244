//! Two rooms that speak v2 with a scripted relay, and nothing else.

use std::path::Path;
use std::sync::Arc;

use instar_mesh::MeshConfig;
use serde_json::{Value, json};
use threadline::Fingerprint;
use threadline::identity::PublicIdentity;
use threadline::service::{Caller, SessionCaller, Threadline as _, Tool, ToolCall};
use threadline::v2::session::Protocol;
use threadline_net::sealed::RelaySetting;
use threadline_net::store::{Direction, KnownPeer, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bench::{LIMIT, config, open_as, until};
use super::sealed_relay::TestRelay;
use super::sessions::Sessions;

/// A configuration that lists the relay.
fn listed(relay: &TestRelay) -> MeshConfig {
    let url = relay.relay.name.replace("/v2/connect", "/v1/connect");
    let mut config = config(&url);
    let key = Some(relay.relay.key);
    config.relays = vec![RelaySetting { url, protocol: Protocol::Auto, key, is_ours: false }];
    config
}

struct Side {
    mesh: Arc<instar_mesh::Mesh>,
    sessions: Arc<Sessions>,
    dir: tempfile::TempDir,
    key: PublicIdentity,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Side {
    async fn new(name: &str, relay: &TestRelay) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(dir.path().join("agent/src")).expect("project");
        let sessions = Arc::new(Sessions::default());
        let (home, config) = (dir.path().join("home"), listed(relay));
        let opened = open_as(dir.path(), &home, name, 0, config, Arc::clone(&sessions)).await;
        let health = opened.0.health();
        let key = hex::decode(health["identityPub"].as_str().expect("a key")).expect("hex");
        Self {
            mesh: opened.0,
            sessions,
            dir,
            key: PublicIdentity::from_bytes(&key).expect("key"),
            cancel: CancellationToken::new(),
            task: None,
        }
    }

    fn store(&self) -> Store {
        let path = self.dir.path().join("agent/.instar/state/threadline.sqlite");
        assert!(path.exists(), "{}", path.display());
        Store::open(Path::new(&path)).expect("store")
    }

    /// As if a relay had told about the other agent.
    async fn knows(&self, other: &Self, name: &str) {
        let store = self.store();
        let peer = KnownPeer {
            fingerprint: other.key.fingerprint(),
            name: name.into(),
            capabilities: vec!["tl-e2e".into(), "tl2".into()],
            framework: "instar".into(),
            status: "online".into(),
            first_seen: 1,
            last_seen: 1,
            machine: None,
            sources: vec!["relay".into()],
        };
        store.merge_known(vec![peer]).await.expect("known");
        store.pin_key(other.key.fingerprint(), other.key, "relay", 1).await.expect("pinned");
        store.close();
    }

    fn run(&mut self) {
        let (mesh, cancel) = (Arc::clone(&self.mesh), self.cancel.clone());
        self.task = Some(tokio::spawn(async move { mesh.run(cancel).await }));
    }

    async fn stop(&mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(LIMIT, task).await.expect("the room stops").expect("no panic");
        }
    }

    async fn call(&self, caller: Caller, tool: Tool, arguments: Value) -> Value {
        let call = ToolCall::parse(tool, arguments).expect("arguments");
        let answer = tokio::time::timeout(LIMIT, self.mesh.call(caller, call)).await;
        answer.expect("in time").expect("an answer")
    }

    async fn trusts(&self, peer: Fingerprint) {
        let arguments = json!({"action": "grant", "fingerprint": peer, "level": "verified"});
        self.call(Caller::Owner, Tool::ThreadlineTrust, arguments).await;
    }

    /// State of the newest message of ours.
    async fn sent(&self) -> String {
        let outbox = self.mesh.outbox(5).await.expect("outbox");
        outbox["messages"][0]["state"].as_str().unwrap_or_default().to_owned()
    }

    async fn until_sent_is(&self, wanted: &str) {
        until(&format!("our message is {wanted}"), || async {
            let state = self.sent().await;
            (state == wanted).then_some(()).ok_or(state)
        })
        .await;
    }

    async fn received(&self, text: &str) -> Value {
        until(&format!("{text} is here"), || async {
            let inbox = self.mesh.inbox(20).await.expect("inbox");
            let all = inbox["messages"].as_array().expect("list").clone();
            all.into_iter().find(|m| m["preview"] == text).ok_or(inbox.to_string())
        })
        .await
    }
}

async fn pair(seed: u8) -> (TestRelay, Side, Side) {
    let relay = TestRelay::start(seed).await;
    let (mut alice, mut bob) = (Side::new("alice", &relay).await, Side::new("bob", &relay).await);
    alice.knows(&bob, "bob").await;
    bob.knows(&alice, "alice").await;
    alice.run();
    bob.run();
    for side in [&alice, &bob] {
        let keys = relay.has_keys_of((&side.key).into());
        tokio::time::timeout(LIMIT, keys).await.expect("keys in time");
    }
    (relay, alice, bob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_mail_goes_through_the_one_pipeline_and_is_receipted() {
    let (_relay, alice, bob) = pair(90).await;
    bob.trusts(alice.key.fingerprint()).await;
    let sent = alice
        .call(
            Caller::Owner,
            Tool::ThreadlineSend,
            json!({"agentId": "bob", "message": "Shall we start?", "waitForReply": false}),
        )
        .await;
    assert_eq!((&sent["encryption"], &sent["deliveryPath"]), (&json!("e2e"), &json!("relay")), "{sent}");
    bob.received("Shall we start?").await;
    alice.until_sent_is("accepted").await;
    let start = until("a session", || async { bob.sessions.starts().pop().ok_or("none".into()) }).await;
    let thread = sent["threadId"].as_str().expect("thread");
    let conversation = format!("threadline:{}:{thread}", alice.key.fingerprint()).parse().expect("key");
    assert_eq!(start.conversation, conversation);
    let live = instar_state::ports::PeerSessions::live(&*bob.sessions, &conversation).expect("live");
    let session = Caller::Session(SessionCaller {
        id: live.id.to_string(),
        bound: Some(threadline::ThreadKey {
            peer: alice.key.fingerprint(),
            thread: thread.parse().expect("id"),
        }),
        tainted: true,
    });
    let answer = json!({"agentId": alice.key.fingerprint(), "message": "At noon.",
        "inReplyTo": sent["messageId"], "waitForReply": false});
    bob.call(session, Tool::ThreadlineSend, answer).await;
    alice.received("At noon.").await;
    // The reply names the message that it answers.
    alice.until_sent_is("delivered").await;
    let status = alice.mesh.status().await.expect("status");
    assert_eq!(status["v2"]["sessions"][0]["state"], "ready", "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_waits_for_the_owner_and_hears_so() {
    let (_relay, alice, bob) = pair(91).await;
    let hello = json!({"agentId": "bob", "message": "You do not know me", "waitForReply": false});
    alice.call(Caller::Owner, Tool::ThreadlineSend, hello).await;
    alice.until_sent_is("accepted").await;
    let approval = until("an approval", || async {
        let approvals = bob.mesh.approvals(None, None).await.expect("approvals");
        approvals["approvals"][0]["id"].as_str().map(str::to_owned).ok_or(approvals.to_string())
    })
    .await;
    assert!(bob.sessions.starts().is_empty());
    bob.mesh.decide(&Caller::Owner, &approval, instar_mesh::Decision::Reject).await.expect("decided");
    alice.until_sent_is("rejected").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_the_peer_is_away_arrives_when_it_is_back() {
    let (relay, mut alice, mut bob) = pair(92).await;
    bob.trusts(alice.key.fingerprint()).await;
    let first = json!({"agentId": "bob", "message": "one", "waitForReply": false});
    let sent = alice.call(Caller::Owner, Tool::ThreadlineSend, first).await;
    bob.received("one").await;
    alice.until_sent_is("accepted").await;
    bob.stop().await;
    let second = json!({"agentId": "bob", "message": "two", "threadId": sent["threadId"],
        "waitForReply": false});
    alice.call(Caller::Owner, Tool::ThreadlineSend, second).await;
    alice.until_sent_is("accepted").await;
    let again = listed(&relay);
    let (dir, home) = (bob.dir.path().to_owned(), bob.dir.path().join("home"));
    bob.mesh = open_as(&dir, &home, "bob", 0, again, Arc::clone(&bob.sessions)).await.0;
    bob.cancel = CancellationToken::new();
    bob.run();
    bob.received("two").await;
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_owners_see_one_safety_number() {
    let (_relay, alice, bob) = pair(93).await;
    let ours = alice.mesh.safety(&Caller::Owner, "bob").await.expect("a number");
    let theirs = bob.mesh.safety(&Caller::Owner, "alice").await.expect("a number");
    assert_eq!(ours["number"], theirs["number"]);
    assert_eq!(ours["number"].as_str().map(str::len), Some(60));
    assert!(ours["verifiedAt"].is_null());
    let local = alice.mesh.safety(&Caller::Local, "bob").await;
    assert!(local.is_err(), "for the owner alone");
    let confirmed = alice.mesh.confirm_safety(&Caller::Owner, "bob", true).await.expect("confirmed");
    assert!(confirmed["verifiedAt"].is_string());
    let bobs = alice.mesh.agent(&bob.key.fingerprint().to_string()).await.expect("bob");
    let (level, source) = (&bobs["trustLevel"], &bobs["profile"]["source"]);
    assert_eq!((level, source), (&json!("trusted"), &json!("mutual-verified")), "{bobs}");
    bob.mesh.confirm_safety(&Caller::Owner, "alice", false).await.expect("noted");
    let alices = bob.mesh.agent(&alice.key.fingerprint().to_string()).await.expect("alice");
    assert_eq!((&alices["trustLevel"], &alices["blocked"]), (&json!("untrusted"), &json!(true)));
}

/// A text of this many bytes, no two parts of which are alike.
fn long_text(bytes: usize) -> String {
    let mut text: String = (0..bytes / 5).flat_map(|n| [n.to_string(), "\n".into()]).collect();
    text.truncate(bytes);
    text
}

impl Side {
    async fn sends(&self, text: &str) -> Value {
        let message = json!({"agentId": "bob", "message": text, "waitForReply": false});
        self.call(Caller::Owner, Tool::ThreadlineSend, message).await
    }

    /// The text of this message of alice, once it is stored.
    async fn text_of(&self, sent: &Value, from: &Self) -> String {
        let id: threadline::MessageId = sent["messageId"].as_str().expect("an id").parse().expect("an id");
        let peer = from.key.fingerprint();
        until("the text is stored", || async {
            let store = self.store();
            let message = store.message(peer, id.clone(), Direction::In).await.expect("read");
            store.close();
            message.and_then(|message| message.body).ok_or("not there".into())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_text_arrives_whole_and_in_its_place() {
    let (relay, alice, bob) = pair(94).await;
    bob.trusts(alice.key.fingerprint()).await;
    let text = long_text(400_000);
    let sent = alice.sends(&text).await;
    assert_eq!(sent["encryption"], "e2e", "{sent}");
    let after = json!({"agentId": "bob", "message": "that was long", "threadId": sent["threadId"],
        "waitForReply": false});
    let after = alice.call(Caller::Owner, Tool::ThreadlineSend, after).await;
    bob.text_of(&after, &alice).await;
    let inbox = bob.mesh.inbox(20).await.expect("inbox");
    assert_eq!(inbox["messages"].as_array().map(Vec::len), Some(2), "what came after it waited for it");
    assert!(bob.text_of(&sent, &alice).await == text);

    // The relay damages the first copy of another one: it is asked for again.
    relay.disk.lock().expect("lock").damages = 1;
    let text = long_text(70_000);
    let sent = alice.sends(&text).await;
    assert!(bob.text_of(&sent, &alice).await == text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_is_gone_is_told_to_both() {
    let (relay, alice, bob) = pair(95).await;
    bob.trusts(alice.key.fingerprint()).await;
    // No copy is whole until the text is gone.
    relay.disk.lock().expect("lock").damages = u32::MAX;
    let sent = alice.sends(&long_text(70_000)).await;
    alice.until_sent_is("accepted").await;
    let store = alice.store();
    let thread = sent["threadId"].as_str().expect("a thread").parse().expect("an id");
    let key = threadline::ThreadKey { peer: bob.key.fingerprint(), thread };
    store.delete_thread(key, 1).await.expect("deleted");
    store.close();
    until("bob's owner is told", || async {
        let inbox = bob.mesh.inbox(20).await.expect("inbox");
        let refused = bob.store();
        let depth = refused.spool_depth().await.expect("depth");
        refused.close();
        (depth.rows == 0).then_some(()).ok_or(format!("{inbox}"))
    })
    .await;
    assert!(bob.mesh.inbox(20).await.expect("inbox")["messages"].as_array().expect("list").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_not_make_us_fetch() {
    let (_relay, alice, bob) = pair(96).await;
    alice.sends(&long_text(70_000)).await;
    alice.until_sent_is("rejected").await;
    assert!(
        bob.mesh.approvals(None, None).await.expect("approvals")["approvals"]
            .as_array()
            .expect("list")
            .is_empty()
    );
}
