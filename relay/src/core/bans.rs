//! What is done about abuse: detectors fed, identities banned (`relay.md` §10).

use threadline::Fingerprint;
use threadline::v1::close;
use threadline::v1::frames::ErrorCode;

use super::login::banned_text;
use super::{ConnId, Core, Pending};
use crate::abuse::{Contact, Pattern};
use crate::store::{RegistryAnswer, RegistryOp, StoreAnswer, StoreFailed};

impl Core {
    /// A frame could not be read.
    pub(super) fn malformed(&mut self, id: ConnId, now_ms: i64) {
        let Some(address) = self.address(id) else {
            if self.windows.junk.take(&id, now_ms).is_err() {
                self.drop_conn(id, close::BANNED, "Too many malformed frames", now_ms);
            }
            return;
        };
        let found = self.abuse.malformed(&address, now_ms);
        self.judge(&address, found, now_ms);
    }

    /// An envelope or frame above the size limit.
    pub(super) fn strike(&mut self, id: ConnId, now_ms: i64) {
        let Some(address) = self.address(id) else { return };
        let found = self.abuse.oversized(&address, now_ms);
        self.judge(&address, found, now_ms);
    }

    /// A message arrived, whatever becomes of it. Whether its sender is banned now.
    pub(super) fn attempted(&mut self, address: &Fingerprint, now_ms: i64) -> bool {
        let found = self.abuse.attempted(address, now_ms);
        self.judge(address, found, now_ms);
        found.is_some()
    }

    /// A login succeeded and its session is there.
    pub(super) fn churned(&mut self, address: &Fingerprint, now_ms: i64) {
        let found = self.abuse.logged_in(address, now_ms);
        self.judge(address, found, now_ms);
    }

    /// `sender` wrote to somebody who had not written to it; `reply` otherwise.
    pub(super) fn contacted(
        &mut self,
        sender: &Fingerprint,
        recipient: &Fingerprint,
        reply: bool,
        now_ms: i64,
    ) {
        if reply || self.is_bridge(sender) {
            return;
        }
        match self.abuse.contacted(sender, recipient, now_ms) {
            Contact::Again => {}
            Contact::Fresh if self.is_live(recipient) => {}
            Contact::Fresh => {
                self.store_registry(Pending::Lookup(*sender), RegistryOp::Known { address: *recipient });
            }
            Contact::Ban(pattern) => self.judge(sender, Some(pattern), now_ms),
        }
    }

    /// The recipient of a message was never here.
    pub(super) fn wrote_to_unknown(&mut self, sender: &Fingerprint, now_ms: i64) {
        let found = self.abuse.unknown_address(sender, now_ms);
        self.judge(sender, found, now_ms);
    }

    /// The directory was asked for an address that was never here.
    pub(super) fn looked_up_unknown(&mut self, key: &[u8; 32], now_ms: i64) {
        let Some(address) = key.first_chunk().map(|bytes| Fingerprint::from_bytes(*bytes)) else { return };
        let Some(pattern) = self.abuse.unknown_address(&address, now_ms) else { return };
        if self.is_live(&address) {
            self.judge(&address, Some(pattern), now_ms);
        } else {
            self.ban(*key, address, pattern, now_ms);
        }
    }

    /// Bans the key of a live session; the session ends when the ban is stored.
    fn judge(&mut self, address: &Fingerprint, found: Option<Pattern>, now_ms: i64) {
        let Some(pattern) = found else { return };
        let conns = self.conns_of(address);
        let mut key = None;
        for conn in conns {
            let Some(session) = self.session_mut(conn) else { continue };
            if !std::mem::replace(&mut session.banned, true) {
                key = Some(session.key);
            }
        }
        let Some(key) = key else { return };
        self.ban(key, *address, pattern, now_ms);
    }

    fn ban(&mut self, key: [u8; 32], address: Fingerprint, pattern: Pattern, now_ms: i64) {
        self.counters.bans += 1;
        self.counters.bans_by[pattern.index()] += 1;
        tracing::warn!(pattern = pattern.name(), "identity banned");
        let op = RegistryOp::Ban { key, pattern, now_ms };
        self.store_registry(Pending::Ban(address), op);
    }

    pub(super) fn banned(
        &mut self,
        address: &Fingerprint,
        answer: Result<StoreAnswer, StoreFailed>,
        now_ms: i64,
    ) {
        let until_ms = match answer {
            Ok(StoreAnswer::Registry(RegistryAnswer::Banned(until_ms))) => until_ms,
            _ => now_ms + Pattern::Junk.ban_ms(),
        };
        self.end_banned(address, until_ms, now_ms);
    }

    /// Ends the session of a banned identity.
    pub(super) fn end_banned(&mut self, address: &Fingerprint, until_ms: i64, now_ms: i64) {
        for conn in self.conns_of(address) {
            self.send_error(conn, ErrorCode::Banned, banned_text(until_ms));
            self.drop_conn(conn, close::BANNED, "Banned", now_ms);
        }
    }
}
