//! Sessions that one side lost (`threadline-wire.md` §4.6): a bare error asks, a new session and a second sealing answer.

use super::open::{Dropped, Opened, Outcome};
use super::{Commit, Mail, OutRow, SeenRow, SpoolRow, Write};
use crate::v2::content::{Body, CONTROL_THREAD, Content, ErrorBody};
use crate::v2::envelope::{Envelope, content_hash};
use crate::v2::objects::Signed;
use crate::v2::{Bin, Blob, Code, DeviceId, Id, Key};

const DAY_MS: u64 = 24 * 3_600_000;
/// One complaint per device of a peer in this time, in each direction, ms.
pub(super) const COMPLAIN_EVERY_MS: u64 = 600_000;
/// Complaints of one device that are honoured per day.
const COMPLAINTS_PER_DAY: usize = 6;
/// Messages sealed again for one complaint.
const MAX_RESEALS: usize = 64;
/// Times one message is sealed again.
const MAX_RESEALS_EACH: u8 = 3;
/// In the place of devices that no list of ours names.
const UNLISTED: DeviceId = Bin([0; 16]);

impl Mail {
    /// Tells a device that its message cannot be opened; `None` when it was told lately.
    pub(super) fn complain(
        &mut self,
        row: &SpoolRow,
        code: Code,
        now_ms: u64,
        commit: &mut Commit,
    ) -> Option<(Key, Id, Blob)> {
        let mut known = self.records.peers.get(&row.from).cloned().unwrap_or_default();
        let told = known.complained.get(&row.device).copied();
        if told.is_some_and(|at| at.saturating_add(COMPLAIN_EVERY_MS) > now_ms) {
            return None;
        }
        known.complained.retain(|_, at| at.saturating_add(COMPLAIN_EVERY_MS) > now_ms);
        known.complained.insert(row.device, now_ms);
        self.put(commit, Write::Peer(row.from, Box::new(known)));
        let error = ErrorBody { code, about: row.id, retry_ms: None, text: None };
        let content = Content::new("error", CONTROL_THREAD.parse().ok()?, Body::Error(error));
        let (id, env) = self.bare(row.from, &content, commit, now_ms)?;
        Some((row.from, id, Blob(env)))
    }

    /// Reads a bare envelope: from known keys, and two kinds of error only.
    pub(super) fn open_bare(&mut self, envelope: &Envelope<'_>, now_ms: u64, opened: &mut Opened) -> Outcome {
        let header = envelope.header;
        let malformed = Outcome::Dropped(Dropped::Malformed);
        let Some(bytes) = envelope.bare_content() else { return malformed };
        let Ok(content) = Content::parse(bytes) else { return malformed };
        let is_known = self.records.peers.get(&header.from).is_some_and(|peer| peer.list.is_some());
        if !is_known {
            return Outcome::Dropped(Dropped::BadDevice);
        }
        let Body::Error(ErrorBody { code: code @ (Code::NoSession | Code::LostKey), about, .. }) =
            content.body
        else {
            return if content.kind == "ping" { Outcome::Control } else { malformed };
        };
        let hash = content_hash(&header.from, &header.device, &header.id, bytes);
        let seen = SeenRow { hash, status: None, until: header.expires.saturating_add(DAY_MS) };
        self.put(&mut opened.commit, Write::Seen(header.from, header.id, seen));
        let honoured = self.repair(
            &header.from,
            header.device,
            &about,
            code,
            header.created,
            now_ms,
            &mut opened.commit,
        );
        opened.keys_failed = honoured && code == Code::NoSession;
        Outcome::Control
    }

    /// Whether the complaint is honoured.
    #[allow(clippy::too_many_arguments, reason = "the facts of one complaint")]
    fn repair(
        &mut self,
        peer: &Key,
        device: DeviceId,
        about: &Id,
        code: Code,
        said_at: u64,
        now_ms: u64,
        commit: &mut Commit,
    ) -> bool {
        let Some(row) = self.records.outbox.get(&(*peer, *about)).filter(|row| row.is_open()).cloned() else {
            return false;
        };
        let mut known = self.records.peers.get(peer).cloned().unwrap_or_default();
        let list = known.list.as_ref().map(Signed::object);
        let missing_leg = !row.legs.iter().any(|(to, _)| *to == device);
        let is_removed = list.is_some_and(|list| list.removed.contains(&device));
        if missing_leg && (code != Code::NoSession || is_removed) {
            return false;
        }
        let is_listed = list.is_some_and(|list| list.devices.contains(&device));
        let newer_list = list.map_or(0, |list| list.seq.saturating_add(1));
        let used = row.legs.iter().find(|(to, _)| *to == device).map(|(_, session)| session.clone());
        let session = used.and_then(|id| self.records.sessions.get(&(*peer, device, id)));
        if session.is_some_and(|session| session.created_at >= said_at) {
            return false;
        }
        // Devices that no list of ours names share one allowance.
        let heard = known.complaints.entry(if is_listed { device } else { UNLISTED }).or_default();
        heard.retain(|at| at.saturating_add(DAY_MS) > now_ms);
        let lately = heard.last().is_some_and(|at| at.saturating_add(COMPLAIN_EVERY_MS) > now_ms);
        if lately || heard.len() >= COMPLAINTS_PER_DAY {
            return false;
        }
        heard.push(now_ms);
        let mut again = vec![row];
        if code == Code::NoSession {
            if !is_listed {
                // It was sealed by a list of the past: the peer signs in the name of a device that is not in ours.
                known.wanted_list = known.wanted_list.max(newer_list);
            } else if !known.renew.contains(&device) {
                known.renew.push(device);
            }
            known.claimed_at = 0;
            let first = (*peer, Bin([0; 16]))..=(*peer, Bin([0xff; 16]));
            let for_device = |row: &&OutRow| {
                let has_leg = row.legs.iter().any(|(to, _)| *to == device);
                row.is_open() && row.id != *about && row.env.is_some() && has_leg != missing_leg
            };
            again.extend(
                self.records
                    .outbox
                    .range(first)
                    .map(|(_, row)| row)
                    .filter(for_device)
                    .take(MAX_RESEALS - 1)
                    .cloned(),
            );
        }
        self.put(commit, Write::Peer(*peer, Box::new(known)));
        for mut row in again.into_iter().filter(|row| row.reseals < MAX_RESEALS_EACH) {
            row.reseals += 1;
            row.env = None;
            row.held = false;
            self.in_flight.remove(&(row.peer, row.id));
            self.put(commit, Write::Out(Box::new(row)));
        }
        true
    }

    /// Whether a peer spoke of a device list that is newer than the one that is known.
    pub fn wants_newer_list(&self, peer: &Key) -> bool {
        let known = self.records.peers.get(peer);
        known.is_some_and(|known| {
            known.list.as_ref().is_some_and(|list| known.wanted_list > list.object().seq)
        })
    }
}
