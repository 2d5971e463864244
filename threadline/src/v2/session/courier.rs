//! Who is asked for keys, and which relay gets which envelope: what a node with several relays decides between its mail
//! and its sessions.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ClientSession;
use crate::path::{
    CUSTODY_PATIENCE_MS, PATIENCE_MS, Path, PathMemory, PathStep, PathTrail, PeerFacts, RelayFacts,
    candidates,
};
use crate::v2::envelope::Envelope;
use crate::v2::frames::{Accepted, Frame, Looked, Standing, Target};
use crate::v2::mail::{CarrierAnswer, Commit, LearnError, Mail, OutRow};
use crate::v2::{Blob, Code, Id, Key};

/// A relay that did not answer a question for this long is not asked first the next time, ms.
const ANSWER_MS: u64 = 10_000;
/// A relay that had a message under several sealings takes another one hardly before this, ms.
const DUPLICATE_PAUSE_MS: u64 = 300_000;
/// Peers of which it is remembered which relay leads to them.
const MAX_PATHS: usize = 4_096;
/// Life of a bare envelope at a relay, s.
const BARE_LIFE_S: u64 = 3_600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    peer: Key,
    /// Unix ms.
    asked_at: u64,
    about: About,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// Keys to seal with.
    Keys,
    /// Who its devices are: mail of one that is not known waits for that.
    Devices,
}

/// The machine. Relays are numbered as the sessions that come with every call.
#[derive(Debug, Default)]
pub struct Courier {
    /// Questions about peers, by relay and number.
    questions: BTreeMap<(usize, u32), Question>,
    /// Which relay is asked first; moves on when one had no answer.
    asks_first: usize,
    /// Which relay gave the newest keys of a peer.
    told_by: HashMap<Key, usize>,
    /// How often a relay's word about a peer led nowhere: those of which that is true most often are asked last.
    misled: HashMap<Key, BTreeMap<usize, u32>>,
    trails: HashMap<(Key, Id), PathTrail>,
    paths: HashMap<Key, PathMemory>,
    bare: Vec<(Key, Id, Blob)>,
    /// Whether a relay that speaks v1 alone carries envelopes inside its messages.
    inside_v1: bool,
    /// Envelopes for it.
    for_v1: Vec<(Key, Id, Blob)>,
}

impl Courier {
    /// Whether something waits for a carrier that may have to be given to another one.
    pub fn waits(&self) -> bool {
        !self.trails.is_empty() || !self.questions.is_empty()
    }

    /// Whether there is a relay that speaks v1 alone, and carries envelopes inside its messages. When it comes, everything
    /// goes out again.
    pub fn set_inside_v1(&mut self, mail: &mut Mail, is_there: bool, now_ms: u64) {
        if is_there && !std::mem::replace(&mut self.inside_v1, is_there) {
            self.welcomed(mail, now_ms);
        }
        self.inside_v1 = is_there;
    }

    /// Envelopes to hand to the relay of v1, in this order. The mail is told of each by [`CarrierAnswer::Written`].
    pub fn take_for_v1(&mut self) -> Vec<(Key, Id, Blob)> {
        std::mem::take(&mut self.for_v1)
    }

    /// [`Courier::heard`] of the relay of v1, beside `sessions` others.
    pub fn heard_in_v1(&mut self, sessions: usize, from: Key, now_ms: u64) {
        self.paths.entry(from).or_default().worked(Path::V2InV1(sessions), now_ms);
    }

    /// A bare envelope to hand to every relay once.
    pub fn carry(&mut self, envelope: (Key, Id, Blob)) {
        self.bare.push(envelope);
    }

    /// Asks for keys of a peer that a message waits for, unless they were asked for.
    pub fn claim_keys(&mut self, sessions: &mut [ClientSession], peer: Key, now_ms: u64) {
        if !self.questions.values().any(|question| question.peer == peer) {
            self.ask(sessions, peer, About::Keys, now_ms);
        }
    }

    /// Asks who a peer's devices are, unless that was asked.
    pub fn look_up(&mut self, sessions: &mut [ClientSession], peer: Key, now_ms: u64) {
        if !self.questions.values().any(|q| q.peer == peer && q.about == About::Devices) {
            self.ask(sessions, peer, About::Devices, now_ms);
        }
    }

