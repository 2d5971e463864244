//! Finds out which configured relays speak v2, and remembers their keys (`threadline-wire.md` §5.1).

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use threadline::v2::Key;
use threadline::v2::session::{Protocol, RelayPin, ResolveOutcome, Resolved, resolve};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::handle::SealedRelay;
use super::well_known::{Answer, ask};
use crate::registry::http_base;
use crate::store::Store;

/// A good document is asked for anew after this, ms.
const REFRESH_MS: i64 = 24 * 3_600_000;
/// A relay that speaks v1 only is asked again after this, ms.
const V1_MS: i64 = 6 * 3_600_000;
/// Trouble is looked at again after this, ms.
const TROUBLE_MS: i64 = 600_000;
/// First and longest pause before a relay without an answer is asked again, ms; the longest for the account's own.
const RETRY_MS: (i64, i64) = (500, 30_000);
const OWN_RETRY_MS: i64 = 3_000;
/// The account's own relay may be updated while this node runs, ms.
const OWN_V1_MS: i64 = 60_000;
/// A relay is asked out of turn at most this often, ms: the account's own one, and others.
const AGAIN_MS: (i64, i64) = (1_000, 30_000);

/// One relay of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySetting {
    /// `ws(s)://host[:port]/…`
    pub url: String,
    /// What to speak with it.
    pub protocol: Protocol,
    /// The key it must have.
    pub key: Option<Key>,
    /// Whether it is the account's own on loopback: it has the key that it shows, although there is no TLS.
    pub is_ours: bool,
}

/// What keeps v2 from being spoken with a relay that should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayTrouble {
    /// It once spoke v2 and says now that it does not.
    RelayDowngrade,
    /// It shows another key than the one that is known.
    KeyChanged,
    /// It has no TLS, and its key is not configured.
    KeyNotConfigured,
}

/// What is known of one relay of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayNews {
    /// Its address in the configuration.
    pub url: String,
    /// Where it speaks v2, once that is known.
    pub v2: Option<SealedRelay>,
    /// Whether it was asked; before, nothing is known.
    pub asked: bool,
    /// What is wrong.
    pub trouble: Option<RelayTrouble>,
    /// Whether v1 may be spoken with it: never with one that once spoke v2 and does not now.
    pub v1_allowed: bool,
    /// Whether it had opened a v2 session when it was asked: v1 is spoken with it beside such a session only.
    pub spoke_v2: bool,
}

struct Known {
    setting: RelaySetting,
    news: RelayNews,
    asked_at: i64,
    ask_at: i64,
    pause: i64,
    /// A question is under way.
    asking: bool,
}

