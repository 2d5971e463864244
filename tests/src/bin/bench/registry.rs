//! The directory with many entries: searches, listings and lookups over HTTP, against a relay process.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_durable::{Database, DatabaseError, Durability, OpenOptions};
use reqwest::Client;
use serde_json::Value;
use threadline_relay::store::Profile;
use threadline_relay::store::registry::{MIGRATIONS, Upsert, upsert};

use crate::report::{self, Samples, figure, show, times};

const BUDGET: &str = "p99 10 ms";
const BATCH: u32 = 5_000;
const WORDS: [&str; 16] = [
    "writes", "reviews", "plans", "tests", "rust", "python", "mail", "calendar", "garden", "music", "maps",
    "tax", "travel", "law", "health", "news",
];

struct Relay {
    child: Child,
    base: String,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fills a directory with `agents` entries, starts the relay on it and asks it `count` times for each kind of query.
pub(crate) fn all(bin_dir: &Path, agents: u32, count: u32) -> Result<()> {
    report::under("durability: power; no TLS; limits per source off by configuration".to_owned());
    let dir = tempfile::tempdir()?;
    let filled = Instant::now();
    fill(&dir.path().join("registry.db"), agents)?;
    let size = std::fs::metadata(dir.path().join("registry.db"))?.len();
    figure(
        &format!("registry: {agents} entries"),
        &format!("written in {}, {} MiB", show(filled.elapsed()), size >> 20),
        "-",
    );
    let relay = start(bin_dir, dir.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask_all(&relay.base, count))
}

fn key(n: u32) -> [u8; 32] {
    let mut key = [0x5a; 32];
    // Spread, so that neighbours in the list are none in the index.
    key[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
    key[4..8].copy_from_slice(&n.to_be_bytes());
    key
}

/// Every entry has the word "assistant"; one of sixteen has each topic, one of a thousand each group.
pub(crate) fn fill(path: &Path, agents: u32) -> Result<()> {
    let database = Database::open(OpenOptions::new(path, MIGRATIONS, Durability::Normal))?;
    let now_ms = now_ms() - 86_400_000;
    for first in (0..agents).step_by(BATCH as usize) {
        let written = database.write_blocking(move |c| -> Result<(), DatabaseError> {
            for n in first..(first + BATCH).min(agents) {
                let word = |shift: u32| WORDS[(n.wrapping_mul(40_503) >> shift) as usize % WORDS.len()];
                let profile = Profile {
                    name: Some(format!("Agent {n}")),
                    bio: Some(format!(
                        "A personal assistant that {} {} and {}, group{}",
                        word(3),
                        word(7),
                        word(11),
                        n % 1000
                    )),
                    interests: Some(vec![word(5).into(), format!("group-{}", n % 1000)]),
                    capabilities: Some(vec!["chat".into(), format!("{}-{}", word(3), word(9))]),
                    framework: Some(if n % 3 == 0 { "instar".into() } else { "other".into() }),
                    framework_visible: Some(n % 2 == 0),
                    homepage: None,
                };
                let entry = Upsert {
                    key: &key(n),
                    profile: &profile,
                    visibility: "public",
                    consent: "auth_handshake",
                    relay_id: "bench",
                    visible_at: 0,
                    now_ms: now_ms + i64::from(n),
                    online: n % 10 == 0,
                };
                upsert(c, &entry)?;
            }
            Ok(())
        });
        written?;
    }
    database.close();
    Ok(())
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn start(bin_dir: &Path, dir: &Path) -> Result<Relay> {
    let mut child = Command::new(bin_dir.join("threadline-relay"))
        .args(["--host", "127.0.0.1", "--port", "0", "--set", "limits.per_source=false", "--data-dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let address = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    Ok(Relay { child, base: format!("http://{address}/v1/registry") })
}

async fn ask_all(base: &str, count: u32) -> Result<()> {
    let http = Client::builder().timeout(Duration::from_secs(30)).build()?;
    let common = Some(Duration::from_millis(135));
    let listing = Some(Duration::from_millis(450));
    for (what, query, node_js) in [
        ("common word", "q=assistant", common),
        ("two common words", "q=personal+assistant", None),
        ("word of one in sixteen", "q=garden", None),
        ("rare word", "q=group7", None),
        ("common word, rare tag", "q=assistant&interest=group-7", None),
        ("common word, framework, offline", "q=assistant&framework=instar&online=false", None),
        ("listing", "limit=50", listing),
        ("listing by name", "sort=name&limit=100", None),
        ("listing, offline", "online=false&limit=100", None),
        ("listing, common tag", "capability=chat", None),
        ("listing, rare tag", "interest=group-7", None),
        ("listing, tag and framework", "capability=chat&framework=instar", None),
    ] {
        let mut samples = Samples::new();
        for _ in 0..count {
            let page = ask(&http, &format!("{base}/search?{query}"), &mut samples).await?;
            ensure!(page["count"].as_u64() > Some(0), "{query} finds nobody");
        }
        times(&format!("registry: {what}"), &samples, BUDGET, node_js);
    }
    let mut samples = Samples::new();
    for n in 0..count {
        let id = hex::encode(&key(n * 7)[..16]);
        ask(&http, &format!("{base}/agent/{id}"), &mut samples).await?;
    }
    times("registry: lookup by address", &samples, BUDGET, None);
    let mut samples = Samples::new();
    for _ in 0..count {
        ask(&http, &format!("{base}/stats"), &mut samples).await?;
    }
    times("registry: statistics", &samples, BUDGET, None);
    for (what, query) in [
        ("walk of all entries, 100 a page", "limit=100"),
        ("walk by name", "sort=name&limit=100"),
        ("walk of a common word", "q=assistant&limit=100"),
        ("walk of a common tag", "capability=chat&framework=instar&limit=100"),
    ] {
        let (mut samples, mut cursor, mut seen) = (Samples::new(), String::new(), 0);
        loop {
            let page = ask(&http, &format!("{base}/search?{query}&cursor={cursor}"), &mut samples).await?;
            seen += page["count"].as_u64().unwrap_or(0);
            match page["pagination"]["cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        times(&format!("registry: {what} ({seen} entries)"), &samples, BUDGET, None);
    }
    Ok(())
}

async fn ask(http: &Client, url: &str, samples: &mut Samples) -> Result<Value> {
    let begun = Instant::now();
    let answer = http.get(url).send().await?.error_for_status()?;
    let body = answer.bytes().await?;
    samples.record(begun.elapsed());
    Ok(serde_json::from_slice(&body)?)
}
