//! All rate windows of the core and the number of connections per source.

use std::collections::HashMap;

use threadline::Fingerprint;

use super::{ConnId, Source};
use crate::config::RelayConfig;
use crate::limits::{Rule, Windows};

/// Keys per window: with at most 60 buckets of 16 bytes each the windows stay below 64 MiB together.
const KEYS: usize = 10_000;

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
    pub(super) discover: Windows<Fingerprint>,
    pub(super) frames: Windows<ConnId>,
    pub(super) junk: Windows<ConnId>,
    pub(super) oversize: Windows<Fingerprint>,
}

/// First time a source is shut out, and the longest, in milliseconds.
const SHUT_OUT_MS: (i64, i64) = (60_000, 900_000);
const OVERSIZE_PER_HOUR: u32 = 3;

impl CoreWindows {
    pub(super) fn new(config: &RelayConfig) -> Self {
        let limits = &config.limits;
        let (minute, hour) = (Rule::per_minute, Rule::per_hour);
        Self {
            per_source: limits.per_source,
            open: HashMap::new(),
            before_login: 0,
            connections: Windows::new(minute(config.sybil.connections_per_minute), KEYS),
            auth: Windows::new(minute(limits.auth_per_minute), KEYS),
            auth_failed: Windows::new(minute(limits.auth_failed_per_minute), KEYS),
            shut_out: HashMap::new(),
            minute: Windows::new(minute(limits.messages_per_minute), KEYS),
            hour: Windows::new(hour(limits.messages_per_hour), KEYS),
            source: Windows::new(minute(limits.source_per_minute), KEYS),
            global: Windows::new(minute(limits.global_per_minute), 1),
            routed: Windows::new(minute(u32::MAX), 1),
            discover: Windows::new(minute(limits.discover_per_minute), KEYS),
            frames: Windows::new(minute(limits.frames_per_minute), KEYS),
            junk: Windows::new(minute(limits.junk_per_minute), KEYS),
            oversize: Windows::new(hour(OVERSIZE_PER_HOUR), KEYS),
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

    pub(super) fn forget_idle(&mut self, now_ms: i64) {
        for window in [&mut self.connections, &mut self.auth, &mut self.auth_failed, &mut self.source] {
            window.forget_idle(now_ms);
        }
        for window in [&mut self.minute, &mut self.hour, &mut self.discover, &mut self.oversize] {
            window.forget_idle(now_ms);
        }
        self.frames.forget_idle(now_ms);
        self.junk.forget_idle(now_ms);
        self.shut_out.retain(|_, (until, length)| *until + *length > now_ms);
    }
}