    /// Puts a question about a peer to the first relay that is there.
    fn ask(&mut self, sessions: &mut [ClientSession], peer: Key, about: About, now_ms: u64) {
        let ask = |session: &mut ClientSession| match about {
            About::Keys => session.claim_keys(peer),
            About::Devices => session.lookup(Target::Key(peer)),
        };
        let count = sessions.len();
        let misled = self.misled.get(&peer);
        let mut order: Vec<usize> =
            (0..count).map(|step| self.asks_first.wrapping_add(step) % count).collect();
        order.sort_by_key(|relay| misled.and_then(|misled| misled.get(relay)).copied().unwrap_or_default());
        for relay in order {
            if let Some(Ok(request)) = sessions.get_mut(relay).map(ask) {
                self.questions.insert((relay, request), Question { peer, asked_at: now_ms, about });
                return;
            }
        }
    }

    /// Gives questions up that were not answered.
    pub fn expire(&mut self, now_ms: u64) {
        let asked = self.questions.len();
        self.questions.retain(|_, question| question.asked_at.saturating_add(ANSWER_MS) > now_ms);
        if self.questions.len() < asked {
            self.asks_first = self.asks_first.wrapping_add(1);
        }
    }

    /// A relay answered a question. `None` when nobody asked it; an error comes with what has to be stored all the same.
    pub fn answer(
        &mut self,
        mail: &mut Mail,
        sessions: &[ClientSession],
        (relay, request): (usize, u32),
        frame: Frame,
        now_ms: u64,
    ) -> Option<(Commit, Option<LearnError>)> {
        let Question { peer, about, .. } = self.questions.remove(&(relay, request))?;
        let learnt = match frame {
            Frame::Keys(keys) => mail.learn_keys(&peer, &keys, now_ms),
            Frame::Looked(Looked { certs, list: Some(list), .. }) => {
                mail.learn_devices(&peer, &certs, &list, now_ms)
            }
            _ => {
                self.asks_first = self.asks_first.wrapping_add(1);
                Ok(mail.keys_unavailable(&peer, now_ms))
            }
        };
        Some(match learnt {
            Ok(commit) => {
                self.told_by.insert(peer, relay);
                if mail.wants_newer_list(&peer) {
                    // It keeps back what the peer itself spoke of.
                    self.misled(peer, relay);
                }
                (commit, None)
            }
            Err(error) => {
                // Keys that are not the peer's are this relay's doing: another one is asked next.
                self.misled(peer, relay);
                let mut commit = mail.keys_unavailable(&peer, now_ms);
                if about == About::Devices && self.may_another_know(sessions, &peer, relay) {
                    // What waits for the answer asks again.
                    commit.writes.extend(mail.retry_spool(&peer).writes);
                }
                (commit, Some(error))
            }
        })
    }

    /// What was learnt about a peer led nowhere: its devices cannot open what was sealed by it, or they are others by now. The
    /// relay that said so may be mistaken or lie; another one is asked next.
    pub fn keys_failed(&mut self, peer: Key) {
        if let Some(relay) = self.told_by.get(&peer) {
            self.misled(peer, *relay);
        }
    }

    /// Whether a relay is there that misled about this peer less often.
    fn may_another_know(&self, sessions: &[ClientSession], peer: &Key, relay: usize) -> bool {
        let Some(misled) = self.misled.get(peer) else { return false };
        let times = |relay: usize| misled.get(&relay).copied().unwrap_or_default();
        let mut ready = sessions.iter().enumerate().filter(|(_, session)| session.is_ready());
        ready.any(|(other, _)| times(other) < times(relay))
    }

    fn misled(&mut self, peer: Key, relay: usize) {
        if self.misled.len() >= MAX_PATHS {
            self.misled.clear();
        }
        let times = self.misled.entry(peer).or_default().entry(relay).or_default();
        *times = times.saturating_add(1);
    }

    /// A session was opened: everything goes out again, beginning with the best path.
    pub fn welcomed(&mut self, mail: &mut Mail, now_ms: u64) {
        mail.reconnected(now_ms);
        self.trails.clear();
    }

