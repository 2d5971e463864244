//! All rate windows of the core and the number of connections per source.

use std::collections::HashMap;

use threadline::Fingerprint;

use super::{ConnId, Source};
use crate::config::RelayConfig;
use crate::limits::{Rule, Windows};

/// Keys per window; [`CoreWindows::bound_bytes`] is what they cost at most.
const AGENTS: usize = 26_000;
const SOURCES: usize = 8_000;
const SESSIONS: usize = 18_000;
const FEW: usize = 5_000;
const FEWER: usize = 1_500;

/// Connections of one source that are not logged in, and all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Open {
    pub(super) before_login: u32,
    pub(super) all: u32,
}

pub(super) struct CoreWindows {
    pub(super) per_source: bool,
    pub(super) open: HashMap<[u8; 8], Open>,
    pub(super) before_login: u32,
    pub(super) connections: Windows<[u8; 8]>,
    pub(super) auth: Windows<[u8; 8]>,
    pub(super) auth_failed: Windows<[u8; 8]>,
    /// Sources that are shut out: until when, and how long the last time.
    pub(super) shut_out: HashMap<[u8; 8], (i64, i64)>,
    pub(super) minute: Windows<Fingerprint>,
    pub(super) hour: Windows<Fingerprint>,
    pub(super) source: Windows<[u8; 8]>,
    pub(super) global: Windows<()>,
    pub(super) routed: Windows<()>,
    /// Identities that came for the first time.
    pub(super) newcomers: Windows<()>,
    pub(super) discover: Windows<Fingerprint>,
    /// LOOKUP and SEARCH.
    pub(super) lookups: Windows<Fingerprint>,
    /// KEYS_CLAIM by the one who claims, by the pair, and by the one whose keys strangers claim.
    pub(super) claims: Windows<Fingerprint>,
    pub(super) claims_of_pair: Windows<(Fingerprint, Fingerprint)>,
    pub(super) claims_of_target: Windows<Fingerprint>,
    /// MiB of blobs.
    pub(super) blobs: Windows<Fingerprint>,
    /// News told to sessions that watch everybody.
    pub(super) news: Windows<ConnId>,
    pub(super) frames: Windows<ConnId>,
    pub(super) junk: Windows<ConnId>,
    turn: usize,
}

/// First time a source is shut out, and the longest, in milliseconds.
const SHUT_OUT_MS: (i64, i64) = (60_000, 900_000);

impl CoreWindows {
    pub(super) fn new(config: &RelayConfig) -> Self {
        let limits = &config.limits;
        let (minute, hour) = (Rule::per_minute, Rule::per_hour);
        Self {
            per_source: limits.per_source,
            open: HashMap::new(),
            before_login: 0,
            connections: Windows::new(minute(config.sybil.connections_per_minute), SOURCES),
            auth: Windows::new(minute(limits.auth_per_minute), SOURCES),
            auth_failed: Windows::new(minute(limits.auth_failed_per_minute), SOURCES),
            shut_out: HashMap::new(),
            minute: Windows::new(minute(limits.messages_per_minute), AGENTS),
            hour: Windows::new(hour(limits.messages_per_hour), AGENTS),
            source: Windows::new(minute(limits.source_per_minute), SOURCES),
            global: Windows::new(minute(limits.global_per_minute), 1),
            routed: Windows::new(minute(u32::MAX), 1),
            newcomers: Windows::new(hour(u32::MAX), 1),
            discover: Windows::new(minute(limits.discover_per_minute), FEW),
            lookups: Windows::new(minute(limits.lookup_frames_per_minute), FEWER),
            claims: Windows::new(minute(limits.claims_per_minute), FEWER),
            claims_of_pair: Windows::new(hour(limits.claims_per_pair_hour), FEWER),
            claims_of_target: Windows::new(hour(limits.claims_per_target_hour), FEWER),
            blobs: Windows::new(hour(limits.blob_mib_per_hour), FEWER),
            news: Windows::new(minute(limits.presence_of_all_per_minute), FEWER),
            frames: Windows::new(minute(limits.frames_per_minute), SESSIONS),
            junk: Windows::new(minute(limits.junk_per_minute), FEW),
            turn: 0,
        }
    }

