//! Patterns of abuse (`relay.md` §10): what one identity does, counted; a verdict is data.
//!
//! Every call is O(1) and memory is bounded; a restart forgets the counts but not the bans, which are stored.

use threadline::Fingerprint;

use crate::config;
use crate::limits::{Rule, Windows};
use crate::maps::AddressMap;

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
/// Identities whose recipients are remembered at a time.
const SENDERS: usize = 2_000;

/// Something nobody does who means well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pattern {
    /// Many recipients in a minute.
    Spam,
    /// Far more messages than the rate allows, for minutes.
    Flooding,
    /// Login after login.
    Churn,
    /// Messages above the size limit.
    Oversized,
    /// Messages to or lookups of addresses that were never here.
    Enumeration,
    /// Frames that are none.
    Junk,
}

impl Pattern {
    /// All patterns, in the order of [`Pattern::index`].
    pub const ALL: [Self; 6] =
        [Self::Spam, Self::Flooding, Self::Churn, Self::Oversized, Self::Enumeration, Self::Junk];

    /// Place in [`Pattern::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in lists, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spam => "spam",
            Self::Flooding => "flooding",
            Self::Churn => "churn",
            Self::Oversized => "oversized",
            Self::Enumeration => "enumeration",
            Self::Junk => "junk",
        }
    }

    /// What the identity did, for people.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Spam => "too many different recipients",
            Self::Flooding => "too many messages for minutes",
            Self::Churn => "too many logins",
            Self::Oversized => "too many oversized messages",
            Self::Enumeration => "too many unknown addresses",
            Self::Junk => "too many malformed frames",
        }
    }

    /// Milliseconds of the first ban.
    pub const fn ban_ms(self) -> i64 {
        match self {
            Self::Flooding => 24 * HOUR_MS,
            Self::Junk => 10 * MINUTE_MS,
            Self::Spam | Self::Churn | Self::Oversized | Self::Enumeration => HOUR_MS,
        }
    }
}

/// What writing to a recipient means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// Written to within the last minute already.
    Again,
    /// The first message in a minute: whether the address is known here is worth a look.
    Fresh,
    /// One recipient too many.
    Ban(Pattern),
}

/// When one identity last wrote to whom.
#[derive(Debug, Default)]
struct Recipients {
    last_ms: AddressMap<Fingerprint, i64>,
    newest_ms: i64,
}

/// The detectors.
#[derive(Debug)]
pub struct Abuse {
    enabled: bool,
    spam_recipients: usize,
    attempts: Windows<Fingerprint>,
    logins: Windows<Fingerprint>,
    oversized: Windows<Fingerprint>,
    unknown: Windows<Fingerprint>,
    junk: Windows<Fingerprint>,
    recipients: AddressMap<Fingerprint, Recipients>,
}

impl Abuse {
    /// Nothing seen yet.
    pub fn new(config: &config::Abuse, limits: &config::Limits) -> Self {
        let flooding = config.flooding_messages.max(limits.messages_per_minute.saturating_mul(50));
        let window = |window_ms, limit, keys| Windows::new(Rule { window_ms, limit }, keys);
        Self {
            enabled: config.enabled,
            spam_recipients: config.spam_recipients as usize,
            attempts: window(5 * MINUTE_MS, flooding, 26_000),
            logins: window(HOUR_MS, config.churn_logins, 10_000),
            oversized: window(HOUR_MS, config.oversized_messages, 5_000),
            unknown: window(10 * MINUTE_MS, config.unknown_addresses, 5_000),
            // As many as are tolerated; one more is the pattern.
            junk: window(MINUTE_MS, limits.junk_per_minute.saturating_add(1), 5_000),
            recipients: AddressMap::default(),
        }
    }

    /// A message arrived, whatever becomes of it.
    pub fn attempted(&mut self, who: &Fingerprint, now_ms: i64) -> Option<Pattern> {
        reached(self.enabled, &mut self.attempts, who, now_ms).then_some(Pattern::Flooding)
    }