    /// A session ended: what it was given and asked is not answered any more, and what its relay holds may be gone with it.
    /// Relays that were away are asked for again.
    pub fn lost(&mut self, mail: &mut Mail, sessions: &mut [ClientSession], relay: usize, now_ms: u64) {
        self.questions.retain(|(at, _), _| *at != relay);
        let path = Path::RelayV2(relay);
        let goes_on = sessions.get(relay).is_some_and(ClientSession::is_ready);
        if !goes_on {
            for (_, session) in sessions.iter_mut().enumerate().filter(|(other, _)| *other != relay) {
                session.hurry(now_ms);
            }
            for memory in self.paths.values_mut().filter(|memory| memory.current() == Some(path)) {
                memory.failed(path, now_ms);
            }
        }
        mail.carrier_lost(now_ms);
        let with_it = self.trails.iter().filter(|(_, trail)| trail.went(path)).map(|(message, _)| *message);
        mail.custody_lost(with_it, now_ms);
    }

    /// A relay brought something that a peer wrote: what is written to that peer, receipts above all, goes back the same
    /// way. Another relay may swallow it, or hold it for a session that is dead.
    pub fn heard(&mut self, relay: usize, from: Key, now_ms: u64) {
        self.paths.entry(from).or_default().worked(Path::RelayV2(relay), now_ms);
    }

    /// A relay took an envelope.
    pub fn accepted(
        &mut self,
        relay: usize,
        sessions: &[ClientSession],
        (to, id): (Key, Id),
        answer: &Accepted,
        now_ms: u64,
    ) -> CarrierAnswer {
        self.paths.entry(to).or_default().worked(Path::RelayV2(relay), now_ms);
        let trail = self.trails.entry((to, id)).or_default();
        CarrierAnswer::Accepted {
            live: answer.st == Standing::Live,
            others: is_next(sessions, self.inside_v1, trail),
        }
    }

    /// A relay refused an envelope: for good, and the others are asked before the message counts as failed, or for now,
    /// and one that is there and did not have it yet gets it at once.
    pub fn rejected(
        &mut self,
        relay: usize,
        sessions: &[ClientSession],
        (to, id): (Key, Id),
        code: Code,
        retry_ms: Option<u64>,
        now_ms: u64,
    ) -> CarrierAnswer {
        let path = Path::RelayV2(relay);
        let memory = self.paths.entry(to).or_default();
        let trail = self.trails.entry((to, id)).or_default();
        if code.is_retryable() || code == Code::Duplicate {
            if code == Code::Duplicate {
                // It had as many sealings of this message as it takes: it does not refuse the message.
                memory.silent(path, now_ms);
            } else {
                memory.failed(path, now_ms);
            }
            trail.declined(path);
            let later = if code == Code::Duplicate { Some(DUPLICATE_PAUSE_MS) } else { retry_ms };
            let retry_ms = if is_next(sessions, self.inside_v1, trail) { Some(0) } else { later };
            return CarrierAnswer::Rejected { code, retry_ms, last_path: false };
        }
        trail.refused(path);
        let inside_v1 = self.inside_v1.then_some(Path::V2InV1(sessions.len()));
        let all: Vec<Path> = (0..sessions.len()).map(Path::RelayV2).chain(inside_v1).collect();
        let last_path = memory.step(&all, trail, u64::MAX) == PathStep::Refused;
        CarrierAnswer::Rejected { code, retry_ms, last_path }
    }

    /// A relay gave up an envelope that it held.
    pub fn gave_up(&self, sessions: &[ClientSession], message: (Key, Id)) -> CarrierAnswer {
        let trail = self.trails.get(&message);
        CarrierAnswer::GaveUp { others: trail.is_some_and(|trail| is_next(sessions, self.inside_v1, trail)) }
    }

    /// The ways of messages that are not in the outbox any more are forgotten, and with many peers, those to peers that
    /// nothing waits for: strangers write as well.
    pub fn tidy(&mut self, mail: &Mail) {
        let known = &mail.records().outbox;
        self.trails.retain(|key, _| known.get(key).is_some_and(OutRow::is_open));
        if self.paths.len() > MAX_PATHS {
            let waiting: HashSet<Key> = self.trails.keys().map(|(peer, _)| *peer).collect();
            self.paths.retain(|peer, _| waiting.contains(peer));
        }
        if self.told_by.len() > MAX_PATHS {
            self.told_by.clear();
        }
    }

