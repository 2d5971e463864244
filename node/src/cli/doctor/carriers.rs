//! What carries the mail to each relay, and whether UDP gets through to those that offer QUIC.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

use serde_json::Value;

use super::Check;

/// Wait for one answer, and questions before giving up: datagrams may be lost.
const PATIENCE: Duration = Duration::from_millis(700);
const QUESTIONS: usize = 2;

/// A line for each relay, from the answer of `/threadline/status`. `gets_through` says whether a QUIC address
/// (`host:port`) answers; it is asked only where mail does not go over QUIC although the relay offers it.
pub(super) fn checks(status: &Value, gets_through: impl Fn(&str) -> bool) -> Vec<Check> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let sessions = list(&status["v2"]["sessions"]);
    let relays = list(&status["v2"]["relays"]);
    let of_relay = |relay: &Value| {
        let url = relay["url"].as_str()?;
        let session = sessions.iter().find(|session| session["relay"] == url);
        Some(match (relay["speaks"].as_u64(), relay["trouble"].as_str()) {
            (Some(2), _) => over_v2(url, relay, session, &gets_through),
            (_, Some(trouble)) => {
                let carrier = if is_linked(url, &status["link"]) { "v1 alone" } else { "nothing" };
                Check::warn("carrier", format!("{url}: {carrier} ({trouble})"), remedy(trouble))
            }
            (Some(_), None) => over_v1(url, &status["link"]),
            (None, None) => {
                let text = format!("{url}: nothing; the relay does not say what it speaks");
                Check::warn("carrier", text, "the node goes on asking; look whether the relay can be reached")
            }
        })
    };
    relays.iter().filter_map(of_relay).collect()
}

