//! What a service manager hears: systemd's notification protocol. Without one, nothing happens.

use std::net::SocketAddr;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;

/// How often the manager wants to hear of us, with a margin of two missed beats; none if it does not watch.
pub(super) fn heartbeat_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3).filter(|every| !every.is_zero())
}

/// Connections are accepted.
pub(super) fn ready(address: SocketAddr) {
    let status = format!("listening on {address}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The stop has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Passes the relay's heartbeats on until it has stopped.
pub(super) async fn pass_on(mut beats: mpsc::Receiver<()>) {
    while beats.recv().await.is_some() {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}