    /// Hands out what is due, and to another relay what one had for too long. Returns how many were handed out.
    pub fn send(&mut self, mail: &mut Mail, sessions: &mut [ClientSession], now_ms: u64) -> u64 {
        let facts =
            |session: &ClientSession| RelayFacts { v2: session.is_ready(), v1: false, peer_listens: None };
        let mut relays: Vec<RelayFacts> = sessions.iter().map(facts).collect();
        relays.push(RelayFacts { v2: false, v1: self.inside_v1, peer_listens: None });
        if !relays.iter().any(|relay| relay.v2 || relay.v1) {
            return 0;
        }
        for (to, id, env) in std::mem::take(&mut self.bare) {
            if self.inside_v1 {
                self.for_v1.push((to, id, env.clone()));
            }
            let Ok(tag) = Envelope::parse(&env.0).map(|envelope| envelope.header.tag) else { continue };
            for session in &mut *sessions {
                let _ = session.send(to, id, tag, env.clone(), BARE_LIFE_S, 3, now_ms);
            }
        }
        let mut handed = 0;
        for row in mail.due(now_ms) {
            if self.send_one(mail, sessions, row, &relays, now_ms, true) {
                handed += 1;
                self.follow(mail, row, now_ms);
            }
        }
        for row in mail.slow(PATIENCE_MS, now_ms) {
            handed += u64::from(self.send_one(mail, sessions, row, &relays, now_ms, false));
        }
        handed
    }

    /// A message that one relay had for too long went another way: so does what was written to its peer since, or it would
    /// come long after what is written from now on.
    fn follow(&self, mail: &mut Mail, message: (Key, Id), now_ms: u64) {
        if self.trails.get(&message).is_some_and(PathTrail::is_detour) {
            let behind = |((to, id), trail): &(&(Key, Id), &PathTrail)| {
                *to == message.0 && *id > message.1 && !trail.is_detour()
            };
            mail.custody_lost(self.trails.iter().filter(behind).map(|(message, _)| *message), now_ms);
        }
    }

    /// Hands a message to the next path; `anew` begins again when every path had it.
    fn send_one(
        &mut self,
        mail: &mut Mail,
        sessions: &mut [ClientSession],
        (to, id): (Key, Id),
        relays: &[RelayFacts],
        now_ms: u64,
        anew: bool,
    ) -> bool {
        let Some(row) = mail.records().outbox.get(&(to, id)) else { return false };
        let (Some(env), priority) = (row.env.clone(), row.priority) else { return false };
        let peer = PeerFacts {
            same_host: false,
            speaks_v2: true,
            speaks_v1: false,
            may_be_clear: false,
            size: env.0.len(),
        };
        let Ok(open) = candidates(&peer, relays) else { return false };
        let trail = self.trails.entry((to, id)).or_default();
        let memory = self.paths.entry(to).or_default();
        if let Some((last, since)) = trail.waits_for() {
            let patience = if row.held { CUSTODY_PATIENCE_MS } else { PATIENCE_MS };
            if since.saturating_add(patience) <= now_ms {
                memory.silent(last, now_ms);
            }
        }
        let first = trail.is_empty();
        let path = match memory.step(&open, trail, now_ms) {
            PathStep::Take(path) => path,
            PathStep::Wait(_) => return false,
            PathStep::Exhausted | PathStep::Refused => {
                if anew {
                    *trail = PathTrail::default();
                }
                return false;
            }
        };
        if let Path::V2InV1(_) = path {
            self.for_v1.push((to, id, env));
            trail.took(path, now_ms);
            mail.handed(&to, &id, first, now_ms);
            return true;
        }
        let Path::RelayV2(relay) = path else { return false };
        let Ok(header) = Envelope::parse(&env.0).map(|envelope| envelope.header) else { return false };
        let Some(session) = sessions.get_mut(relay) else { return false };
        // By the relay's clock, which decides whether a message outlives itself; by ours where that one is behind, or lies.
        let relay_ms = session.relay_time(now_ms).max(now_ms);
        let life_s = (header.expires.saturating_sub(relay_ms) / 1_000).saturating_sub(2);
        let taken = session.send(to, id, header.tag, env, life_s, priority, now_ms).is_ok();
        if taken {
            trail.took(path, now_ms);
            mail.handed(&to, &id, first, now_ms);
        }
        taken
    }
}

/// Whether a relay is there that had not the message of this trail.
fn is_next(sessions: &[ClientSession], inside_v1: bool, trail: &PathTrail) -> bool {
    let mut ready = sessions.iter().enumerate().filter(|(_, session)| session.is_ready());
    ready.any(|(number, _)| !trail.went(Path::RelayV2(number)))
        || inside_v1 && !trail.went(Path::V2InV1(sessions.len()))
}
