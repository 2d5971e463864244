//! Invitations: a signed token that lets a stranger become verified (`threadline-agent.md` §5, `threadline-wire.md` §3.5).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::CryptoRng;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::Fingerprint;
use crate::identity::{Identity, PublicIdentity, Purpose};
use crate::text;
use crate::time::{iso_ms, parse_iso};

/// Life of an invitation that names none, ms.
pub const DEFAULT_LIFE_MS: i64 = 3_600_000;
/// Longest life of an invitation for anyone, ms.
pub const MAX_LIFE_MS: i64 = 24 * 3_600_000;
/// Longest life of an invitation for one recipient, ms.
pub const MAX_BOUND_LIFE_MS: i64 = 30 * 24 * 3_600_000;
/// Most uses of an invitation of ours.
pub const MAX_USES: u32 = 100;
/// A sender whose answer was lost may redeem again without another use within this time, ms.
pub const REPEAT_MS: i64 = 24 * 3_600_000;
/// Longest shared form that is read, characters.
const MAX_SHARED: usize = 8_192;

/// Why a text is no invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Not the shared form.
    #[error("an invitation begins with tl1_ (or threadline://invite/tl1_) and is copied as a whole")]
    Shape,
    /// A member is missing or does not follow its grammar.
    #[error("the invitation's {0} is missing or malformed")]
    Member(&'static str),
    /// The key beside the token belongs to another agent.
    #[error("the invitation's key does not belong to its issuer")]
    ForeignKey,
    /// No key stands beside the token, so nothing of it can be checked.
    #[error("the invitation names no key of its issuer")]
    NoKey,
    /// The signature does not verify.
    #[error("the invitation was not signed by its issuer, or was changed")]
    BadSignature,
    /// Its life is over.
    #[error("the invitation expired at {0}")]
    Expired(String),
    /// It is for somebody else.
    #[error("the invitation is for another agent")]
    WrongRecipient,
    /// A wish that cannot be issued.
    #[error("{0}")]
    Unissuable(&'static str),
}

/// A signed invitation, every member within its grammar. The signature is not yet known to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Who invites.
    pub issuer: Fingerprint,
    /// Base64url of 32 bytes.
    pub token_id: String,
    nonce: String,
    /// End of life as it was signed, ISO 8601.
    pub expiry: String,
    /// How many agents may redeem it.
    pub max_uses: u32,
    /// The only agent that may redeem it.
    pub recipient: Option<Fingerprint>,
    submit_host: Option<String>,
    submit_cert: Option<String>,
    signature: [u8; 64],
    /// Full key of the issuer, checked against its address.
    pub issuer_key: Option<PublicIdentity>,
    /// What the issuer calls it; not signed.
    pub label: Option<String>,
    /// Relay where the issuer may be found; not signed.
    pub relay: Option<String>,
}

/// What the owner wants to issue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Life from now, ms; [`DEFAULT_LIFE_MS`] when absent.
    pub life_ms: Option<i64>,
    /// Uses; 1 when absent.
    pub max_uses: Option<u32>,
    /// The only agent that may redeem it.
    pub recipient: Option<Fingerprint>,
    /// What to call it.
    pub label: Option<String>,
    /// Relay hint.
    pub relay: Option<String>,
}

/// The bytes that an invitation's signature covers. Only this module makes one.
#[derive(Debug)]
pub struct InvitationStatement([u8; 32]);

impl InvitationStatement {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What an invitee signs to redeem: it names the issuer, so that a copied token yields no proof for another one.
#[derive(Debug)]
pub struct RedeemStatement(Vec<u8>);

impl RedeemStatement {
    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        [b"threadline/2 invite-redeem\0".as_slice(), &self.0].concat()
    }
}

