use super::*;
use crate::testing::{hex32, text, vectors};
use proptest::prelude::*;

const T0: i64 = 1_768_478_400_000;

fn of(name: &str) -> Identity {
    Identity::from_seed(&hex32(&vectors()["identities"][name]["ed25519Seed"]))
}

fn token(wish: Wish) -> Invitation {
    Invitation::issue(&of("alice"), wish, T0, &mut rand::rng()).expect("issued")
}

#[test]
fn the_recorded_tokens() {
    let (alice, bob, carol) = (of("alice"), of("bob"), of("carol"));
    for case in vectors()["invitations"]["cases"].as_array().expect("cases") {
        let name = text(&case["name"]);
        let mut token = Invitation::from_json(&case["token"]).expect(name);
        assert_eq!(token.signed_text(), text(&case["signedString"]), "{name}");
        assert_eq!(hex::encode(token.statement().0), text(&case["signedDigest"]), "{name}");
        assert_eq!(alice.sign(&Purpose::Invitation(&token.statement())), token.signature, "{name}");
        assert_eq!(token.to_json(), case["token"], "{name}");
        assert!(!token.verifies(carol.public()), "{name}");
        assert_eq!(token.check(&bob.fingerprint(), T0), Err(InvitationError::NoKey));
        token.issuer_key = Some(*alice.public());
        for (who, member) in [(&bob, "validForBob"), (&carol, "validForCarol")] {
            let valid = token.check(&who.fingerprint(), T0).is_ok();
            assert_eq!(valid, case[member]["valid"], "{name} {member}");
        }
    }
}

#[test]
fn the_recorded_redemption() {
    let vector = &serde_json::from_str::<Value>(r#"{
        "bytes": "9501c41003a107bff3ce10be1d70dd18e74bc099c4203a3bec22ee969ae7128e720c100dd117ccaa5bbde59055b8dbec9e8327776f79c420c854e0621f8f0fcbd52e3cf83c4d11cc2ebec70331919bcc7400b0deda0b3cb5c42029acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7",
        "sig": "0506904a32ef4e4e602e8e6c6fc6bb3f100b6e2aa6f1aa835a107276b7e72b43479e05086fdf2e9a0b96961925db6d7bdca392820bc3bd109bb8ba1e86dab10a"
    }"#).expect("JSON");
    let mut token = token(Wish::default());
    let hex_of = |range: std::ops::Range<usize>| {
        let bytes = hex::decode(text(&vector["bytes"])).expect("hex");
        bytes.get(range).expect("inside").to_vec()
    };
    token.token_id = URL_SAFE_NO_PAD.encode(hex_of(22..54));
    token.nonce = hex::encode(hex_of(56..88));
    let bob = of("bob");
    let statement = token.redeem_statement(bob.public());
    assert_eq!(hex::encode(&statement.0), text(&vector["bytes"]));
    assert_eq!(hex::encode(bob.sign(&Purpose::InviteRedeem(&statement))), text(&vector["sig"]));
}

#[test]
fn the_recorded_local_token() {
    let vector = &vectors()["hmacInvitation"];
    let mac = local_token_hmac(&hex32(&vector["secretHex"]), text(&vector["token"]));
    assert_eq!(hex::encode(mac), text(&vector["record"]["hmac"]));
}

#[test]
fn what_is_issued_can_be_shared_and_checked() {
    let (bob, carol) = (of("bob").fingerprint(), of("carol").fingerprint());
    let wish = Wish {
        recipient: Some(bob),
        label: Some("for\u{7} bob".into()),
        relay: Some("wss://relay.example/v1/connect".into()),
        max_uses: Some(3),
        life_ms: Some(MAX_BOUND_LIFE_MS),
    };
    let token = token(wish);
    let shared = token.to_shared();
    let read = Invitation::from_shared(&format!(" threadline://invite/{shared}\n")).expect("readable");
    assert_eq!(read, token);
    assert_eq!(read.label.as_deref(), Some("for bob"));
    assert_eq!(read.check(&bob, T0), Ok(*of("alice").public()));
    assert_eq!(read.check(&carol, T0), Err(InvitationError::WrongRecipient));
    let late = read.check(&bob, T0 + MAX_BOUND_LIFE_MS);
    assert!(matches!(late, Err(InvitationError::Expired(_))));
    let mut forged = read.clone();
    forged.max_uses = 4;
    assert_eq!(forged.check(&bob, T0), Err(InvitationError::BadSignature));
    forged = read;
    forged.issuer_key = Some(*of("carol").public());
    assert_eq!(Invitation::from_shared(&forged.to_shared()), Err(InvitationError::ForeignKey));
}

