//! Requests between paired servers: token, nonce, time and signature in headers (`threadline-wire.md` §3.2).

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{TlCode, TlError, hex_of};
use crate::identity::{Identity, PublicIdentity, Purpose};
use crate::jcs;
use crate::time::{iso_ms, parse_iso};

/// How far the time of a request may be off, ms.
pub const WINDOW_MS: i64 = 30_000;
/// How long a used nonce is remembered, ms.
pub const NONCE_LIFE_MS: i64 = 120_000;

/// Names of the headers, lowercase; the first holds `Threadline-Relay <token>`.
pub const HEADERS: [&str; 5] = [
    "authorization",
    "x-threadline-agent",
    "x-threadline-nonce",
    "x-threadline-timestamp",
    "x-threadline-signature",
];
const SCHEME: &str = "Threadline-Relay ";

/// The headers of one request, as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeaders {
    token: String,
    /// Name or address of the caller.
    pub agent: String,
    /// UUID.
    pub nonce: String,
    timestamp: String,
    signature: String,
}

/// What the signature covers. Only this module makes one.
#[derive(Debug)]
pub struct RequestStatement(Vec<u8>);

impl RequestStatement {
    fn new(method: &str, path: &str, nonce: &str, timestamp: &str, body: &[u8]) -> Self {
        let mut bytes = format!("{method}\n{path}\n{nonce}\n{timestamp}\n").into_bytes();
        bytes.extend(Sha256::digest(body));
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SignedHeaders {
    /// Finds the headers; `get` is asked with the names of [`HEADERS`].
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, TlError> {
        let [authorization, agent, nonce, timestamp, signature] = HEADERS;
        let missing = |name: &str| TlError::new(TlCode::AuthMissing, format!("the header {name} is missing"));
        let word = |name: &'static str| get(name).map(str::to_owned).ok_or_else(|| missing(name));
        let token = word(authorization)?;
        let token = token.strip_prefix(SCHEME).ok_or_else(|| missing(authorization))?.to_owned();
        Ok(Self {
            token,
            agent: word(agent)?,
            nonce: word(nonce)?,
            timestamp: word(timestamp)?,
            signature: word(signature)?,
        })
    }

    /// Headers of a request of ours, in the order of [`HEADERS`]. `agent` is the name given in the handshake, `body` is
    /// empty for a request without one.
    pub fn sign(
        identity: &Identity,
        token: &[u8; 32],
        agent: &str,
        request: (&str, &str, &[u8]),
        nonce: uuid::Uuid,
        now_ms: i64,
    ) -> [(&'static str, String); 5] {
        let (method, path, body) = request;
        let (nonce, timestamp) = (nonce.to_string(), iso_ms(now_ms));
        let statement = RequestStatement::new(method, path, &nonce, &timestamp, signed_body(body));
        let signature = identity.sign(&Purpose::SignedHttp(&statement));
        let values = [
            format!("{SCHEME}{}", hex::encode(token)),
            agent.to_owned(),
            nonce,
            timestamp,
            hex::encode(signature),
        ];
        let mut values = values.into_iter();
        HEADERS.map(|name| (name, values.next().unwrap_or_default()))
    }

    /// Checks token, time, nonce and signature, in this order. `pairing` is what is filed for [`SignedHeaders::agent`];
    /// `nonce_used` says that the nonce is remembered. The caller remembers the nonce after a success only, so that
    /// nobody can burn one.
    pub fn verify(
        &self,
        request: (&str, &str, &[u8]),
        pairing: Option<(&[u8; 32], &PublicIdentity)>,
        nonce_used: bool,
        now_ms: i64,
    ) -> Result<(), TlError> {
        let failed = |message| TlError::new(TlCode::AuthFailed, message);
        let (token, key) = pairing.ok_or_else(|| failed("this agent is not paired"))?;
        let given = hex_of::<32>(&self.token).ok_or_else(|| failed("the token is not valid"))?;
        if !bool::from(given.ct_eq(token)) {
            return Err(failed("the token is not valid"));
        }
        let at = parse_iso(&self.timestamp);
        if at.is_none_or(|at| (now_ms - at).abs() > WINDOW_MS) {
            let message = "the timestamp is outside the window of 30 s";
            return Err(TlError::new(TlCode::TimestampExpired, message).retry_after(1));
        }
        if nonce_used {
            return Err(TlError::new(TlCode::ReplayDetected, "the nonce was used before"));
        }
        if uuid::Uuid::parse_str(&self.nonce).is_err() {
            return Err(failed("the nonce is not a UUID"));
        }
        let (method, path, body) = request;
        let signature = hex_of::<64>(&self.signature).ok_or_else(|| failed("the signature is malformed"))?;
        let covers = |body: &[u8]| {
            let statement = RequestStatement::new(method, path, &self.nonce, &self.timestamp, body);
            key.verifies(statement.as_bytes(), &signature)
        };
        let holds = covers(signed_body(body))
            || serde_json::from_slice::<Value>(body).is_ok_and(|value| {
                let mut text = String::with_capacity(body.len());
                jcs::stringify(&value, &mut text);
                covers(text.as_bytes())
            });
        if holds { Ok(()) } else { Err(failed("the signature does not verify")) }
    }
}

/// A request without a body is signed as an empty object.
fn signed_body(body: &[u8]) -> &[u8] {
    if body.is_empty() { b"{}" } else { body }
}

#[cfg(test)]
pub(crate) fn example() -> RequestStatement {
    RequestStatement::new("GET", "/", &uuid::Uuid::nil().to_string(), &iso_ms(0), b"{}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hex32, text, vectors};
    use proptest::prelude::*;

    const T0: i64 = 1_768_478_400_000;

    fn alice() -> Identity {
        Identity::from_seed(&hex32(&vectors()["identities"]["alice"]["ed25519Seed"]))
    }

    fn token() -> [u8; 32] {
        hex32(&vectors()["handshakeHttp"]["relayToken"])
    }

    fn headers_of(request: &Value) -> Result<SignedHeaders, TlError> {
        let headers = request["headers"].as_object().expect("headers");
        SignedHeaders::read(|name| {
            headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).and_then(|(_, v)| v.as_str())
        })
    }

    #[test]
    fn the_recorded_requests() {
        let mut used = std::collections::BTreeSet::new();
        for case in vectors()["signedHttp"].as_array().expect("cases") {
            let (request, response) = (&case["request"], &case["response"]);
            if text(&request["path"]).starts_with("/threadline/handshake") {
                let body: Value = serde_json::from_str(text(&request["bodyText"])).expect("JSON");
                let error = super::super::handshake::Hello::parse(&body).expect_err("malformed");
                assert_eq!(error.body()["error"]["code"], response["body"]["error"]["code"]);
                assert_eq!(u64::from(error.status), response["status"].as_u64().expect("status"));
                continue;
            }
            let headers = headers_of(request).expect("headers");
            let body = request["bodyText"].as_str().unwrap_or_default().as_bytes();
            let (method, path) = (text(&request["method"]), text(&request["path"]));
            let statement =
                RequestStatement::new(method, path, &headers.nonce, &headers.timestamp, signed_body(body));
            if response["body"]["error"]["code"] != "TL_TIMESTAMP_EXPIRED" {
                // The stale one was signed for another time than it names.
                let recorded = text(&request["signedBytes"]);
                assert_eq!(hex::encode(statement.as_bytes()), recorded, "{}", case["name"]);
            }
            let seen = used.contains(&headers.nonce);
            let judged = headers.verify((method, path, body), Some((&token(), alice().public())), seen, T0);
            match judged {
                Ok(()) => {
                    assert_eq!(response["status"], 200, "{}", case["name"]);
                    used.insert(headers.nonce.clone());
                    let nonce = uuid::Uuid::parse_str(&headers.nonce).expect("uuid");
                    let made =
                        SignedHeaders::sign(&alice(), &token(), "alice", (method, path, body), nonce, T0);
                    assert_eq!(made[4].1, headers.signature, "{}", case["name"]);
                }
                Err(error) => {
                    assert_eq!(u64::from(error.status), response["status"].as_u64().expect("status"));
                    let recorded = &response["body"]["error"];
                    for member in ["code", "retryable", "retryAfterSeconds"] {
                        assert_eq!(error.body()["error"][member], recorded[member], "{}", case["name"]);
                    }
                }
            }
        }
    }

    fn request(body: &[u8]) -> SignedHeaders {
        let headers =
            SignedHeaders::sign(&alice(), &token(), "alice", ("POST", "/p", body), uuid::Uuid::nil(), T0);
        SignedHeaders::read(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()))
            .expect("all there")
    }

    #[test]
    fn each_check_has_its_code_and_they_come_in_order() {
        let key = *alice().public();
        let pair = (&token(), &key);
        let good = request(b"{}");
        let verify = |headers: &SignedHeaders, pair, used, now| {
            headers.verify(("POST", "/p", b"{}"), pair, used, now).map_err(|e| e.code)
        };
        assert_eq!(verify(&good, Some(pair), false, T0 + WINDOW_MS), Ok(()));
        assert_eq!(verify(&good, None, true, 0), Err(TlCode::AuthFailed));
        let other = [0; 32];
        assert_eq!(verify(&good, Some((&other, &key)), true, 0), Err(TlCode::AuthFailed));
        assert_eq!(verify(&good, Some(pair), true, T0 + WINDOW_MS + 1), Err(TlCode::TimestampExpired));
        let forged = SignedHeaders { signature: "0".repeat(128), ..good.clone() };
        assert_eq!(verify(&forged, Some(pair), true, T0), Err(TlCode::ReplayDetected));
        assert_eq!(verify(&forged, Some(pair), false, T0), Err(TlCode::AuthFailed));
        for missing in HEADERS {
            let read = SignedHeaders::read(|name| (name != missing).then_some("Threadline-Relay 00"));
            assert_eq!(read.expect_err(missing).code, TlCode::AuthMissing);
        }
        assert!(SignedHeaders::read(|_| Some("Bearer 00")).is_err());
    }

    #[test]
    fn a_body_counts_as_it_came_or_as_it_is_written_again() {
        let key = *alice().public();
        let compact = r#"{"b":1,"a":"/é\n"}"#;
        let headers = request(compact.as_bytes());
        let verify =
            |body: &str| headers.verify(("POST", "/p", body.as_bytes()), Some((&token(), &key)), false, T0);
        assert_eq!(verify(compact), Ok(()));
        assert_eq!(verify("{ \"b\" : 1,\n \"a\": \"\\/\\u00e9\\n\" }"), Ok(()));
        assert!(verify(r#"{"a":"/é\n","b":1}"#).is_err(), "another order is another text");
        assert!(verify("{}").is_err());
    }

    proptest! {
        #[test]
        fn no_header_panics(value in "[ -~]{0,140}", body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let headers = SignedHeaders::read(|name| match name {
                "authorization" => Some("Threadline-Relay 00"),
                _ => Some(value.as_str()),
            }).expect("all there");
            let key = *alice().public();
            prop_assert!(headers.verify(("GET", "/", &body), Some((&token(), &key)), false, T0).is_err());
        }
    }
}