    pub(super) fn entered(&mut self, source: &Source) {
        let open = self.open.entry(source.net).or_default();
        open.before_login += 1;
        open.all += 1;
        self.before_login += 1;
    }

    pub(super) fn logged_in(&mut self, source: &Source) {
        if let Some(open) = self.open.get_mut(&source.net) {
            open.before_login = open.before_login.saturating_sub(1);
        }
        self.before_login = self.before_login.saturating_sub(1);
    }

    pub(super) fn left(&mut self, source: &Source, before_login: bool) {
        if before_login {
            self.logged_in(source);
        }
        if let Some(open) = self.open.get_mut(&source.net) {
            open.all = open.all.saturating_sub(1);
            if open.all == 0 {
                self.open.remove(&source.net);
            }
        }
    }

    /// Notes a failed login; a source with too many is shut out, each time for twice as long.
    pub(super) fn failed(&mut self, source: &Source, now_ms: i64) {
        if !self.per_source || self.auth_failed.take(&source.net, now_ms).is_ok() {
            return;
        }
        let (first, longest) = SHUT_OUT_MS;
        let before = self.shut_out.get(&source.net).map(|(_, length)| *length);
        let length = before.map_or(first, |length| (length * 2).min(longest));
        self.shut_out.insert(source.net, (now_ms + length, length));
    }

    /// Drops what is older than its window. Each call does a part, so that none takes long.
    pub(super) fn forget_idle(&mut self, now_ms: i64) {
        self.turn += 1;
        match self.turn % 15 {
            0 => self.connections.forget_idle(now_ms),
            1 => self.auth.forget_idle(now_ms),
            2 => self.auth_failed.forget_idle(now_ms),
            3 => self.source.forget_idle(now_ms),
            4 => self.minute.forget_idle(now_ms),
            5 => self.hour.forget_idle(now_ms),
            6 => self.discover.forget_idle(now_ms),
            7 => self.frames.forget_idle(now_ms),
            8 => self.lookups.forget_idle(now_ms),
            9 => self.claims.forget_idle(now_ms),
            10 => self.claims_of_pair.forget_idle(now_ms),
            11 => self.claims_of_target.forget_idle(now_ms),
            12 => self.blobs.forget_idle(now_ms),
            13 => self.news.forget_idle(now_ms),
            _ => self.junk.forget_idle(now_ms),
        }
        self.shut_out.retain(|_, (until, length)| *until + *length > now_ms);
    }

    /// Turn of the next [`CoreWindows::forget_idle`], for others that tidy up in parts.
    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    /// Most bytes the windows use.
    #[cfg(test)]
    pub(super) fn bound_bytes(&self) -> usize {
        let sources = [&self.connections, &self.auth, &self.auth_failed, &self.source];
        let agents = [
            &self.minute,
            &self.hour,
            &self.discover,
            &self.lookups,
            &self.claims,
            &self.claims_of_target,
            &self.blobs,
        ];
        let sessions = [&self.news, &self.frames, &self.junk];
        sources.map(Windows::bound_bytes).iter().sum::<usize>()
            + agents.map(Windows::bound_bytes).iter().sum::<usize>()
            + self.claims_of_pair.bound_bytes()
            + sessions.map(Windows::bound_bytes).iter().sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abuse::Abuse;

    #[test]
    fn all_windows_and_detectors_stay_within_60_mib() {
        let config = RelayConfig::default();
        let bytes =
            CoreWindows::new(&config).bound_bytes() + Abuse::new(&config.abuse, &config.limits).bound_bytes();
        assert!(bytes <= 60 << 20, "{} MiB", bytes >> 20);
    }
}
