//! One relay for all agents of an account.

use std::time::Duration;

use threadline_relay::RelayConfig;
use threadline_relay::embedded::{Address, Place, join_or_run};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{Client, PATIENCE};

struct Node {
    place: watch::Receiver<Place>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn node(dir: &std::path::Path) -> Node {
    let mut config = RelayConfig::embedded(dir);
    config.port = 0;
    let (sender, place) = watch::channel(Place::Unknown);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { join_or_run(config, sender, stop).await.expect("runs") });
    Node { place, shutdown, task }
}

impl Node {
    async fn until(&mut self, wanted: impl Fn(&Place) -> bool) -> Address {
        let place = tokio::time::timeout(PATIENCE, self.place.wait_for(|place| wanted(place)));
        place.await.expect("in time").expect("alive").address().expect("address").clone()
    }
}

#[tokio::test]
async fn one_runs_it_the_other_joins_and_takes_over_at_the_same_port() {
    let dir = tempfile::tempdir().expect("dir");
    let mut first = node(dir.path());
    let ours = first.until(|place| matches!(place, Place::Ours(_))).await;
    let mut second = node(dir.path());
    let theirs = second.until(|place| matches!(place, Place::Other(_))).await;
    assert_eq!(ours, theirs);
    let at = format!("{}:{}", ours.host, ours.port).parse().expect("address");
    let mut sender = Client::log_in(at, 1).await;
    sender.send(2, "m1").await;
    assert_eq!(sender.next("ack").await["status"], "queued");

    first.shutdown.cancel();
    let started = std::time::Instant::now();
    let taken = second.until(|place| matches!(place, Place::Ours(_))).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(taken.port, ours.port);
    first.task.await.expect("ends");
    let mut recipient = Client::log_in(at, 2).await;
    assert_eq!(recipient.message_id().await, "m1");
    drop((sender, recipient));
    second.shutdown.cancel();
    second.task.await.expect("ends");
}