/// Asks every relay of `settings` what it speaks and tells it through `news`, in the same order, until stopped. With
/// every change of `again` (a connection was made anew, or could not be made) the relays are asked out of turn.
pub async fn follow_relays(
    mut settings: watch::Receiver<Vec<RelaySetting>>,
    mut again: watch::Receiver<u64>,
    news: watch::Sender<Vec<RelayNews>>,
    store: Store,
    now: fn() -> i64,
    stop: CancellationToken,
) {
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut questions = FuturesUnordered::new();
    loop {
        let wanted = settings.borrow_and_update().clone();
        known.retain(|_, relay| wanted.contains(&relay.setting));
        for setting in &wanted {
            if !known.contains_key(&setting.url) {
                let begun = begin(setting, &store).await;
                known.insert(setting.url.clone(), begun);
            }
        }
        tell(&wanted, &known, &news);
        for relay in known.values_mut().filter(|relay| !relay.asking && relay.ask_at <= now()) {
            (relay.asking, relay.asked_at) = (true, now());
            questions.push(question(relay.setting.clone()));
        }
        let next = known.values().filter(|relay| !relay.asking).map(|relay| relay.ask_at).min();
        let wait = next.map_or(Duration::from_hours(1), |at| {
            Duration::from_millis(u64::try_from(at - now()).unwrap_or(0).clamp(50, 3_600_000))
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = settings.changed() => if changed.is_err() { return },
            Some((setting, answer)) = questions.next() => {
                if let Some(relay) = known.get_mut(&setting.url).filter(|relay| relay.setting == setting) {
                    relay.asking = false;
                    learn(relay, &answer, &store, now).await;
                }
            }
            changed = again.changed() => {
                if changed.is_err() {
                    return;
                }
                known.values_mut().for_each(hurry);
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What the relay answers, with the setting that it was asked for.
async fn question(setting: RelaySetting) -> (RelaySetting, Answer) {
    let answer = match (setting.protocol, http_base(&setting.url)) {
        (Protocol::V1, _) => ResolveOutcome::NotFound.into(),
        (Protocol::Auto | Protocol::V2, Some(base)) => ask(&base).await,
        (Protocol::Auto | Protocol::V2, None) => ResolveOutcome::Failed.into(),
    };
    (setting, answer)
}

/// Makes a relay due, unless it was asked just now.
fn hurry(relay: &mut Known) {
    let least = if relay.setting.is_ours { AGAIN_MS.0 } else { AGAIN_MS.1 };
    relay.ask_at = relay.ask_at.min(relay.asked_at.saturating_add(least));
}

fn tell(wanted: &[RelaySetting], known: &HashMap<String, Known>, news: &watch::Sender<Vec<RelayNews>>) {
    let all: Vec<_> = wanted.iter().filter_map(|s| known.get(&s.url)).map(|k| k.news.clone()).collect();
    news.send_if_modified(|told| {
        let changed = *told != all;
        *told = all;
        changed
    });
}

async fn begin(setting: &RelaySetting, store: &Store) -> Known {
    // Without what is remembered nothing may be spoken that would be wrong with a relay that spoke v2.
    let spoke_v2 = !setting.is_ours && store.relay_pin(&setting.url).await.map_or(true, |pin| pin.spoke_v2);
    let news = RelayNews {
        url: setting.url.clone(),
        v2: None,
        asked: false,
        trouble: None,
        v1_allowed: setting.protocol != Protocol::V2 && !spoke_v2,
        spoke_v2,
    };
    let setting = setting.clone();
    Known { setting, news, asked_at: i64::MIN, ask_at: 0, pause: RETRY_MS.0, asking: false }
}

async fn learn(relay: &mut Known, answer: &Answer, store: &Store, now: fn() -> i64) {
    let setting = relay.setting.clone();
    // What listens at the account's own address is not remembered: it is whom a file of the account names.
    let pin = if setting.is_ours { Ok(RelayPin::default()) } else { store.relay_pin(&setting.url).await };
    let (Some(base), Ok(pin)) = (http_base(&setting.url), pin) else {
        relay.ask_at = now() + RETRY_MS.1;
        return;
    };
    let outcome = &answer.outcome;
    let at = now();
    let host = dialled(&base, outcome);
    let resolved =
        resolve(setting.protocol, &host, setting.key, &pin, outcome, u64::try_from(at).unwrap_or(0));
    let may_be_v1 = setting.protocol != Protocol::V2;
    let news = &mut relay.news;
    news.spoke_v2 = pin.spoke_v2;
    let (pause, trouble) = match resolved {
        Resolved::V2(..) if !base.starts_with("https://") && setting.key.is_none() && !setting.is_ours => {
            (TROUBLE_MS, Some(RelayTrouble::KeyNotConfigured))
        }
        Resolved::V2(endpoints, fresh) => {
            if fresh != pin
                && !setting.is_ours
                && let Err(error) = store.set_relay_pin(&setting.url, &fresh).await
            {
                tracing::error!(%error, "the key of a relay was not noted");
                relay.ask_at = at + RETRY_MS.1;
                return;
            }
            let url =
                endpoints.ws2.as_ref().map(|path| format!("ws{}{path}", base.trim_start_matches("http")));
            news.v2 = Some(SealedRelay {
                name: setting.url.clone(),
                url,
                quic: endpoints.quic,
                host,
                key: endpoints.key,
                remember: !setting.is_ours,
            });
            news.v1_allowed = may_be_v1;
            relay.pause = RETRY_MS.0;
            (REFRESH_MS, None)
        }
        Resolved::V1 => {
            (news.v2, news.v1_allowed) = (None, true);
            (if setting.is_ours { OWN_V1_MS } else { V1_MS }, None)
        }
        Resolved::Downgrade => {
            (news.v2, news.v1_allowed) = (None, false);
            (TROUBLE_MS, Some(RelayTrouble::RelayDowngrade))
        }
        Resolved::KeyChanged { .. } => {
            (news.v2, news.v1_allowed) = (None, may_be_v1 && !pin.spoke_v2);
            (TROUBLE_MS, Some(RelayTrouble::KeyChanged))
        }
        Resolved::Later if answer.is_odd && !setting.is_ours => (TROUBLE_MS, news.trouble),
        Resolved::Later => {
            let pause = relay.pause;
            relay.pause = (pause * 2).min(if setting.is_ours { OWN_RETRY_MS } else { RETRY_MS.1 });
            (pause, news.trouble)
        }
    };
    if trouble != news.trouble {
        tracing::info!(relay = %setting.url, ?trouble, "what a relay speaks");
    }
    news.trouble = trouble;
    news.asked = true;
    relay.ask_at = at + pause;
}

/// The name under which the relay answers: with its port where the document lists it so.
fn dialled(base: &str, outcome: &ResolveOutcome) -> String {
    let authority = base.split_once("://").map_or(base, |(_, rest)| rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let lists = |name: &str| {
        matches!(outcome, ResolveOutcome::Document(document)
            if document.hosts.iter().any(|listed| listed.eq_ignore_ascii_case(name)))
    };
    if !lists(authority) && lists(host) { host.to_owned() } else { authority.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_told_as_the_relay_lists_it() {
        assert_eq!(dialled("https://r.example:8443", &ResolveOutcome::Failed), "r.example:8443");
        assert_eq!(dialled("https://r.example", &ResolveOutcome::NotFound), "r.example");
        assert_eq!(dialled("http://[::1]:80", &ResolveOutcome::NotFound), "[::1]:80");
    }
}
