//! Frames that a relay must refuse.

use anyhow::{Context, ensure};
use instar_tests::harness::{RawPeer, Received, Relay, World, isolated};
use serde_json::{Value, json};

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn bad_logins_are_refused() {
    isolated(bad_logins_are_refused, async {
        let world = World::new()?;
        let relay = Relay::start(&world, "").await?;

        let mut lenient = RawPeer::connect(&relay.url()).await?;
        let mut auth = lenient.auth()?;
        auth.as_object_mut().context("a frame")?.remove("metadata");
        lenient.send(&auth).await?;
        lenient.expect("auth_ok").await.context("auth without metadata")?;

        let cases = [
            ("a signature over something else", "signature", format!("{}==", "A".repeat(86))),
            ("an SPKI key", "publicKey", format!("{}=", "A".repeat(59))),
            ("the address of another key", "agentId", "0".repeat(32)),
            ("no base64", "publicKey", "%%%".to_owned()),
        ];
        for (what, field, value) in cases {
            let mut peer = RawPeer::connect(&relay.url()).await?;
            let mut auth = peer.auth()?;
            auth[field] = value.into();
            peer.send(&auth).await?;
            let refusal = peer.expect("auth_error").await.context(what)?;
            ensure!(refusal["code"] == "auth_failed", "{what}: {refusal}");
        }
        RawPeer::login(&relay.url()).await.context("a good login after all these")?;
        Ok(())
    });
}

#[test]
#[ignore = "drives the real binary: tests/run e2e"]
fn bad_frames_are_refused_and_the_session_stays() {
    isolated(bad_frames_are_refused_and_the_session_stays, async {
        let world = World::new()?;
        let relay = Relay::start(&world, "").await?;
        let mut peer = RawPeer::login(&relay.url()).await?;
        let mut other = RawPeer::login(&relay.url()).await?;
        let to = other.identity.fingerprint().to_string();

        let deep = format!("{{\"type\":\"message\",\"envelope\":{}{}}}", "[".repeat(40), "]".repeat(40));
        for bad in
            ["no json", "[]", "{}", "{\"type\":\"unheard-of\"}", "{\"type\":\"message\"}", deep.as_str()]
        {
            peer.send_text(bad).await?;
            let refusal = peer.expect("error").await.with_context(|| bad.to_owned())?;
            ensure!(refusal["code"] == "invalid_frame", "{bad}: {refusal}");
        }

        let mut forged = peer.message(&to, "forged", "from somebody else");
        forged["envelope"]["from"] = "f".repeat(32).into();
        rejected(&mut peer, &forged, "Sender fingerprint mismatch").await?;

        let large = peer.message(&to, "large", &"x".repeat(197_000));
        rejected(&mut peer, &large, "Envelope too large").await?;

        let good = peer.message(&to, "good", "hello");
        peer.send(&good).await?;
        let first = peer.expect("ack").await?;
        ensure!(first["status"] == "delivered" || first["status"] == "queued", "{first}");
        let arrived = other.expect("message").await?;
        ensure!(arrived["envelope"]["messageId"] == "good", "{arrived}");
        other.send(&json!({"type": "ack", "messageId": "good", "status": "delivered"})).await?;

        let mut replayed = good.clone();
        replayed["envelope"]["payload"] =
            peer.message(&to, "good", "other words")["envelope"]["payload"].clone();
        rejected(&mut peer, &replayed, "replay detected").await?;

        let mut shouting = RawPeer::login(&relay.url()).await?;
        shouting.send_text(&"x".repeat(300_000)).await?;
        shouting.expect("error").await?;
        let end = shouting.next().await?;
        ensure!(end == Received::Closed(Some(1009)), "a frame over the limit: {end:?}");
        RawPeer::login(&relay.url()).await.context("a good login after all these")?;
        Ok(())
    });
}

/// Sends a message that has to be rejected for this reason; acknowledgements of earlier ones may come between.
async fn rejected(peer: &mut RawPeer, frame: &Value, reason: &str) -> anyhow::Result<()> {
    peer.send(frame).await?;
    loop {
        let answer = peer.expect("ack").await.context(reason.to_owned())?;
        if answer["status"] == "rejected" {
            let given = answer["reason"].as_str().unwrap_or_default().to_owned();
            ensure!(given.contains(reason), "{reason} was expected: {answer}");
            return Ok(());
        }
        ensure!(answer["status"] == "delivered", "{reason} was expected: {answer}");
    }
}
