//! Invitations of ours, who redeemed them, and those of others that we redeem.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use threadline::Fingerprint;
use threadline::identity::PublicIdentity;
use threadline::invitation::{Invitation, RedeemRefusal, Redeemed, Redemption, TokenFacts, judge};

use super::types::{parsed, parsed_opt};
use super::{Store, StoreError};

/// Redemption attempts of an invitee before it waits an hour; the issuer hears five in an hour.
const QUICK_TRIES: u32 = 3;
const MINUTE_MS: i64 = 60_000;

/// One row of `invitations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedInvitation {
    /// Base64url of 32 bytes. Alone it opens nothing.
    pub token_id: String,
    /// What the owner calls it.
    pub label: Option<String>,
    /// Unix ms.
    pub expires_at: i64,
    /// Uses allowed.
    pub max_uses: u32,
    /// Uses so far.
    pub uses: u32,
    /// The only agent that may redeem it.
    pub recipient: Option<Fingerprint>,
    /// Unix ms.
    pub revoked_at: Option<i64>,
    /// Unix ms.
    pub created_at: i64,
    /// Who redeemed it.
    pub redeemed_by: Vec<Fingerprint>,
}

impl IssuedInvitation {
    /// `valid`, `exhausted`, `expired` or `revoked`.
    pub fn status(&self, now: i64) -> &'static str {
        if self.revoked_at.is_some() {
            "revoked"
        } else if self.uses >= self.max_uses {
            "exhausted"
        } else if self.expires_at <= now {
            "expired"
        } else {
            "valid"
        }
    }
}

/// Where the redemption of somebody else's invitation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Base64url of 32 bytes.
    pub token_id: String,
    /// Who invited.
    pub issuer: Fingerprint,
    /// The token in its shared form.
    pub token: String,
    /// `pending`, `joined`, `refused` or `expired`.
    pub state: String,
    /// Why it was refused.
    pub code: Option<String>,
    /// Redemptions sent.
    pub attempts: u32,
}