impl Invitation {
    /// Makes and signs one.
    pub fn issue(
        identity: &Identity,
        wish: Wish,
        now_ms: i64,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, InvitationError> {
        let life = wish.life_ms.unwrap_or(DEFAULT_LIFE_MS);
        let longest = if wish.recipient.is_some() { MAX_BOUND_LIFE_MS } else { MAX_LIFE_MS };
        if !(60_000..=longest).contains(&life) {
            return Err(InvitationError::Unissuable(
                "an invitation lives 1 minute to 24 hours, for one named agent up to 30 days",
            ));
        }
        let max_uses = wish.max_uses.unwrap_or(1);
        if !(1..=MAX_USES).contains(&max_uses) {
            return Err(InvitationError::Unissuable("an invitation has 1 to 100 uses"));
        }
        let (mut token_id, mut nonce) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut token_id);
        rng.fill_bytes(&mut nonce);
        let mut invitation = Self {
            issuer: identity.fingerprint(),
            token_id: URL_SAFE_NO_PAD.encode(token_id),
            nonce: hex::encode(nonce),
            expiry: iso_ms(now_ms.saturating_add(life)),
            max_uses,
            recipient: wish.recipient,
            submit_host: None,
            submit_cert: None,
            signature: [0; 64],
            issuer_key: Some(*identity.public()),
            label: wish.label.map(|label| text::name(&label)).filter(|label| !label.is_empty()),
            relay: wish.relay,
        };
        invitation.signature = identity.sign(&Purpose::Invitation(&invitation.statement()));
        Ok(invitation)
    }