    /// A login succeeded.
    pub fn logged_in(&mut self, who: &Fingerprint, now_ms: i64) -> Option<Pattern> {
        reached(self.enabled, &mut self.logins, who, now_ms).then_some(Pattern::Churn)
    }

    /// A message or frame was above the size limit.
    pub fn oversized(&mut self, who: &Fingerprint, now_ms: i64) -> Option<Pattern> {
        reached(self.enabled, &mut self.oversized, who, now_ms).then_some(Pattern::Oversized)
    }

    /// A message went to, or a lookup asked for, an address that was never here.
    pub fn unknown_address(&mut self, who: &Fingerprint, now_ms: i64) -> Option<Pattern> {
        reached(self.enabled, &mut self.unknown, who, now_ms).then_some(Pattern::Enumeration)
    }

    /// A frame could not be read.
    pub fn malformed(&mut self, who: &Fingerprint, now_ms: i64) -> Option<Pattern> {
        reached(true, &mut self.junk, who, now_ms).then_some(Pattern::Junk)
    }

    /// `who` wrote to `recipient`, who did not write to it before.
    pub fn contacted(&mut self, who: &Fingerprint, recipient: &Fingerprint, now_ms: i64) -> Contact {
        if !self.enabled {
            return Contact::Again;
        }
        if !self.recipients.contains_key(who) && self.recipients.len() >= SENDERS {
            self.forget_recipients(now_ms);
        }
        let seen = self.recipients.entry(*who).or_default();
        seen.newest_ms = now_ms;
        let before = seen.last_ms.insert(*recipient, now_ms);
        if before.is_some_and(|at| now_ms - at < MINUTE_MS) {
            return Contact::Again;
        }
        if seen.last_ms.len() >= self.spam_recipients {
            seen.last_ms.retain(|_, at| now_ms - *at < MINUTE_MS);
            if seen.last_ms.len() >= self.spam_recipients {
                self.recipients.remove(who);
                return Contact::Ban(Pattern::Spam);
            }
        }
        Contact::Fresh
    }

    /// Identities with an attempt in the last five minutes.
    pub fn tracked(&self) -> usize {
        self.attempts.len()
    }

    /// Drops what is older than its window; to be called now and then, each call does a part.
    pub fn forget_idle(&mut self, turn: usize, now_ms: i64) {
        match turn % 6 {
            0 => self.attempts.forget_idle(now_ms),
            1 => self.logins.forget_idle(now_ms),
            2 => self.oversized.forget_idle(now_ms),
            3 => self.unknown.forget_idle(now_ms),
            4 => self.junk.forget_idle(now_ms),
            _ => self.recipients.retain(|_, seen| now_ms - seen.newest_ms < MINUTE_MS),
        }
    }

    /// Most bytes the detectors use.
    pub fn bound_bytes(&self) -> usize {
        // A recipient is 24 bytes, in a table that is at most half empty.
        let recipients = SENDERS.saturating_mul(self.spam_recipients).saturating_mul(48);
        let windows = [&self.attempts, &self.logins, &self.oversized, &self.unknown, &self.junk];
        windows.iter().fold(recipients, |sum, window| sum.saturating_add(window.bound_bytes()))
    }

    fn forget_recipients(&mut self, now_ms: i64) {
        self.recipients.retain(|_, seen| now_ms - seen.newest_ms < MINUTE_MS);
        if self.recipients.len() < SENDERS {
            return;
        }
        let mut newest: Vec<i64> = self.recipients.values().map(|seen| seen.newest_ms).collect();
        let at = newest.len() / 10;
        let (_, cut, _) = newest.select_nth_unstable(at);
        let cut = *cut;
        self.recipients.retain(|_, seen| seen.newest_ms > cut);
    }
}

