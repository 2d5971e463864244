//! The inbound pipeline of a node: facts from its disk, decisions from `threadline::inbound`.

use threadline::ThreadId;
use threadline::inbound::{self, Disposition, Incoming, Policy, Refusal, SenderFacts, Standing, Verdict};
use threadline::limits::{LevelLimits, Limits, Usage, Window};
use threadline::v1::envelope::Envelope;

use super::Node;

impl Node {
    /// Judges one row of the spool; no refusal means a verdict that nothing here should lead to.
    pub(super) fn judge(
        &self,
        bytes: &[u8],
        received_at: i64,
        now: i64,
    ) -> Result<(Incoming, Vec<Window>), Option<Refusal>> {
        let envelope = Envelope::parse(bytes).map_err(|error| Some(error.into()))?;
        let header = inbound::receive(&envelope, &self.address()).map_err(Some)?;
        let known = self.peers.get(&header.from);
        let sender = SenderFacts {
            seen: self.disk.seen.contains(&(header.from, header.message_id.clone())),
            blocked: false,
            key: known.map(|(_, peer, _)| *peer.public()),
        };
        let incoming =
            inbound::authenticate(&envelope, &self.identity, &sender, received_at).map_err(Some)?;
        let thread = incoming.header.thread_id.clone().ok_or(None)?;
        let standing = Standing {
            level: known.map(|(.., level)| *level).unwrap_or_default(),
            same_body_recently: self.same_body_recently(&incoming, &thread, now),
            ..Standing::default()
        };
        let windows: Vec<(Window, Usage)> = incoming
            .windows(&generous_limits(), &standing, &thread)
            .into_iter()
            .map(|window| {
                let usage = self.usage(&window, now);
                (window, usage)
            })
            .collect();
        match inbound::admit(&incoming, &standing, &Policy::default(), &windows, received_at, now) {
            Verdict::Store { disposition: Disposition::Route(_), record } => Ok((incoming, record)),
            Verdict::Refuse(refusal) => Err(Some(refusal)),
            _ => Err(None),
        }
    }

    fn same_body_recently(&self, incoming: &Incoming, thread: &ThreadId, now: i64) -> bool {
        let stored = self.disk.threads.get(&(incoming.header.from, thread.clone()));
        stored.is_some_and(|messages| {
            let recent = messages.iter().rev().take_while(|m| now - m.at <= inbound::SAME_BODY_WINDOW_MS);
            recent.into_iter().any(|m| m.body_hash == incoming.body_hash)
        })
    }

    fn usage(&self, window: &Window, now: i64) -> Usage {
        let Some(events) = self.disk.windows.get(&(window.limit, window.key.clone())) else {
            return Usage::default();
        };
        let since = events.partition_point(|at| *at <= now - window.span_ms);
        Usage { used: (events.len() - since) as u32, oldest: events.get(since).copied() }
    }
}

/// Limits raised by configuration, so that no message of the simulation meets one.
fn generous_limits() -> Limits {
    let level = LevelLimits {
        probes_per_hour: 10_000,
        messages_per_hour: 10_000,
        messages_per_day: 10_000,
        per_thread_per_hour: 10_000,
        burst_per_minute: 10_000,
        outbound_per_hour: 10_000,
        spawns_per_hour: 10_000,
    };
    Limits {
        verified: level,
        trusted: level,
        autonomous: level,
        global_per_hour: 10_000,
        ..Limits::default()
    }
}
