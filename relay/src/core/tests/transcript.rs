//! The conversation recorded with an existing relay, with the differences that are meant.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use super::bench::Bench;
use crate::core::ConnId;
use crate::registry::query::sanitise;
use crate::token;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../threadline/vectors/threadline-v1.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("vectors")).expect("json")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn signer(vectors: &Value, name: &str) -> SigningKey {
    let seed = hex::decode(text(&vectors["identities"][name]["ed25519Seed"])).expect("hex");
    SigningKey::from_bytes(seed.as_slice().try_into().expect("32 bytes"))
}

struct Replay {
    bench: Bench,
    vectors: Value,
    conns: BTreeMap<String, ConnId>,
    nonces: BTreeMap<String, String>,
}

impl Replay {
    fn open(&mut self, name: &str) {
        let conn = self.bench.open();
        let challenge = self.bench.got_only(conn, "challenge").remove(0);
        assert_eq!(STANDARD.decode(text(&challenge["nonce"])).map(|n| n.len()), Ok(32));
        self.nonces.insert(name.to_owned(), text(&challenge["nonce"]).to_owned());
        self.conns.insert(name.to_owned(), conn);
    }

    fn say(&mut self, name: &str, mut frame: Value) {
        let forged = frame["signature"].as_str().is_some_and(|s| s.starts_with("AAAA"));
        if frame["type"] == "auth" && !forged {
            let key = signer(&self.vectors, name.trim_end_matches("-2"));
            let signature = key.sign(self.nonces[name].as_bytes());
            frame["signature"] = STANDARD.encode(signature.to_bytes()).into();
        }
        let conn = self.conns[name];
        self.bench.frame(conn, &frame);
    }

    /// What each client hears in this step, pings left out.
    fn heard(&mut self) -> BTreeMap<String, Vec<Value>> {
        let conns = self.conns.clone();
        let mut heard = BTreeMap::new();
        for (name, conn) in conns {
            let frames: Vec<Value> =
                self.bench.got(conn).into_iter().filter(|f| f["type"] != "ping").collect();
            if !frames.is_empty() {
                heard.insert(name, frames);
            }
        }
        heard
    }
}

/// Whether a frame is the recorded one: free texts, random ids and members that only we send may differ.
fn assert_like(step: &str, recorded: &Value, ours: &Value) {
    match recorded {
        Value::Object(members) => {
            for (name, value) in members {
                let random = ["sessionId", "registry_token", "nonce"].contains(&name.as_str());
                if random || value == "<free text>" {
                    assert!(ours[name].is_string(), "{step}: {name}");
                } else {
                    assert_like(step, value, &ours[name]);
                }
            }
            let extra = ["registry_notice", "identityKey"];
            for name in ours.as_object().expect("an object").keys() {
                assert!(members.contains_key(name) || extra.contains(&name.as_str()), "{step}: extra {name}");
            }
        }
        Value::Array(items) => {
            assert_eq!(items.len(), ours.as_array().map_or(0, Vec::len), "{step}: {ours}");
            items.iter().enumerate().for_each(|(i, item)| assert_like(step, item, &ours[i]));
        }
        other => assert_eq!(other, ours, "{step}"),
    }
}

