use serde_json::{Map, Value, json};
use threadline::Fingerprint;
use threadline::identity::Identity;
use threadline::invitation::{Invitation, Redemption, Wish};
use threadline::service::{Caller, Tool};
use threadline::v1::envelope::{self, Content, Header};
use threadline::v1::frames::ServerFrame;

use super::bench::{Node, Peer, payload, until};

/// A sealed control message of a peer that nobody heard of before.
pub fn sealed(
    from: &Identity,
    to: &Invitation,
    kind: &str,
    id: &str,
    metadata: Map<String, Value>,
) -> ServerFrame {
    seal_to(from, to.issuer_key.expect("a key"), kind, id, metadata)
}

fn seal_to(
    from: &Identity,
    to: threadline::identity::PublicIdentity,
    kind: &str,
    id: &str,
    metadata: Map<String, Value>,
) -> ServerFrame {
    let header = Header {
        from: from.fingerprint(),
        to: to.fingerprint(),
        thread_id: "invitation".parse().ok(),
        message_id: id.parse().expect("id"),
        timestamp: instar_state::time::now_ms(),
    };
    let content = Content { text: "invitation".into(), kind: Some(kind.into()), metadata: Some(metadata) };
    ServerFrame::Message(envelope::seal(from, &to, &header, &content, &mut rand::rng()).expect("sealed"))
}

pub async fn level(node: &Node, peer: Fingerprint) -> String {
    let arguments = json!({"action": "get", "fingerprint": peer});
    let profile = node.call(Caller::Owner, Tool::ThreadlineTrust, arguments).await.expect("profile");
    format!(
        "{} {}",
        profile["level"].as_str().unwrap_or_default(),
        profile["source"].as_str().unwrap_or_default()
    )
}

