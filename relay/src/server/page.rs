//! The directory for people: a static page over the REST interface.

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use http::{HeaderName, header};

use super::http as public;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// `/registry` and what it loads.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |kind: &'static str, text: &'static str| -> MethodRouter<S> {
        get(move || async move { answer(kind, text) }).fallback(|| async { public::not_allowed("GET, HEAD") })
    };
    Router::new()
        .route("/registry", file("text/html; charset=utf-8", include_str!("page/registry.html")))
        .route("/registry/page.css", file("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/registry/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "max-age=300"),
    ];
    (headers, text).into_response()
}
