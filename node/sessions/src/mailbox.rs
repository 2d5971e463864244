//! How the task of a session is told things. Reports and requests wait for room; "look" and "end" need none, so they
//! are never lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use instar_hooks::HookReport;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::SessionError;

/// Commands that may wait; whoever sends one more waits.
const ROOM: usize = 64;

/// Told to the task of one session.
#[derive(Debug)]
pub(crate) enum Command {
    /// A hook reported.
    Hook(Box<HookReport>),
    /// Press a key.
    Key(String, oneshot::Sender<Result<(), SessionError>>),
    /// Interrupt the turn.
    Interrupt(oneshot::Sender<Result<(), SessionError>>),
}

/// What the task hears.
#[derive(Debug)]
pub(crate) enum Call {
    /// End the runtime: first by asking, in the end by force.
    End,
    /// Look at the queue.
    Look,
    /// Do this.
    Command(Command),
}

/// The sending end.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    commands: mpsc::Sender<Command>,
    bell: Arc<Bell>,
}

/// The task's end.
#[derive(Debug)]
pub(crate) struct Letters {
    commands: mpsc::Receiver<Command>,
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct Bell {
    look: AtomicBool,
    end: AtomicBool,
    rung: Notify,
}

/// Both ends.
pub(crate) fn mailbox() -> (Mailbox, Letters) {
    let (sender, commands) = mpsc::channel(ROOM);
    let bell = Arc::new(Bell::default());
    (Mailbox { commands: sender, bell: Arc::clone(&bell) }, Letters { commands, bell })
}

impl Mailbox {
    /// Makes the task look at the queue.
    pub(crate) fn look(&self) {
        self.bell.look.store(true, Ordering::SeqCst);
        self.bell.rung.notify_one();
    }

    /// Makes the task end its runtime.
    pub(crate) fn end(&self) {
        self.bell.end.store(true, Ordering::SeqCst);
        self.bell.rung.notify_one();
    }

    /// Gives a command, once there is room for it. False if the task is gone.
    pub(crate) async fn send(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }
}

impl Letters {
    /// The next call; `None` once nobody can call any more. Nothing is lost when it is dropped half-way.
    pub(crate) async fn next(&mut self) -> Option<Call> {
        loop {
            if self.bell.end.swap(false, Ordering::SeqCst) {
                return Some(Call::End);
            }
            if self.bell.look.swap(false, Ordering::SeqCst) {
                return Some(Call::Look);
            }
            tokio::select! {
                command = self.commands.recv() => return command.map(Call::Command),
                () = self.bell.rung.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Command {
        Command::Key("Enter".into(), oneshot::channel().0)
    }

    #[tokio::test]
    async fn a_call_to_look_or_to_end_finds_its_way_through_a_full_mailbox() {
        let (mailbox, mut letters) = mailbox();
        for _ in 0..ROOM {
            assert!(mailbox.send(key()).await);
        }
        mailbox.look();
        mailbox.look();
        mailbox.end();
        assert!(matches!(letters.next().await, Some(Call::End)));
        assert!(matches!(letters.next().await, Some(Call::Look)));
        for _ in 0..ROOM {
            assert!(matches!(letters.next().await, Some(Call::Command(Command::Key(..)))));
        }
        mailbox.look();
        assert!(matches!(letters.next().await, Some(Call::Look)));
        drop(mailbox);
        assert!(letters.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (mailbox, mut letters) = mailbox();
        let waiting = tokio::spawn(async move { matches!(letters.next().await, Some(Call::Look)) });
        tokio::task::yield_now().await;
        mailbox.look();
        assert!(waiting.await.expect("woken"));
    }
}
