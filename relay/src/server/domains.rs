//! Whether a homepage's domain names the agent: TXT `_threadline.<domain>` with `agent=<canonical id>`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData};
use http::Uri;
use rusqlite::params;
use threadline::identity::PublicIdentity;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// A domain is looked up again after this time.
const AGAIN_MS: i64 = 7 * 86_400_000;
/// A lookup that failed without an answer is repeated after this time.
const RETRY_MS: i64 = 3_600_000;
/// How often due lookups are searched for when nothing changes.
const LOOK: Duration = Duration::from_mins(10);
const BATCH: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks up domains that are new or due, until `stop`.
pub(super) async fn verify(shared: Arc<Shared>, stop: CancellationToken) {
    let resolver = match resolver(shared.config.resolver) {
        Ok(resolver) => resolver,
        Err(detail) => {
            tracing::warn!(detail, "homepages are not verified: there is no resolver");
            return;
        }
    };
    loop {
        let more = tokio::select! {
            more = sweep(&shared, &resolver) => more,
            () = stop.cancelled() => return,
        };
        tokio::select! {
            () = std::future::ready(()), if more => {}
            () = tokio::time::sleep(LOOK) => {}
            () = shared.homepage_changed.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

fn resolver(address: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let builder = match address {
        None => TokioResolver::builder_tokio().map_err(|e| e.to_string())?,
        Some(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            let at_port = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            server.connections = server.connections.into_iter().map(at_port).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.build().map_err(|e| e.to_string())
}

/// One batch; whether there may be more.
async fn sweep(shared: &Shared, resolver: &TokioResolver) -> bool {
    let now_ms = shared.clock.now_ms();
    let due = shared
        .registry_read(move |c| {
            c.prepare_cached(
                "SELECT public_key, homepage FROM agents INDEXED BY agents_homepage
                 WHERE homepage <> '' AND checked_at <= ?1 ORDER BY checked_at LIMIT ?2",
            )?
            .query_map(params![now_ms - AGAIN_MS, BATCH], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()
        })
        .await;
    let Ok(due) = due else { return false };
    let full = due.len() == BATCH as usize;
    for (key, homepage) in due {
        let named = match domain(&homepage) {
            None => Some(String::new()),
            Some(domain) => {
                names(resolver, &domain, &key).await.map(|yes| if yes { domain } else { String::new() })
            }
        };
        // Without an answer the last one stands for an hour more.
        let checked_ms = if named.is_some() { now_ms } else { now_ms - AGAIN_MS + RETRY_MS };
        let stored = shared
            .registry_write(move |c| {
                c.prepare_cached(
                    "UPDATE agents SET checked_at=?3, verified_domain=coalesce(?4, verified_domain)
                     WHERE public_key=?1 AND homepage=?2",
                )?
                .execute(params![key, homepage, checked_ms, named])
            })
            .await;
        if stored.is_err() {
            return false;
        }
    }
    full
}

/// The domain of a homepage; an address is none.
fn domain(homepage: &str) -> Option<String> {
    let uri: Uri = homepage.parse().ok()?;
    let host = uri.host()?.trim_end_matches('.').to_ascii_lowercase();
    let last = host.rsplit('.').next()?;
    let is_name = host.contains('.') && last.bytes().any(|byte| byte.is_ascii_alphabetic());
    (is_name && !host.starts_with('[')).then_some(host)
}

/// Whether the domain names the agent; `None` when nobody answers.
async fn names(resolver: &TokioResolver, domain: &str, key: &[u8; 32]) -> Option<bool> {
    let wanted = format!("agent={}", PublicIdentity::from_bytes(key).ok()?.canonical_id());
    let Ok(name) = Name::from_ascii(format!("_threadline.{domain}.")) else { return Some(false) };
    match tokio::time::timeout(PATIENCE, resolver.txt_lookup(name)).await.ok()? {
        Ok(found) => Some(found.answers().iter().any(|record| match &record.data {
            RData::TXT(text) => {
                let text: Vec<u8> = text.txt_data.concat();
                String::from_utf8_lossy(&text).split([' ', ';', ',']).any(|word| word == wanted)
            }
            _ => false,
        })),
        Err(error) if error.is_no_records_found() => Some(false),
        Err(error) => {
            tracing::debug!(%error, "a homepage could not be looked up");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_have_a_domain() {
        assert_eq!(domain("https://Agents.Example.org/a").as_deref(), Some("agents.example.org"));
        assert_eq!(domain("https://example.org.:8443/").as_deref(), Some("example.org"));
        for none in ["https://192.0.2.1/", "https://[2001:db8::1]/", "https://localhost/", ""] {
            assert_eq!(domain(none), None, "{none}");
        }
    }
}