    /// Reads the shared form.
    pub fn from_shared(shared: &str) -> Result<Self, InvitationError> {
        let shared = shared.trim();
        let shared = shared.strip_prefix("threadline://invite/").unwrap_or(shared);
        let encoded = shared.strip_prefix("tl1_").ok_or(InvitationError::Shape)?;
        if shared.len() > MAX_SHARED {
            return Err(InvitationError::Shape);
        }
        let bytes =
            URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).map_err(|_| InvitationError::Shape)?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| InvitationError::Shape)?;
        Self::from_json(&value)
    }

    /// The form that is handed to the invitee: `tl1_` and base64url of the JSON.
    pub fn to_shared(&self) -> String {
        let mut fields = self.signed_fields();
        if let Some(key) = &self.issuer_key {
            fields.insert("issuerPublicKey".into(), STANDARD.encode(key.as_bytes()).into());
        }
        if let Some(label) = &self.label {
            fields.insert("label".into(), label.as_str().into());
        }
        if let Some(relay) = &self.relay {
            fields.insert("relay".into(), relay.as_str().into());
        }
        format!("tl1_{}", URL_SAFE_NO_PAD.encode(Value::Object(fields).to_string()))
    }

    /// Reads the JSON form.
    pub fn from_json(value: &Value) -> Result<Self, InvitationError> {
        use InvitationError::Member;
        let member = |name: &'static str| value.get(name).filter(|v| !v.is_null());
        let word = |name: &'static str| member(name).and_then(Value::as_str).ok_or(Member(name));
        let optional = |name: &'static str, max: usize| match member(name) {
            None => Ok(None),
            Some(Value::String(text)) if is_plain(text, max) => Ok(Some(text.clone())),
            Some(_) => Err(Member(name)),
        };
        let fingerprint = |name: &'static str, text: &str| text.parse().map_err(|_| Member(name));
        if member("version") != Some(&json!(1)) {
            return Err(Member("version"));
        }
        if word("type")? != "invitation" {
            return Err(Member("type"));
        }
        if word("scope")? != "verified" {
            return Err(Member("scope"));
        }
        let issuer: Fingerprint = fingerprint("issuer", word("issuer")?)?;
        let token_id = word("tokenId")?;
        if URL_SAFE_NO_PAD.decode(token_id).ok().is_none_or(|bytes| bytes.len() != 32) {
            return Err(Member("tokenId"));
        }
        let nonce = word("nonce")?;
        if nonce.len() != 64 || !nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Member("nonce"));
        }
        let expiry = word("expiry")?;
        if parse_iso(expiry).is_none() || !is_plain(expiry, 40) {
            return Err(Member("expiry"));
        }
        let uses = member("maxUses").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let recipient = match member("recipient") {
            None => None,
            Some(_) => Some(fingerprint("recipient", word("recipient")?)?),
        };
        let signature = STANDARD.decode(word("signature")?).ok().and_then(|bytes| bytes.try_into().ok());
        let mut issuer_key = None;
        if member("issuerPublicKey").is_some() {
            let bytes = STANDARD.decode(word("issuerPublicKey")?).unwrap_or_default();
            let key = PublicIdentity::from_bytes(&bytes).map_err(|_| Member("issuerPublicKey"))?;
            if key.fingerprint() != issuer {
                return Err(InvitationError::ForeignKey);
            }
            issuer_key = Some(key);
        }
        Ok(Self {
            issuer,
            token_id: token_id.to_owned(),
            nonce: nonce.to_owned(),
            expiry: expiry.to_owned(),
            max_uses: uses.filter(|n| *n > 0).ok_or(Member("maxUses"))?,
            recipient,
            submit_host: optional("submitHost", 512)?,
            submit_cert: optional("submitCertFingerprint", 128)?,
            signature: signature.ok_or(Member("signature"))?,
            issuer_key,
            label: optional("label", 512)?.map(|label| text::name(&label)).filter(|l| !l.is_empty()),
            relay: optional("relay", 512)?,
        })
    }

    /// The signed members alone: what travels in a redemption.
    pub fn to_json(&self) -> Value {
        Value::Object(self.signed_fields())
    }

    /// Whether `key` is the issuer's and signed this.
    pub fn verifies(&self, key: &PublicIdentity) -> bool {
        key.fingerprint() == self.issuer && key.verifies(self.statement().as_bytes(), &self.signature)
    }

    /// What an invitee checks before it asks its owner. Returns the issuer's key.
    pub fn check(&self, us: &Fingerprint, now_ms: i64) -> Result<PublicIdentity, InvitationError> {
        let key = self.issuer_key.ok_or(InvitationError::NoKey)?;
        if !self.verifies(&key) {
            return Err(InvitationError::BadSignature);
        }
        if self.is_expired(now_ms) {
            return Err(InvitationError::Expired(self.expiry.clone()));
        }
        if self.recipient.is_some_and(|recipient| recipient != *us) {
            return Err(InvitationError::WrongRecipient);
        }
        Ok(key)
    }

    /// End of life, Unix ms.
    pub fn expires_at(&self) -> i64 {
        parse_iso(&self.expiry).unwrap_or(0)
    }

    fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_at() <= now_ms
    }

    /// What `invitee` signs to redeem it.
    pub fn redeem_statement(&self, invitee: &PublicIdentity) -> RedeemStatement {
        // MessagePack of [1, issuer(16), tokenId(32), nonce(32), invitee(32)].
        let mut bytes = vec![0x95, 0x01];
        let token_id = URL_SAFE_NO_PAD.decode(&self.token_id).unwrap_or_default();
        let nonce = hex::decode(&self.nonce).unwrap_or_default();
        for part in [self.issuer.as_bytes().as_slice(), &token_id, &nonce, invitee.as_bytes()] {
            bytes.extend([0xc4, part.len() as u8]);
            bytes.extend(part);
        }
        RedeemStatement(bytes)
    }

    pub(crate) fn statement(&self) -> InvitationStatement {
        InvitationStatement(Sha256::digest(self.signed_text()).into())
    }

    fn signed_text(&self) -> String {
        let recipient = self.recipient.map(|r| r.to_string()).unwrap_or_default();
        let mut text = format!(
            "1|invitation|{}|{}|{}|verified|{}|{}|{recipient}",
            self.issuer, self.token_id, self.nonce, self.expiry, self.max_uses
        );
        if self.submit_host.is_some() || self.submit_cert.is_some() {
            for part in [&self.submit_host, &self.submit_cert] {
                text.push('|');
                text.push_str(part.as_deref().unwrap_or_default());
            }
        }
        text
    }

    fn signed_fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("version".into(), 1.into());
        fields.insert("type".into(), "invitation".into());
        fields.insert("issuer".into(), self.issuer.to_string().into());
        fields.insert("tokenId".into(), self.token_id.as_str().into());
        fields.insert("nonce".into(), self.nonce.as_str().into());
        fields.insert("scope".into(), "verified".into());
        fields.insert("expiry".into(), self.expiry.as_str().into());
        fields.insert("maxUses".into(), self.max_uses.into());
        if let Some(recipient) = &self.recipient {
            fields.insert("recipient".into(), recipient.to_string().into());
        }
        if let Some(host) = &self.submit_host {
            fields.insert("submitHost".into(), host.as_str().into());
        }
        if let Some(cert) = &self.submit_cert {
            fields.insert("submitCertFingerprint".into(), cert.as_str().into());
        }
        fields.insert("signature".into(), STANDARD.encode(self.signature).into());
        fields
    }
}

/// No `|`, which separates signed members, and nothing that a person cannot see.
fn is_plain(text: &str, max: usize) -> bool {
    text.len() <= max && !text.contains('|') && !text.chars().any(char::is_control)
}

/// A redemption as it travels: payload type `invitation-redeem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The token, signed members only.
    pub invitation: Invitation,
    proof: [u8; 64],
}

