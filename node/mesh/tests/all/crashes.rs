//! What a crash, a full disk or a broken file leaves between two steps: nothing is lost, doubled or decided without effect.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use instar_mesh::{ApproveOption, Decision};
use serde_json::{Value, json};
use threadline::service::{Caller, SessionCaller, Tool};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::bench::{Node, Peer};

const APPROVE: Decision = Decision::Approve(ApproveOption::Message);

/// Makes that nobody can write the file, and gives back what it held.
fn block(file: &Path) -> Option<Vec<u8>> {
    let held = std::fs::read(file).ok();
    let _ = std::fs::remove_file(file);
    std::fs::create_dir(file).expect("directory");
    held
}

fn unblock(file: &Path, held: Option<Vec<u8>>) {
    std::fs::remove_dir(file).expect("directory");
    if let Some(held) = held {
        std::fs::write(file, held).expect("write");
    }
}

/// The node died after the effect and before the decision was stored.
fn undecide(node: &Node, id: &str) {
    let sql = "UPDATE approvals SET status = 'pending', decided_at = NULL, decided_by = NULL WHERE id = ?1";
    assert_eq!(node.database().execute(sql, [id]).expect("undecided"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_could_not_be_switched_on_is_still_asked_about() {
    let mut node = Node::start().await;
    let asked = node.call(Caller::Local, Tool::ThreadlineRelay, json!({"action": "enable"})).await;
    assert_eq!(asked.expect("asked")["status"], "pending_confirmation");
    let id = node.question().await;
    let held = block(&node.switch());
    assert_eq!(node.decide(&id, APPROVE).await.expect_err("not written").code, "config-not-written");
    assert_eq!(node.question().await, id, "still asked");
    unblock(&node.switch(), held);
    node.decide(&id, APPROVE).await.expect("switched");
    assert_eq!(std::fs::read_to_string(node.switch()).expect("set"), "true");

    undecide(&node, &id);
    node.restart().await;
    node.decide(&node.question().await, APPROVE).await.expect("again");
    let twice = node.decide(&id, APPROVE).await.expect_err("once");
    assert_eq!(twice.code, "already-decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_that_could_not_be_written_is_still_asked_about() {
    let mut node = Node::start().await;
    let peer = Peer::new(51);
    node.trust(&peer, "verified").await;
    let id = instar_state::ids::SessionId::random().to_string();
    let session = Caller::Session(SessionCaller { id, bound: None, tainted: false });
    let wish = json!({"action": "grant", "fingerprint": peer.fingerprint(), "level": "trusted"});
    let asked = node.call(session, Tool::ThreadlineTrust, wish).await.expect("asked");
    assert_eq!(asked["status"], "pending_confirmation", "{asked}");
    let id = node.question().await;
    let profiles = node.file("threadline/trust-profiles.json");
    let held = block(&profiles);
    assert_eq!(node.decide(&id, APPROVE).await.expect_err("not written").code, "storage-failed");
    let level = async |node: &Node| {
        let agent = node.mesh.agent(&peer.fingerprint().to_string()).await.expect("agent");
        agent["trustLevel"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(level(&node).await, "verified");
    assert_eq!(node.question().await, id, "still asked");
    unblock(&profiles, held);
    node.decide(&id, APPROVE).await.expect("raised");
    assert_eq!(level(&node).await, "trusted");

    undecide(&node, &id);
    node.restart().await;
    node.decide(&node.question().await, APPROVE).await.expect("again");
    assert_eq!(level(&node).await, "trusted");
}

/// Counts errors in the log of its thread.
#[derive(Clone, Default)]
struct Errors(Arc<AtomicUsize>);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// On one thread, so that its log is all there is.
#[tokio::test]
async fn a_store_that_takes_nothing_is_tried_seldom_and_loses_nothing() {
    let errors = Errors::default();
    let _counting = tracing::subscriber::set_default(errors.clone());
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let peer = Peer::new(52);
    node.trust(&peer, "verified").await;
    let full = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END;";
    let stuck = format!(
        "CREATE TRIGGER stuck_messages BEFORE INSERT ON messages {full}
         CREATE TRIGGER stuck_spool BEFORE UPDATE ON spool {full}"
    );
    node.database().execute_batch(&stuck).expect("triggers");
    for id in ["m1", "m2"] {
        relay.send(&peer.says(node.us(), "t1", id, &format!("Question {id}?"))).await;
        relay.taken(id).await;
    }
    // That nothing happens takes time to see.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = errors.0.load(Ordering::SeqCst);
    assert!((1..=12).contains(&seen), "{seen} errors in 3 s");
    node.database().execute_batch("DROP TRIGGER stuck_messages; DROP TRIGGER stuck_spool").expect("freed");
    for id in ["m1", "m2"] {
        node.until_state(id, "queued").await;
    }
}

/// Tokens, levels and answers of an invitation whose redeemer was not raised when the node died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redemption_that_a_crash_cut_off_is_finished_and_uses_its_token_once() {
    use threadline::invitation::{Invitation, Redemption, Wish};

    let mut node = Node::start().await;
    let mut relay = node.relay().await;
    let issued = node.mesh.issue_invitation(&Caller::Owner, Wish::default(), None).await.expect("issued");
    let token = Invitation::from_shared(issued["token"].as_str().expect("token")).expect("readable");
    let peer = Peer::new(53);
    let profiles = node.file("threadline/trust-profiles.json");
    let held = block(&profiles);
    let members = Redemption::new(&peer.0, token.clone()).to_metadata();
    relay.send(&super::invitations::sealed(&peer.0, &token, "invitation-redeem", "r1", members)).await;
    relay.taken("r1").await;
    let used = async |node: &Node| {
        let list: Value = node.mesh.invitations().await.expect("list");
        list["invitations"][0]["uses"].clone()
    };
    super::bench::until("the use is committed", || async {
        let uses = used(&node).await;
        (uses == 1).then_some(()).ok_or(uses.to_string())
    })
    .await;
    assert_eq!(super::invitations::level(&node, peer.fingerprint()).await, "untrusted ");

    drop(relay);
    node.stop().await;
    unblock(&profiles, held);
    node.restart().await;
    super::bench::until("the redeemer is raised", || async {
        let level = super::invitations::level(&node, peer.fingerprint()).await;
        (level == "verified invitation").then_some(()).ok_or(level)
    })
    .await;
    let mut relay = node.relay().await;
    let answer = super::invitations::result(&mut relay, &peer, &token).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(used(&node).await, 1, "once");
}