impl Store {
    /// Files a token that was just issued. One that is not filed is refused even with a good signature.
    pub async fn invitation_issued(&self, invitation: &Invitation, now: i64) -> Result<(), StoreError> {
        let invitation = invitation.clone();
        self.db
            .write(move |c| {
                c.execute(
                    "INSERT INTO invitations(token_id, label, expires_at, max_uses, recipient, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        invitation.token_id,
                        invitation.label,
                        invitation.expires_at(),
                        invitation.max_uses,
                        invitation.recipient.map(|r| r.to_string()),
                        now
                    ],
                )?;
                Ok(())
            })
            .await
    }

    /// Every token of ours, newest first.
    pub async fn invitations(&self) -> Result<Vec<IssuedInvitation>, StoreError> {
        self.db
            .read(|c| {
                let mut statement =
                    c.prepare_cached("SELECT * FROM invitations ORDER BY created_at DESC, token_id")?;
                let mut rows: Vec<IssuedInvitation> =
                    statement.query_map([], read_issued)?.collect::<rusqlite::Result<_>>()?;
                let mut by = c.prepare_cached(
                    "SELECT redeemed_by FROM redemptions WHERE token_id = ?1 ORDER BY redeemed_at",
                )?;
                for row in &mut rows {
                    let peers = by.query_map([&row.token_id], |r| parsed(r, "redeemed_by"))?;
                    row.redeemed_by = peers.collect::<rusqlite::Result<_>>()?;
                }
                Ok(rows)
            })
            .await
    }

    /// Revokes the token whose id begins with `prefix`. `None` when no single token does.
    pub async fn revoke_invitation(
        &self,
        prefix: &str,
        now: i64,
    ) -> Result<Option<IssuedInvitation>, StoreError> {
        let prefix = prefix.to_owned();
        self.db
            .write(move |c| {
                let mut statement = c.prepare_cached(
                    "SELECT * FROM invitations WHERE substr(token_id, 1, length(?1)) = ?1 LIMIT 2",
                )?;
                let mut found: Vec<IssuedInvitation> =
                    statement.query_map([&prefix], read_issued)?.collect::<rusqlite::Result<_>>()?;
                let (Some(mut only), true) = (found.pop(), found.is_empty()) else { return Ok(None) };
                only.revoked_at = only.revoked_at.or(Some(now));
                c.execute(
                    "UPDATE invitations SET revoked_at = ?2 WHERE token_id = ?1",
                    params![only.token_id, only.revoked_at],
                )?;
                let mut by = c.prepare_cached("SELECT redeemed_by FROM redemptions WHERE token_id = ?1")?;
                let peers = by.query_map([&only.token_id], |r| parsed(r, "redeemed_by"))?;
                only.redeemed_by = peers.collect::<rusqlite::Result<_>>()?;
                Ok(Some(only))
            })
            .await
    }

    /// Judges a redemption and takes its use in one transaction. The caller raises the level afterwards and says so with
    /// [`Store::redemption_raised`]; [`Store::unraised_redemptions`] finds what a crash between the two left.
    pub async fn redeem(
        &self,
        redemption: Redemption,
        issuer: PublicIdentity,
        sender: PublicIdentity,
        unwanted: bool,
        now: i64,
    ) -> Result<Result<Redeemed, RedeemRefusal>, StoreError> {
        self.db.write(move |c| redeem(c, &redemption, &issuer, &sender, unwanted, now)).await
    }

    /// The level of a redeemer is raised and on disk.
    pub async fn redemption_raised(&self, peer: Fingerprint) -> Result<(), StoreError> {
        self.db
            .write(move |c| {
                c.execute("UPDATE redemptions SET raised = 1 WHERE redeemed_by = ?1", [peer.to_string()])?;
                Ok(())
            })
            .await
    }

    /// Redeemers whose level was not raised yet.
    pub async fn unraised_redemptions(&self) -> Result<Vec<Fingerprint>, StoreError> {
        self.db
            .read(|c| {
                let mut statement =
                    c.prepare_cached("SELECT DISTINCT redeemed_by FROM redemptions WHERE raised = 0")?;
                let rows = statement.query_map([], |r| parsed(r, "redeemed_by"))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Notes that the owner accepted an invitation; its redemption is due now. A repetition makes a refused or expired
    /// one due again.
    pub async fn join(&self, invitation: &Invitation, now: i64) -> Result<Join, StoreError> {
        let (invitation, token) = (invitation.clone(), invitation.to_shared());
        self.db
            .write(move |c| {
                c.execute(
                    "INSERT INTO joins(token_id, issuer, token, state, next_try_at, expires_at, created_at)
                     VALUES (?1, ?2, ?3, 'pending', ?5, ?4, ?5)
                     ON CONFLICT DO UPDATE SET state = 'pending', code = NULL, attempts = 0, next_try_at = ?5
                     WHERE state <> 'joined'",
                    params![
                        invitation.token_id,
                        invitation.issuer.to_string(),
                        token,
                        invitation.expires_at(),
                        now
                    ],
                )?;
                Ok(c.query_row("SELECT * FROM joins WHERE token_id = ?1", [invitation.token_id], read_join)?)
            })
            .await
    }

    /// Invitations whose redemption is due; each is planned anew before it is returned, and an expired one ends.
    pub async fn due_joins(&self, now: i64) -> Result<Vec<Join>, StoreError> {
        self.db
            .write(move |c| {
                c.execute(
                    "UPDATE joins SET state = 'expired', next_try_at = NULL
                     WHERE state = 'pending' AND expires_at <= ?1 AND next_try_at <= ?1",
                    [now],
                )?;
                let mut statement =
                    c.prepare_cached("SELECT * FROM joins WHERE state = 'pending' AND next_try_at <= ?1")?;
                let due: Vec<Join> =
                    statement.query_map([now], read_join)?.collect::<rusqlite::Result<_>>()?;
                for join in &due {
                    let pause = if join.attempts < QUICK_TRIES { 2 * MINUTE_MS } else { 60 * MINUTE_MS };
                    c.execute(
                        "UPDATE joins SET attempts = attempts + 1, next_try_at = ?2 WHERE token_id = ?1",
                        params![join.token_id, now + pause],
                    )?;
                }
                Ok(due)
            })
            .await
    }

    /// The issuer answered: no code means yes. Returns the invitation that this ends, if one of that issuer waits.
    pub async fn join_answered(
        &self,
        issuer: Fingerprint,
        token_id: Option<String>,
        code: Option<String>,
    ) -> Result<Option<Join>, StoreError> {
        self.db
            .write(move |c| {
                let found = c
                    .prepare_cached(
                        "SELECT * FROM joins WHERE issuer = ?1 AND state = 'pending'
                         AND (?2 IS NULL OR token_id = ?2) ORDER BY created_at LIMIT 1",
                    )?
                    .query_row(params![issuer.to_string(), token_id], read_join)
                    .optional()?;
                let Some(mut join) = found else { return Ok(None) };
                join.state = if code.is_none() { "joined" } else { "refused" }.into();
                join.code.clone_from(&code);
                c.execute(
                    "UPDATE joins SET state = ?2, code = ?3, next_try_at = NULL WHERE token_id = ?1",
                    params![join.token_id, join.state, code],
                )?;
                Ok(Some(join))
            })
            .await
    }

    /// Invitations of others, newest first.
    pub async fn joins(&self) -> Result<Vec<Join>, StoreError> {
        self.db
            .read(|c| {
                let mut statement = c.prepare_cached("SELECT * FROM joins ORDER BY created_at DESC")?;
                let rows = statement.query_map([], read_join)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    /// Whether a nonce of a signed request is remembered.
    pub async fn nonce_used(&self, nonce: &str) -> Result<bool, StoreError> {
        let nonce = nonce.to_owned();
        self.db
            .read(move |c| {
                let found = c
                    .prepare_cached("SELECT 1 FROM nonces WHERE nonce = ?1")?
                    .query_row([nonce], |_| Ok(()))
                    .optional()?;
                Ok(found.is_some())
            })
            .await
    }

    /// Remembers a nonce. False when it was remembered before.
    pub async fn use_nonce(&self, nonce: &str, expires_at: i64) -> Result<bool, StoreError> {
        let nonce = nonce.to_owned();
        self.db
            .write(move |c| {
                let sql = "INSERT OR IGNORE INTO nonces(nonce, expires_at) VALUES (?1, ?2)";
                Ok(c.execute(sql, params![nonce, expires_at])? == 1)
            })
            .await
    }

    /// Forgets nonces whose window is over.
    pub async fn purge_nonces(&self, now: i64) -> Result<usize, StoreError> {
        self.db.write(move |c| Ok(c.execute("DELETE FROM nonces WHERE expires_at <= ?1", [now])?)).await
    }
}

fn redeem(
    c: &Connection,
    redemption: &Redemption,
    issuer: &PublicIdentity,
    sender: &PublicIdentity,
    unwanted: bool,
    now: i64,
) -> Result<Result<Redeemed, RedeemRefusal>, StoreError> {
    let (token_id, by) = (&redemption.invitation.token_id, sender.fingerprint().to_string());
    let issued = c
        .prepare_cached("SELECT * FROM invitations WHERE token_id = ?1")?
        .query_row([token_id], read_issued)
        .optional()?;
    let redeemed_at = c
        .prepare_cached("SELECT redeemed_at FROM redemptions WHERE token_id = ?1 AND redeemed_by = ?2")?
        .query_row(params![token_id, by], |r| r.get(0))
        .optional()?;
    let facts = issued.map(|row| TokenFacts {
        uses: row.uses,
        max_uses: row.max_uses,
        expires_at: row.expires_at,
        revoked: row.revoked_at.is_some(),
        recipient: row.recipient,
        redeemed_at,
    });
    let judged = judge(redemption, issuer, sender, facts.as_ref(), unwanted, now);
    if judged == Ok(Redeemed::Now) {
        c.prepare_cached("UPDATE invitations SET uses = uses + 1 WHERE token_id = ?1")?
            .execute([token_id])?;
        c.prepare_cached("INSERT INTO redemptions(token_id, redeemed_by, redeemed_at) VALUES (?1, ?2, ?3)")?
            .execute(params![token_id, by, now])?;
    }
    Ok(judged)
}

fn read_issued(row: &Row<'_>) -> rusqlite::Result<IssuedInvitation> {
    Ok(IssuedInvitation {
        token_id: row.get("token_id")?,
        label: row.get("label")?,
        expires_at: row.get("expires_at")?,
        max_uses: row.get("max_uses")?,
        uses: row.get("uses")?,
        recipient: parsed_opt(row, "recipient")?,
        revoked_at: row.get("revoked_at")?,
        created_at: row.get("created_at")?,
        redeemed_by: Vec::new(),
    })
}

fn read_join(row: &Row<'_>) -> rusqlite::Result<Join> {
    Ok(Join {
        token_id: row.get("token_id")?,
        issuer: parsed(row, "issuer")?,
        token: row.get("token")?,
        state: row.get("state")?,
        code: row.get("code")?,
        attempts: row.get("attempts")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use threadline::identity::Identity;
    use threadline::invitation::Wish;

    const T0: i64 = 1_768_478_400_000;

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join("threadline.sqlite")).expect("store")
    }

    fn of(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    async fn issued(store: &Store, max_uses: u32) -> Invitation {
        let wish = Wish { max_uses: Some(max_uses), ..Wish::default() };
        let token = Invitation::issue(&of(1), wish, T0, &mut rand::rng()).expect("issued");
        store.invitation_issued(&token, T0).await.expect("filed");
        token
    }

    async fn redeem_as(
        store: &Store,
        seed: u8,
        token: &Invitation,
        now: i64,
    ) -> Result<Redeemed, RedeemRefusal> {
        let redemption = Redemption::new(&of(seed), token.clone());
        let (issuer, sender) = (*of(1).public(), *of(seed).public());
        store.redeem(redemption, issuer, sender, false, now).await.expect("stored")
    }

    #[tokio::test]
    async fn of_two_redeemers_of_one_use_one_wins_whatever_their_order() {
        let dir = tempfile::tempdir().expect("dir");
        let store = store(&dir);
        let token = issued(&store, 1).await;
        let (two, three) = tokio::join!(redeem_as(&store, 2, &token, T0), redeem_as(&store, 3, &token, T0));
        let won = [&two, &three].into_iter().filter(|r| **r == Ok(Redeemed::Now)).count();
        assert_eq!(won, 1, "{two:?} {three:?}");
        assert!([two, three].contains(&Err(RedeemRefusal::Exhausted)));
        let row = store.invitations().await.expect("list").pop().expect("one");
        assert_eq!((row.uses, row.redeemed_by.len(), row.status(T0)), (1, 1, "exhausted"));
    }

    #[tokio::test]
    async fn a_crash_between_redemption_and_trust_leaves_work_and_a_repetition_takes_no_use() {
        let dir = tempfile::tempdir().expect("dir");
        let first = store(&dir);
        let token = issued(&first, 2).await;
        assert_eq!(redeem_as(&first, 2, &token, T0).await, Ok(Redeemed::Now));
        first.close();
        let again = store(&dir);
        assert_eq!(again.unraised_redemptions().await.expect("read"), [of(2).fingerprint()]);
        assert_eq!(redeem_as(&again, 2, &token, T0 + 1).await, Ok(Redeemed::Again));
        again.redemption_raised(of(2).fingerprint()).await.expect("noted");
        assert!(again.unraised_redemptions().await.expect("read").is_empty());
        assert_eq!(again.invitations().await.expect("list")[0].uses, 1);
    }

    #[tokio::test]
    async fn unknown_and_revoked_tokens_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let store = store(&dir);
        let unfiled = Invitation::issue(&of(1), Wish::default(), T0, &mut rand::rng()).expect("issued");
        assert_eq!(redeem_as(&store, 2, &unfiled, T0).await, Err(RedeemRefusal::Unknown));
        let token = issued(&store, 1).await;
        assert_eq!(store.revoke_invitation("nothing", T0).await.expect("read"), None);
        let revoked = store.revoke_invitation(&token.token_id[..8], T0).await.expect("revoke").expect("one");
        assert_eq!(revoked.status(T0), "revoked");
        assert_eq!(redeem_as(&store, 2, &token, T0).await, Err(RedeemRefusal::Revoked));
    }

    #[tokio::test]
    async fn a_redemption_is_repeated_until_it_is_answered_or_its_life_is_over() {
        let dir = tempfile::tempdir().expect("dir");
        let store = store(&dir);
        let wish = Wish { life_ms: Some(24 * 60 * MINUTE_MS), ..Wish::default() };
        let token = Invitation::issue(&of(9), wish, T0, &mut rand::rng()).expect("issued");
        store.join(&token, T0).await.expect("noted");
        let mut sent = 0;
        for minute in 0..60 {
            sent += store.due_joins(T0 + minute * MINUTE_MS).await.expect("due").len();
        }
        assert_eq!(sent, 4, "fewer than the five that an issuer hears in an hour");
        let answered =
            store.join_answered(of(9).fingerprint(), None, None).await.expect("noted").expect("one");
        assert_eq!(answered.state, "joined");
        assert_eq!(store.join(&token, T0).await.expect("noted").state, "joined", "nothing is redeemed twice");
        assert!(store.due_joins(T0 + 600 * MINUTE_MS).await.expect("due").is_empty());

        let other = Invitation::issue(&of(8), Wish::default(), T0, &mut rand::rng()).expect("issued");
        store.join(&other, T0).await.expect("noted");
        assert!(store.due_joins(T0 + 61 * MINUTE_MS).await.expect("due").is_empty());
        let states: Vec<_> = store.joins().await.expect("list").into_iter().map(|j| j.state).collect();
        assert!(states.contains(&"expired".to_owned()), "{states:?}");
    }

    #[tokio::test]
    async fn a_nonce_is_remembered_over_a_restart_until_its_window_is_over() {
        let dir = tempfile::tempdir().expect("dir");
        let first = store(&dir);
        assert!(
            first.use_nonce("n", T0).await.expect("noted") && !first.use_nonce("n", T0).await.expect("noted")
        );
        first.close();
        let again = store(&dir);
        assert!(again.nonce_used("n").await.expect("read"));
        assert_eq!(again.purge_nonces(T0 - 1).await.expect("purge"), 0);
        assert_eq!(again.purge_nonces(T0).await.expect("purge"), 1);
        assert!(!again.nonce_used("n").await.expect("read"));
    }
}