impl Redemption {
    /// Redeems as `identity`.
    pub fn new(identity: &Identity, invitation: Invitation) -> Self {
        let proof = identity.sign(&Purpose::InviteRedeem(&invitation.redeem_statement(identity.public())));
        let invitation = Invitation { issuer_key: None, label: None, relay: None, ..invitation };
        Self { invitation, proof }
    }

    /// Members beside the text of the message.
    pub fn to_metadata(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("token".into(), self.invitation.to_json());
        fields.insert("proof".into(), STANDARD.encode(self.proof).into());
        fields
    }

    /// Reads the members beside the text of a message.
    pub fn from_metadata(fields: &Map<String, Value>) -> Result<Self, InvitationError> {
        let token = fields.get("token").ok_or(InvitationError::Member("token"))?;
        let proof = fields.get("proof").and_then(Value::as_str).and_then(|p| STANDARD.decode(p).ok());
        let proof = proof.and_then(|bytes| bytes.try_into().ok());
        Ok(Self {
            invitation: Invitation::from_json(token)?,
            proof: proof.ok_or(InvitationError::Member("proof"))?,
        })
    }

    /// Whether the sender of the message holds the key that made the proof.
    pub fn proves(&self, sender: &PublicIdentity) -> bool {
        sender.verifies(&self.invitation.redeem_statement(sender).signed_bytes(), &self.proof)
    }
}

/// What an issuer knows about one of its tokens and about who redeems it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    /// Uses so far.
    pub uses: u32,
    /// Uses allowed, as issued.
    pub max_uses: u32,
    /// End of life as issued, Unix ms.
    pub expires_at: i64,
    /// Whether the owner revoked it.
    pub revoked: bool,
    /// The only agent that may redeem it.
    pub recipient: Option<Fingerprint>,
    /// When this sender redeemed it, Unix ms.
    pub redeemed_at: Option<i64>,
}

/// Why a redemption is refused; the words that travel back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedeemRefusal {
    /// This node issued no such token.
    Unknown,
    /// Token or proof is not signed as it must be.
    BadSignature,
    /// Its life is over.
    Expired,
    /// The owner revoked it.
    Revoked,
    /// It has no use left.
    Exhausted,
    /// It is for another agent.
    WrongRecipient,
    /// The sender used it before.
    AlreadyRedeemed,
    /// The owner does not want this sender.
    Blocked,
}

impl RedeemRefusal {
    /// The word that travels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::BadSignature => "bad-signature",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Exhausted => "exhausted",
            Self::WrongRecipient => "wrong-recipient",
            Self::AlreadyRedeemed => "already-redeemed",
            Self::Blocked => "blocked",
        }
    }
}

/// What a redemption that is not refused does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    /// It takes one use.
    Now,
    /// The sender redeemed it within a day and its answer was lost: no use is taken.
    Again,
}

/// Decides about a redemption whose message was authenticated with the key of `sender`. `facts` are those of a token that
/// this node issued; `unwanted` says that the owner blocked or lowered the sender.
pub fn judge(
    redemption: &Redemption,
    issuer: &PublicIdentity,
    sender: &PublicIdentity,
    facts: Option<&TokenFacts>,
    unwanted: bool,
    now_ms: i64,
) -> Result<Redeemed, RedeemRefusal> {
    if !redemption.proves(sender) {
        return Err(RedeemRefusal::BadSignature);
    }
    let facts = facts.ok_or(RedeemRefusal::Unknown)?;
    if !redemption.invitation.verifies(issuer) {
        return Err(RedeemRefusal::BadSignature);
    }
    if !unwanted && facts.redeemed_at.is_some_and(|at| now_ms - at <= REPEAT_MS) {
        return Ok(Redeemed::Again);
    }
    if facts.expires_at <= now_ms {
        return Err(RedeemRefusal::Expired);
    }
    if facts.revoked {
        return Err(RedeemRefusal::Revoked);
    }
    if facts.uses >= facts.max_uses {
        return Err(RedeemRefusal::Exhausted);
    }
    if facts.recipient.is_some_and(|recipient| recipient != sender.fingerprint()) {
        return Err(RedeemRefusal::WrongRecipient);
    }
    if unwanted {
        return Err(RedeemRefusal::Blocked);
    }
    if facts.redeemed_at.is_some() {
        return Err(RedeemRefusal::AlreadyRedeemed);
    }
    Ok(Redeemed::Now)
}

/// HMAC of an opaque token that an existing install keeps for itself (`invitation-secret.key`). We make none.
pub fn local_token_hmac(secret: &[u8; 32], token: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length is a key");
    mac.update(token.as_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