fn over_v2(url: &str, relay: &Value, session: Option<&Value>, gets_through: &impl Fn(&str) -> bool) -> Check {
    let quic: Vec<String> = relay["quic"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let passes = || quic.iter().any(|address| gets_through(address));
    let word = |key: &str| session.and_then(|session| session[key].as_str());
    match (word("carrier"), quic.first()) {
        (Some("quic"), _) => Check::pass("carrier", format!("{url}: QUIC")),
        (Some(_), None) => Check::pass("carrier", format!("{url}: WebSocket/2; the relay offers no QUIC")),
        (Some(_), Some(_)) if passes() => {
            let text = format!("{url}: WebSocket/2; UDP gets through, and QUIC is tried again by itself");
            Check::pass("carrier", text)
        }
        (Some(_), Some(first)) => Check::warn(
            "carrier",
            format!("{url}: WebSocket/2, because UDP does not get through to {first}"),
            "let UDP out to that port; QUIC is tried again by itself",
        ),
        (None, first) => {
            let state = word("code").or_else(|| word("state")).unwrap_or("not begun");
            let udp = match first {
                None => String::new(),
                Some(_) if passes() => "; UDP gets through".to_owned(),
                Some(first) => format!("; UDP does not get through to {first}"),
            };
            Check::warn(
                "carrier",
                format!("{url}: nothing, its v2 session is not open ({state}){udp}"),
                "look whether the relay can be reached; `instar logs` says what was tried",
            )
        }
    }
}

fn is_linked(url: &str, link: &Value) -> bool {
    link["relayUrl"] == url && link["state"] == "connected"
}

fn over_v1(url: &str, link: &Value) -> Check {
    if is_linked(url, link) {
        return Check::pass("carrier", format!("{url}: v1, the relay offers nothing newer"));
    }
    if link["relayUrl"] != url {
        let text = format!("{url}: nothing; it speaks v1 alone, and only the first relay is spoken to in v1");
        return Check::warn("carrier", text, "put it first in threadline.relays, or take it out");
    }
    let state = link["state"].as_str().unwrap_or("not begun");
    let why = link["lastError"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
    Check::warn(
        "carrier",
        format!("{url}: nothing, the link is not connected ({state}{why})"),
        "look whether the relay can be reached; `instar logs` says what was tried",
    )
}

fn remedy(trouble: &str) -> &'static str {
    match trouble {
        "relay-downgrade" => "it spoke v2 before: ask its operator before you trust it again",
        "key-changed" => "ask its operator for the new key and put it into threadline.relays",
        "key-not-configured" => "it has no TLS: put its key into threadline.relays",
        _ => "`instar threadline status` says more",
    }
}

/// Whether something that speaks QUIC answers at `host:port`. A packet of a version that nobody speaks is answered by
/// the list of versions (RFC 9000 §6), without a connection and without a key. Blocks for at most 1.4 s per address of
/// the name.
pub(super) fn answers(address: &str) -> bool {
    let Ok(addresses) = address.to_socket_addrs() else { return false };
    addresses.take(2).any(|at| ask(at).unwrap_or(false))
}

/// Smallest datagram that is answered (RFC 9000 §14.1).
const SMALLEST: usize = 1200;
/// Reserved to provoke the answer (RFC 9000 §15).
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

fn ask(at: SocketAddr) -> std::io::Result<bool> {
    let local: SocketAddr = match at {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local)?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let ours: [u8; 8] = rand::random();
    let mut answer = [0; SMALLEST];
    for _ in 0..QUESTIONS {
        socket.send(&question(rand::random(), ours))?;
        match socket.recv(&mut answer) {
            Ok(length) => return Ok(answer.get(..length).is_some_and(|answer| is_answer(answer, ours))),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A long header of no version, with both connection ids, up to the size of a first packet.
fn question(theirs: [u8; 8], ours: [u8; 8]) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend(NO_VERSION);
    for id in [theirs, ours] {
        packet.push(8);
        packet.extend(id);
    }
    packet.resize(SMALLEST, 0);
    packet
}

/// A long header of version 0 that is meant for us.
fn is_answer(packet: &[u8], ours: [u8; 8]) -> bool {
    let long = packet.first().is_some_and(|first| first & 0x80 != 0);
    long && packet.get(1..6) == Some(&[0, 0, 0, 0, 8]) && packet.get(6..14) == Some(&ours)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(status: &Value, open: bool) -> Vec<String> {
        let says = |check: Check| format!("{:?} {}", check.verdict, check.text);
        checks(status, |_| open).into_iter().map(says).collect()
    }

    #[test]
    fn a_relay_of_v2_has_a_line_that_names_its_carrier() {
        let of = |carrier: Option<&str>, quic: &[&str], open: bool| {
            let state = if carrier.is_some() { "ready" } else { "backoff" };
            let status = json!({"v2": {
                "relays": [{"url": "wss://one", "speaks": 2, "quic": quic}],
                "sessions": [{"relay": "wss://one", "state": state, "carrier": carrier}],
            }});
            lines(&status, open).concat()
        };
        let quic = &["one:8788"][..];
        for (said, wanted) in [
            (of(Some("quic"), quic, false), "Pass wss://one: QUIC"),
            (of(Some("websocket"), quic, true), "Pass wss://one: WebSocket/2; UDP gets through"),
            (
                of(Some("websocket"), quic, false),
                "Warn wss://one: WebSocket/2, because UDP does not get through to one:8788",
            ),
            (of(Some("websocket"), &[], false), "Pass wss://one: WebSocket/2; the relay offers no QUIC"),
            (
                of(None, quic, false),
                "Warn wss://one: nothing, its v2 session is not open (backoff); UDP does not",
            ),
            (
                of(None, quic, true),
                "Warn wss://one: nothing, its v2 session is not open (backoff); UDP gets through",
            ),
        ] {
            assert!(said.starts_with(wanted), "{wanted}: {said}");
        }
    }

    #[test]
    fn relays_of_v1_and_troubles_have_a_line_too() {
        let status = json!({
            "link": {"state": "connected", "relayUrl": "wss://first"},
            "v2": {"sessions": [], "relays": [
                {"url": "wss://first", "speaks": 1, "trouble": null, "quic": null},
                {"url": "wss://second", "speaks": 1, "trouble": null, "quic": null},
                {"url": "wss://third", "speaks": null, "trouble": "relay-downgrade", "quic": null},
                {"url": "wss://fourth", "speaks": null, "trouble": null, "quic": null},
            ]},
        });
        let wanted = [
            "Pass wss://first: v1",
            "Warn wss://second: nothing; it speaks v1 alone",
            "Warn wss://third: nothing (relay-downgrade)",
            "Warn wss://fourth: nothing; the relay does not say",
        ];
        let said = lines(&status, true);
        assert!(
            said.len() == 4 && said.iter().zip(wanted).all(|(said, wanted)| said.starts_with(wanted)),
            "{said:?}"
        );
        let down = json!({
            "link": {"state": "backoff", "relayUrl": "wss://first", "lastError": "refused"},
            "v2": {"relays": [{"url": "wss://first", "speaks": 1}]},
        });
        assert_eq!(
            lines(&down, true),
            ["Warn wss://first: nothing, the link is not connected (backoff: refused)"]
        );
        assert!(checks(&json!({"state": "refused"}), |_| true).is_empty());
    }

    #[test]
    fn an_answer_is_a_list_of_versions_for_this_question() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let at = server.local_addr().expect("an address").to_string();
        let answering = std::thread::spawn(move || {
            let mut packet = [0; 2_000];
            let (length, from) = server.recv_from(&mut packet).expect("a question");
            assert_eq!(length, SMALLEST);
            let (theirs, ours) = (&packet[6..14], &packet[15..23]);
            let answer = [&[0x80, 0, 0, 0, 0, 8][..], ours, &[8], theirs, &[0, 0, 0, 1]].concat();
            server.send_to(&answer, from).expect("sent");
            server
        });
        assert!(answers(&at));
        let silent = answering.join().expect("answered");
        assert!(!answers(&at), "a socket that says nothing");
        drop(silent);
        assert!(!answers(&at), "no socket");
    }
}