fn reached(enabled: bool, window: &mut Windows<Fingerprint>, who: &Fingerprint, now_ms: i64) -> bool {
    enabled && window.add(who, now_ms) >= window.rule().limit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelayConfig;

    const NOW: i64 = 1_768_478_400_000;

    fn abuse() -> Abuse {
        let config = RelayConfig::default();
        Abuse::new(&config.abuse, &config.limits)
    }

    fn address(n: u32) -> Fingerprint {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        Fingerprint::from_bytes(bytes)
    }

    fn nth(
        n: u32,
        gap_ms: i64,
        mut event: impl FnMut(&mut Abuse, i64) -> Option<Pattern>,
    ) -> Option<Pattern> {
        let mut abuse = abuse();
        let mut last = None;
        for i in 0..n {
            last = event(&mut abuse, NOW + i64::from(i) * gap_ms);
        }
        last
    }

    #[test]
    fn counts_are_exact_at_their_edges() {
        let who = address(0);
        for (n, found) in [(2_999, None), (3_000, Some(Pattern::Flooding)), (3_001, Some(Pattern::Flooding))]
        {
            assert_eq!(nth(n, 90, |a, now| a.attempted(&who, now)), found, "{n} in 4:30");
        }
        assert_eq!(nth(3_100, 110, |a, now| a.attempted(&who, now)), None, "slower than 600 a minute");
        for (n, found) in [(99, None), (100, Some(Pattern::Churn))] {
            assert_eq!(nth(n, 1_000, |a, now| a.logged_in(&who, now)), found);
        }
        for (n, found) in [(2, None), (3, Some(Pattern::Oversized))] {
            assert_eq!(nth(n, 1_000_000, |a, now| a.oversized(&who, now)), found);
        }
        assert_eq!(nth(3, 1_830_000, |a, now| a.oversized(&who, now)), None, "three in 61 minutes");
        for (n, found) in [(29, None), (30, Some(Pattern::Enumeration))] {
            assert_eq!(nth(n, 1_000, |a, now| a.unknown_address(&who, now)), found);
        }
        for (n, found) in [(20, None), (21, Some(Pattern::Junk))] {
            assert_eq!(nth(n, 1_000, |a, now| a.malformed(&who, now)), found);
        }
    }

    #[test]
    fn fifty_recipients_in_a_sliding_minute_are_spam() {
        let who = address(0);
        let mut abuse = abuse();
        for n in 1..50 {
            assert_eq!(abuse.contacted(&who, &address(n), NOW + i64::from(n) * 1_000), Contact::Fresh);
            assert_eq!(abuse.contacted(&who, &address(n), NOW + i64::from(n) * 1_000), Contact::Again);
        }
        assert_eq!(abuse.contacted(&who, &address(50), NOW + 61_000), Contact::Fresh, "the first is too old");
        assert_eq!(abuse.contacted(&who, &address(51), NOW + 61_000), Contact::Ban(Pattern::Spam));
        assert_eq!(abuse.contacted(&address(9), &address(51), NOW + 61_000), Contact::Fresh);
    }

    #[test]
    fn memory_is_bounded_and_the_busy_ones_stay() {
        let mut abuse = abuse();
        for n in 0..20_000 {
            abuse.contacted(&address(n), &address(1), NOW + i64::from(n));
        }
        assert!(abuse.recipients.len() <= SENDERS);
        assert_eq!(abuse.contacted(&address(19_999), &address(1), NOW + 20_000), Contact::Again);
        for turn in 0..6 {
            abuse.forget_idle(turn, NOW + HOUR_MS);
        }
        assert!(abuse.recipients.is_empty() && abuse.tracked() == 0);
    }

    #[test]
    fn switched_off_only_junk_remains() {
        let mut config = RelayConfig::default();
        config.abuse.enabled = false;
        let mut abuse = Abuse::new(&config.abuse, &config.limits);
        let who = address(0);
        for n in 0..200 {
            assert_eq!(abuse.logged_in(&who, NOW), None);
            assert_eq!(abuse.contacted(&who, &address(n), NOW), Contact::Again);
        }
        for _ in 0..20 {
            assert_eq!(abuse.malformed(&who, NOW), None);
        }
        assert_eq!(abuse.malformed(&who, NOW), Some(Pattern::Junk));
    }
}
