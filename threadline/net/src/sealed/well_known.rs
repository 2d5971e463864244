//! Asks a relay what it speaks.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::redirect::Policy;
use threadline::v2::login::{MAX_WELL_KNOWN, SignedWellKnown, WellKnown};
use threadline::v2::session::ResolveOutcome;

/// Longest wait for the document.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fetches the document of the relay at `base` (`https://host[:port]`). Only a plain 404 says that there is none:
/// everything else that is no good document proves nothing.
pub async fn ask_relay(base: &str) -> ResolveOutcome {
    match fetch(base).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::debug!(base, %error, "the relay's document could not be read");
            ResolveOutcome::Failed
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("the relay answered {0}")]
    Status(StatusCode),
    #[error("the document is larger than {MAX_WELL_KNOWN} bytes")]
    TooLarge,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Document(#[from] threadline::v2::login::WellKnownError),
}

async fn fetch(base: &str) -> Result<ResolveOutcome, FetchError> {
    let client = reqwest::Client::builder().redirect(Policy::none()).timeout(PATIENCE).build()?;
    let url = format!("{}/.well-known/threadline", base.trim_end_matches('/'));
    let mut response = client.get(url).send().await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(ResolveOutcome::NotFound),
        status => return Err(FetchError::Status(status)),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > 2 * MAX_WELL_KNOWN {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    let signed: SignedWellKnown = serde_json::from_slice(&body)?;
    Ok(ResolveOutcome::Document(Box::new(WellKnown::parse(&signed)?)))
}
