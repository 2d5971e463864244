//! What relays say when they are asked what they speak, and what follows from odd answers and from none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use threadline::v2::session::Protocol;
use threadline_net::sealed::{RelayNews, RelaySetting, follow_relays};
use threadline_net::store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::node::now;
use super::relay_script::LIMIT;
use super::sealed_relay::TestRelay;

/// A relay that answers whatever it is asked with these bytes, one after the other, the last one for ever; with none it
/// never answers.
struct OddRelay {
    setting: RelaySetting,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for OddRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OddRelay {
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("ws://{}/v1/connect", listener.local_addr().expect("address"));
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let Some(answer) = answers.get(number).or(answers.last()) else {
                    held.push(stream);
                    continue;
                };
                let _ = stream.read(&mut [0; 2_048]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let setting = RelaySetting { url, protocol: Protocol::Auto, key: None, is_ours: false };
        Self { setting, asked, task }
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

struct Following {
    again: watch::Sender<u64>,
    news: watch::Receiver<Vec<RelayNews>>,
    _settings: watch::Sender<Vec<RelaySetting>>,
    _dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    fn start(settings: Vec<RelaySetting>) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("threadline.sqlite")).expect("store");
        let (settings, wanted) = watch::channel(settings);
        let (again, asked_again) = watch::channel(0);
        let (told, news) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow_relays(wanted, asked_again, told, store, now, stop));
        Self { again, news, _settings: settings, _dir: dir, task }
    }

    async fn until(&mut self, holds: impl Fn(&[RelayNews]) -> bool) -> Vec<RelayNews> {
        let waiting = self.news.wait_for(|news| holds(news));
        tokio::time::timeout(LIMIT, waiting).await.expect("news in time").expect("it runs").clone()
    }
}

#[tokio::test]
async fn whatever_is_no_document_means_v1() {
    let silent = OddRelay::start(Vec::new()).await;
    let older = OddRelay::start(vec![http("404 Not Found", "{}")]).await;
    let page = OddRelay::start(vec![http("200 OK", "<html>welcome</html>")]).await;
    let closed = RelaySetting { url: "ws://127.0.0.1:1/v1/connect".into(), ..older.setting.clone() };
    let relay = TestRelay::start(201).await;
    let ours = RelaySetting { url: relay.relay.name.clone(), is_ours: true, ..older.setting.clone() };
    let settings =
        vec![silent.setting.clone(), older.setting.clone(), page.setting.clone(), closed, ours.clone()];
    let mut following = Following::start(settings);
    let early = following.until(|news| news.iter().skip(1).all(|relay| relay.asked) && news.len() == 5).await;
    assert!(!early[0].asked, "a silent relay holds up no other one");
    assert_eq!(early[4].v2.as_ref().map(|found| found.key), Some(relay.relay.key));
    let all = following.until(|news| news.iter().all(|relay| relay.asked)).await;
    for odd in &all[..4] {
        assert!(odd.v1_allowed && odd.v2.is_none() && odd.trouble.is_none(), "{odd:?}");
    }
    assert_eq!(older.asked.load(Ordering::SeqCst), 1, "a plain answer is believed for hours");
    assert_eq!(page.asked.load(Ordering::SeqCst), 1, "nor does a page get another question soon");
}

#[tokio::test]
async fn a_relay_is_asked_again_when_its_connection_was_lost() {
    let relay = TestRelay::start(202).await;
    let base = relay.relay.name.replace("ws://", "http://").replace("/v2/connect", "");
    let document = reqwest::get(format!("{base}/.well-known/threadline")).await.expect("asked");
    let document = document.text().await.expect("text");
    let mut updated = OddRelay::start(vec![http("404 Not Found", ""), http("200 OK", &document)]).await;
    // The document lists the other port beside the bare name.
    updated.setting.is_ours = true;
    let mut following = Following::start(vec![updated.setting.clone()]);
    let before = following.until(|news| news.iter().any(|relay| relay.asked)).await;
    assert!(before[0].v1_allowed && before[0].v2.is_none());
    following.again.send_modify(|count| *count += 1);
    let after = following.until(|news| news.iter().any(|relay| relay.v2.is_some())).await;
    assert_eq!(after[0].v2.as_ref().map(|found| found.key), Some(relay.relay.key));
    assert!(after[0].v1_allowed);
}

#[tokio::test]
async fn where_v2_is_demanded_v1_is_not_spoken() {
    let older = OddRelay::start(vec![http("404 Not Found", "{}")]).await;
    let setting = RelaySetting { protocol: Protocol::V2, ..older.setting.clone() };
    let mut following = Following::start(vec![setting]);
    let news = following.until(|news| news.iter().any(|relay| relay.asked)).await;
    assert!(!news[0].v1_allowed && news[0].v2.is_none());
}