#[test]
fn lives_and_uses_have_bounds() {
    let issue = |life_ms, max_uses, recipient| {
        let wish = Wish { life_ms, max_uses, recipient, ..Wish::default() };
        Invitation::issue(&of("alice"), wish, T0, &mut rand::rng()).is_ok()
    };
    let bob = Some(of("bob").fingerprint());
    assert!(issue(None, None, None) && issue(Some(MAX_LIFE_MS), Some(100), None));
    assert!(!issue(Some(MAX_LIFE_MS + 1), None, None) && issue(Some(MAX_LIFE_MS + 1), None, bob));
    assert!(!issue(Some(MAX_BOUND_LIFE_MS + 1), None, bob) && !issue(Some(0), None, None));
    assert!(!issue(None, Some(0), None) && !issue(None, Some(101), None));
}

#[test]
fn a_redemption_is_judged_in_the_order_of_its_checks() {
    use RedeemRefusal::{
        AlreadyRedeemed, BadSignature, Blocked, Exhausted, Expired, Revoked, Unknown, WrongRecipient,
    };
    let (alice, bob, carol) = (of("alice"), of("bob"), of("carol"));
    let redemption = Redemption::new(&bob, token(Wish::default()));
    let good = TokenFacts {
        uses: 0,
        max_uses: 1,
        expires_at: T0 + 1,
        revoked: false,
        recipient: None,
        redeemed_at: None,
    };
    let judged = |facts: Option<&TokenFacts>, unwanted, now| {
        judge(&redemption, alice.public(), bob.public(), facts, unwanted, now)
    };
    assert_eq!(judged(Some(&good), false, T0), Ok(Redeemed::Now));
    assert_eq!(judged(None, false, T0), Err(Unknown), "a good signature alone opens nothing");
    let stolen = judge(&redemption, alice.public(), carol.public(), Some(&good), false, T0);
    assert_eq!(stolen, Err(BadSignature), "somebody else's proof");
    let other = judge(&redemption, carol.public(), bob.public(), Some(&good), false, T0);
    assert_eq!(other, Err(BadSignature), "a token of another issuer");

    let mut facts = TokenFacts { recipient: Some(carol.fingerprint()), ..good.clone() };
    assert_eq!(judged(Some(&facts), true, T0), Err(WrongRecipient));
    facts.uses = 1;
    assert_eq!(judged(Some(&facts), true, T0), Err(Exhausted));
    facts.revoked = true;
    assert_eq!(judged(Some(&facts), true, T0), Err(Revoked));
    assert_eq!(judged(Some(&facts), true, T0 + 1), Err(Expired));
    assert_eq!(judged(Some(&good), true, T0), Err(Blocked));

    facts.redeemed_at = Some(T0);
    assert_eq!(judged(Some(&facts), false, T0 + REPEAT_MS), Ok(Redeemed::Again), "a lost answer");
    assert_eq!(judged(Some(&facts), true, T0), Err(Revoked), "never for whom the owner lowered since");
    let old = TokenFacts { redeemed_at: Some(T0 - REPEAT_MS - 1), max_uses: 2, uses: 1, ..good };
    assert_eq!(judged(Some(&old), false, T0), Err(AlreadyRedeemed));
}

#[test]
fn a_redemption_travels_without_free_text() {
    let redemption = Redemption::new(&of("bob"), token(Wish { label: Some("hi".into()), ..Wish::default() }));
    let metadata = redemption.to_metadata();
    assert!(!Value::Object(metadata.clone()).to_string().contains("hi\""));
    assert_eq!(Redemption::from_metadata(&metadata), Ok(redemption));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}", tail in "[A-Za-z0-9_-]{0,200}") {
        let _ = Invitation::from_shared(&text);
        let _ = Invitation::from_shared(&format!("tl1_{tail}"));
    }

    #[test]
    fn a_changed_member_is_refused(at in 0usize..400, to in any::<u8>()) {
        let token = token(Wish::default());
        let mut json = token.to_json().to_string().into_bytes();
        let at = at % json.len();
        prop_assume!(json[at] != to);
        json[at] = to;
        if let Ok(value) = serde_json::from_slice::<Value>(&json)
            && let Ok(read) = Invitation::from_json(&value)
            && read != token
        {
            prop_assert!(!read.verifies(of("alice").public()));
        }
    }
}
