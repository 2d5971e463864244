//! The end: asked for, then enforced.

use instar_state::time::now_ms;
use rustix::process::Signal;
use ulid::Ulid;

use super::Actor;
use crate::link::Link;
use crate::process;
use crate::record::{Activity, Status, Transport};
use crate::supervisor::protocol::Request;

/// Between the steps of an end in a terminal.
const GRACE_MS: i64 = 5_000;

impl Actor {
    /// Asks the runtime to end; [`Actor::ending_tick`] does it if it does not.
    pub(super) async fn end(&mut self) {
        if self.ending_since.is_some() {
            return;
        }
        self.ending_since = Some(now_ms());
        self.shared.save_resume(self.id).await;
        let idle = self.shared.record(self.id).is_some_and(|r| r.activity == Activity::Idle);
        self.shared.move_to(self.id, Status::Ending);
        self.shared.persist(self.id).await;
        match self.link.as_mut() {
            Some(link @ Link::Host { .. }) => {
                if link.request(&Request::End).await.is_err() {
                    self.signal_group(Signal::KILL);
                }
            }
            Some(Link::Pane { .. }) if idle => {
                let _ = self.type_text(Ulid::nil(), "/exit", 0).await;
            }
            _ => {
                self.ending_step = 1;
                self.signal_group(Signal::TERM);
            }
        }
    }

    pub(super) async fn ending_tick(&mut self) {
        let Some(since) = self.ending_since else { return };
        let waited = now_ms() - since;
        // Over stdio the supervisor takes these steps itself; this is for one that hangs.
        let head_start = if self.transport == Transport::Stdio { 2 * GRACE_MS } else { 0 };
        let due = i64::from(self.ending_step + 1) * GRACE_MS + head_start;
        if waited < due {
            return;
        }
        self.ending_step += 1;
        match self.ending_step {
            1 => self.signal_group(Signal::TERM),
            2 => self.signal_group(Signal::KILL),
            3 if self.transport == Transport::Tmux => {
                if let Ok(tmux) = self.tmux() {
                    let _ = tmux.kill(&self.tmux_name()).await;
                }
            }
            _ => {}
        }
    }

    pub(super) fn signal_group(&self, signal: Signal) {
        let Some(record) = self.shared.record(self.id) else { return };
        let Some(pid) = record.child_pid else { return };
        if process::is_alive(pid, record.child_start_time) {
            process::signal_group(pid, signal);
        }
    }
}
