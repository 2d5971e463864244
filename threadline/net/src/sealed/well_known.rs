//! Asks a relay what it speaks.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::redirect::Policy;
use threadline::v2::login::{MAX_WELL_KNOWN, SignedWellKnown, WellKnown};
use threadline::v2::session::ResolveOutcome;

/// Longest wait for the document.
const PATIENCE: Duration = Duration::from_secs(5);

/// What asking a relay came to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: ResolveOutcome,
    /// It answered, but not as a relay that knows the question: asking again soon would change nothing.
    pub(super) is_odd: bool,
}

impl From<ResolveOutcome> for Answer {
    fn from(outcome: ResolveOutcome) -> Self {
        Self { outcome, is_odd: false }
    }
}

/// Fetches the document of the relay at `base` (`https://host[:port]`). Only a plain 404 says that there is none:
/// everything else that is no good document proves nothing.
pub async fn ask_relay(base: &str) -> ResolveOutcome {
    ask(base).await.outcome
}

/// [`ask_relay`], and whether it is worth to ask again soon.
pub(super) async fn ask(base: &str) -> Answer {
    match fetch(base).await {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            tracing::debug!(base, %error, "the relay's document could not be read");
            let is_odd = match error {
                FetchError::Http(_) => false,
                FetchError::Status(status) => !status.is_server_error(),
                FetchError::TooLarge | FetchError::Json(_) | FetchError::Document(_) => true,
            };
            Answer { outcome: ResolveOutcome::Failed, is_odd }
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