/// What the node answers to a redemption.
pub async fn result(relay: &mut super::bench::Relay, peer: &Peer, issuer: &Invitation) -> Value {
    let envelope = relay.message().await;
    let key = issuer.issuer_key.expect("a key");
    let authentic =
        envelope::authenticate(&envelope, &peer.fingerprint(), Some(&key), instar_state::time::now_ms())
            .expect("sealed to the peer");
    let content = authentic.open(&peer.0).expect("opens");
    assert_eq!(content.kind.as_deref(), Some("invitation-result"));
    Value::Object(content.metadata.expect("members"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_an_invitation_becomes_verified_once() {
    let node = Node::start().await;
    let mut relay = node.relay().await;
    let refused = node.mesh.issue_invitation(&Caller::Local, Wish::default(), None).await;
    assert_eq!(refused.expect_err("not the owner").code, "owner-required");
    let issued = node.mesh.issue_invitation(&Caller::Owner, Wish::default(), None).await.expect("issued");
    let token = Invitation::from_shared(issued["token"].as_str().expect("token")).expect("readable");

    let (peer, second) = (Peer::new(21), Peer::new(22));
    let redemption = Redemption::new(&peer.0, token.clone());
    let clear = Peer::new(23).says(node.us(), "invitation", "c1", "invitation");
    relay.send(&clear).await;
    relay.taken("c1").await;

    let members = redemption.to_metadata();
    relay.send(&sealed(&peer.0, &token, "invitation-redeem", "r1", members.clone())).await;
    let answer = result(&mut relay, &peer, &token).await;
    assert_eq!((&answer["ok"], &answer["level"]), (&json!(true), &json!("verified")), "{answer}");
    assert_eq!(answer["name"], "node");
    assert_eq!(level(&node, peer.fingerprint()).await, "verified invitation");

    relay.send(&sealed(&peer.0, &token, "invitation-redeem", "r2", members.clone())).await;
    assert_eq!(result(&mut relay, &peer, &token).await["ok"], true, "a lost answer is repeated");
    relay.send(&sealed(&second.0, &token, "invitation-redeem", "r3", members)).await;
    let stolen = result(&mut relay, &second, &token).await;
    assert_eq!((&stolen["ok"], &stolen["code"]), (&json!(false), &json!("bad-signature")));
    let own = Redemption::new(&second.0, token.clone()).to_metadata();
    relay.send(&sealed(&second.0, &token, "invitation-redeem", "r4", own)).await;
    assert_eq!(result(&mut relay, &second, &token).await["code"], "exhausted");
    assert_eq!(level(&node, second.fingerprint()).await, "untrusted ");

    let list = node.mesh.invitations().await.expect("list");
    assert_eq!(list["invitations"][0]["status"], "exhausted");
    assert_eq!(list["invitations"][0]["redeemedBy"], json!([peer.fingerprint()]));
    let id = issued["tokenId"].as_str().expect("id");
    let revoked = node.mesh.revoke_invitation(&Caller::Local, id, true).await.expect("revoked");
    assert_eq!(revoked["status"], "revoked");
    assert!(level(&node, peer.fingerprint()).await.starts_with("untrusted"));
    let audit = node.mesh.audit(20, Some("invitation-redeem".into()), None).await.expect("audit");
    assert_eq!(audit["count"], 4, "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_invitation_is_redeemed_over_restarts_until_it_is_answered() {
    let mut node = Node::start().await;
    let issuer = Peer::new(31);
    let token = Invitation::issue(
        &issuer.0,
        Wish { life_ms: Some(3_600_000), ..Wish::default() },
        instar_state::time::now_ms(),
        &mut rand::rng(),
    )
    .expect("issued");
    let shared = token.to_shared();
    let refused = node.mesh.accept_invitation(&Caller::Local, &shared).await.expect_err("not the owner");
    assert_eq!(refused.code, "owner-required");
    let broken = node.mesh.accept_invitation(&Caller::Owner, &shared[..60]).await.expect_err("cut off");
    assert_eq!(broken.code, "invitation-invalid");
    let accepted = node.mesh.accept_invitation(&Caller::Owner, &shared).await.expect("accepted");
    assert_eq!((&accepted["status"], &accepted["level"]), (&json!("pending"), &json!("verified")));
    node.restart().await;

    let mut relay = node.relay().await;
    let envelope = relay.message().await;
    let sender = envelope.sender_key().expect("the sender's key is in the envelope");
    let authentic =
        envelope::authenticate(&envelope, &issuer.fingerprint(), Some(&sender), instar_state::time::now_ms())
            .expect("sealed to the issuer");
    let content = authentic.open(&issuer.0).expect("opens");
    assert_eq!(content.kind.as_deref(), Some("invitation-redeem"));
    let redemption = Redemption::from_metadata(&content.metadata.expect("members")).expect("redemption");
    assert!(redemption.proves(&sender) && redemption.invitation.verifies(issuer.0.public()));

    let forged = Peer::new(32);
    let mut members = Map::new();
    members.insert("ok".into(), false.into());
    members.insert("tokenId".into(), token.token_id.as_str().into());
    relay.send(&seal_to(&forged.0, sender, "invitation-result", "f1", members.clone())).await;
    relay.taken("f1").await;
    members.insert("ok".into(), true.into());
    members.insert("name".into(), "carol".into());
    relay.send(&seal_to(&issuer.0, sender, "invitation-result", "a1", members)).await;
    relay.taken("a1").await;
    until("the answer is noted", || async {
        let list = node.mesh.invitations().await.map_err(|e| e.to_string())?;
        let row = &list["accepted"][0];
        (row["status"] == "joined" && row["name"] == "carol").then_some(()).ok_or(row.to_string())
    })
    .await;
    let again = node.mesh.accept_invitation(&Caller::Owner, &shared).await.expect("accepted");
    assert_eq!(again["status"], "joined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_installs_get_a_plain_acknowledgement_where_the_owner_wants_it() {
    let node = Node::with(|config| config.auto_ack_v1 = true).await;
    let mut relay = node.relay().await;
    let peer = Peer::new(41);
    node.trust(&peer, "verified").await;
    for (id, text) in
        [("q1", "What is the time?"), ("q2", "And the day?"), ("s1", "Message received. Thanks")]
    {
        relay.send(&peer.says(node.us(), "t1", id, text)).await;
    }
    let acknowledgement = relay.message().await;
    assert_eq!(payload(&acknowledgement), json!({"text": "Message received.", "type": "status"}));
    assert_eq!(acknowledgement.text("threadId"), Some("t1"));
    relay.send(&peer.says(node.us(), "t2", "q3", "In another thread?")).await;
    let second = relay.message().await;
    assert_eq!(second.text("threadId"), Some("t2"), "one per thread, none for an acknowledgement");
}
