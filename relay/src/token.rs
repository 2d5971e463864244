//! Registry tokens: EdDSA JSON web tokens with a fixed header (`relay.md` §12.5).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Seconds a token is valid.
pub const LIFETIME_S: i64 = 3600;

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;
const MAX_BYTES: usize = 2048;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    iat: i64,
    exp: i64,
    iss: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The agent's public key.
    pub key: [u8; 32],
    /// When the token was issued, in Unix seconds.
    pub issued_at: i64,
}

/// Signs a token for `key`; `id` is its `jti`, if it has one.
pub fn issue(signer: &SigningKey, relay_id: &str, key: &[u8; 32], now_s: i64, id: Option<String>) -> String {
    let claims = Claims {
        sub: STANDARD.encode(key),
        iat: now_s,
        exp: now_s + LIFETIME_S,
        iss: relay_id.to_owned(),
        jti: id,
    };
    let payload = serde_json::to_string(&claims).unwrap_or_default();
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
    let signature = signer.sign(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

/// Checks form, signature, issuer and time. `None` for anything that is not a valid token of this relay.
pub fn verify(key: &VerifyingKey, relay_id: &str, token: &str, now_s: i64) -> Option<Subject> {
    if token.len() > MAX_BYTES {
        return None;
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let parsed: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    if parsed.alg != "EdDSA" || parsed.typ != "JWT" {
        return None;
    }
    let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    let signed = token.rsplit_once('.')?.0;
    key.verify_strict(signed.as_bytes(), &signature).ok()?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let in_time = claims.exp > now_s && claims.exp - claims.iat <= LIFETIME_S;
    if claims.iss != relay_id || !in_time {
        return None;
    }
    Some(Subject { key: crate::keys::decode_public(&claims.sub)?, issued_at: claims.iat })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ISSUER: &str = "relay-one";

    fn signer() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    #[test]
    fn a_token_says_who_and_dies_on_time() {
        let token = issue(&signer(), ISSUER, &[3; 32], 1000, Some("a".into()));
        let key = signer().verifying_key();
        assert_eq!(verify(&key, ISSUER, &token, 4599).map(|s| s.key), Some([3; 32]));
        assert_eq!(verify(&key, ISSUER, &token, 4600), None, "expired");
        assert_eq!(verify(&key, "relay-two", &token, 1000), None, "other issuer");
        assert_eq!(verify(&key, ISSUER, &format!("{token}.x"), 1000), None, "four parts");
    }

    #[test]
    fn only_the_exact_header_is_accepted() {
        for header in [r#"{"alg":"none","typ":"JWT"}"#, r#"{"alg":"EdDSA","typ":"JWT","kid":"1"}"#] {
            let claims =
                serde_json::json!({"sub": STANDARD.encode([3; 32]), "iat": 0, "exp": 3600, "iss": ISSUER});
            let signed =
                format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
            let signature = URL_SAFE_NO_PAD.encode(signer().sign(signed.as_bytes()).to_bytes());
            let token = format!("{signed}.{signature}");
            assert_eq!(verify(&signer().verifying_key(), ISSUER, &token, 1), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9._=-]{0,300}") {
            prop_assert_eq!(verify(&signer().verifying_key(), ISSUER, &text, 1), None);
        }
    }
}