#[test]
fn the_recorded_conversation_goes_the_same_way_but_for_what_is_meant() {
    let vectors = vectors();
    let bench = Bench::with(|config| config.sybil.aging_s = 0);
    let mut replay =
        Replay { bench, vectors: vectors.clone(), conns: BTreeMap::new(), nonces: BTreeMap::new() };
    let frames = vectors["relayTranscript"]["frames"].as_array().expect("frames").clone();
    let steps = frames.split_inclusive_at_steps();
    let mut compared = 0;
    for (step, frames) in steps {
        let mut recorded: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for entry in &frames {
            if let Some(name) = entry["close"].as_str() {
                let code = entry["code"].as_u64().expect("code");
                assert_eq!(u64::from(replay.bench.closes[&replay.conns[name]]), code, "{step}");
            } else if entry["frame"]["type"] == "challenge" {
                replay.open(text(&entry["to"]));
            } else if entry["from"] == "relay" {
                recorded.entry(text(&entry["to"]).to_owned()).or_default().push(entry["frame"].clone());
            } else if let Some(raw) = entry["rawText"].as_str() {
                let conn = replay.conns[text(&entry["from"])];
                replay.bench.text(conn, raw);
            } else if entry["from"].is_string() {
                replay.say(text(&entry["from"]), entry["frame"].clone());
            }
        }
        let mut ours = replay.heard();
        match step.as_str() {
            // Two-step acknowledgement: nothing is delivered before the recipient has said so.
            "bob connects unlisted with registry opt-in; gets the queued message; alice gets delivered ack" =>
            {
                let delivered = recorded.get_mut("alice").and_then(Vec::pop).expect("ack");
                assert_eq!(delivered["status"], "delivered");
            }
            "bob acks" => {
                let heard = ours.remove("alice").expect("alice hears");
                assert_eq!(heard[0]["status"], "delivered");
            }
            "alice sends sealed message" => {
                let delivered = recorded.remove("alice").expect("ack");
                let conn = replay.conns["bob"];
                replay.bench.frame(conn, &json!({"type": "pong"}));
                replay.bench.ack(conn, text(&delivered[0]["messageId"]));
                assert_eq!(replay.heard()["alice"], delivered);
            }
            // A repeated identical message gets its first answer again.
            "alice repeats the same messageId" => {
                recorded.remove("alice");
                assert_eq!(ours.remove("alice").expect("ack")[0]["status"], "delivered");
            }
            // A refused socket is closed.
            "carol tries again on the same socket" => {
                recorded.remove("carol");
                assert_eq!(replay.bench.closes[&replay.conns["carol"]], 4002);
            }
            // Only stored messages count: the recorded relay also counted the repeat and the forgery.
            "alice stays below the new-agent limit, then hits it" => {
                let refusal = recorded.get_mut("alice-2").and_then(Vec::pop).expect("refusal");
                assert_eq!(ours.get_mut("alice-2").and_then(Vec::pop).expect("ack")["status"], "queued");
                let last = frames.iter().rfind(|f| f["from"] == "alice-2").expect("frame");
                let mut answers = Vec::new();
                for n in 0..5 {
                    let mut frame = last["frame"].clone();
                    frame["envelope"]["messageId"] = format!("more-{n}").into();
                    replay.say("alice-2", frame);
                    answers.extend(replay.heard().remove("alice-2").expect("ack"));
                }
                let refused: Vec<&Value> = answers.iter().filter(|a| a["status"] == "rejected").collect();
                assert_eq!(refused.first().expect("limit")["reason"], refusal["reason"]);
            }
            _ => {}
        }
        assert_eq!(
            recorded.iter().map(|(n, f)| (n, f.len())).collect::<Vec<_>>(),
            ours.iter().map(|(n, f)| (n, f.len())).collect::<Vec<_>>(),
            "{step}: {ours:?}"
        );
        for (name, frames) in &recorded {
            for (recorded, ours) in frames.iter().zip(&ours[name]) {
                assert_like(&step, recorded, ours);
                compared += 1;
            }
        }
    }
    assert!(compared >= 19, "{compared}");
}

trait Steps {
    fn split_inclusive_at_steps(&self) -> Vec<(String, Vec<Value>)>;
}

impl Steps for Vec<Value> {
    fn split_inclusive_at_steps(&self) -> Vec<(String, Vec<Value>)> {
        let mut steps: Vec<(String, Vec<Value>)> = Vec::new();
        for entry in self {
            if let Some(step) = entry["step"].as_str() {
                steps.push((step.to_owned(), Vec::new()));
            } else if let Some((_, entries)) = steps.last_mut() {
                entries.push(entry.clone());
            }
        }
        steps
    }
}

#[test]
fn the_recorded_login_and_token_are_the_same_bytes() {
    let vectors = vectors();
    let vector = &vectors["registryToken"];
    let seed = vectors["identities"]["relay"]["ed25519Seed"].as_str();
    let subject = STANDARD.decode(text(&vector["subject"])).expect("base64");
    let key: [u8; 32] = subject.as_slice().try_into().expect("32 bytes");
    let public: [u8; 32] = hex::decode(text(&vector["relayPublic"])).expect("hex").try_into().expect("32");
    let public = ed25519_dalek::VerifyingKey::from_bytes(&public).expect("key");
    let (token, issuer) = (text(&vector["token"]), text(&vector["relayId"]));
    let seen = token::verify(&public, issuer, token, 1_768_478_400).expect("valid");
    assert_eq!(seen.key, key);
    assert_eq!(token::verify(&public, issuer, token, 1_768_482_000), None);
    if let Some(seed) = seed {
        let seed: [u8; 32] = hex::decode(seed).expect("hex").try_into().expect("32");
        let ours = token::issue(&SigningKey::from_bytes(&seed), issuer, &key, 1_768_478_400, None);
        assert_eq!(ours, token);
    }
}

#[test]
fn the_recorded_queries_are_cleaned_the_same_way() {
    for case in vectors()["registryQuerySanitising"].as_array().expect("cases") {
        assert_eq!(sanitise(text(&case["q"])), text(&case["fts"]), "{case}");
    }
}
