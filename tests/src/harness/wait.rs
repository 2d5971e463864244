//! Waiting for an event with a deadline.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks `probe` until it gives a value; fails after `limit`, saying `what` did not happen and what the last probe saw.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut last = None;
    let mut pause = Duration::from_millis(5);
    while started.elapsed() < limit {
        match probe().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
    match last {
        Some(error) => Err(error.context(format!("not within {limit:?}: {what}"))),
        None => bail!("not within {limit:?}: {what}"),
    }
}
