//! The node's HTTP surface, on both listeners of a real node.

use std::net::TcpListener;
use std::process::Command;

use super::Home;
use super::node::{Answer, Node};

#[test]
fn credentials_decide_who_gets_in() {
    let node = Node::start();
    let anonymous = node.tcp("GET", "/health", &[], "");
    assert_eq!((anonymous.status, anonymous.body.get("version")), (200, None));
    assert!(node.with_token("GET", "/health", "").body["version"].is_string());
    assert_eq!(node.tcp("GET", "/status", &[], "").status, 401);
    let wrong = node.tcp("GET", "/status", &[("Authorization", "Bearer wrong")], "");
    assert_eq!((wrong.status, &wrong.body["code"]), (403, &"forbidden".into()));
    assert_eq!(node.with_token("GET", "/status", "").status, 200);
    assert_eq!(node.socket_request("GET", "/whoami", &[], "").body["credential"]["kind"], "local");
    assert_eq!(node.with_token("GET", "/whoami", "").body["credential"]["kind"], "agent");
    assert_eq!(node.with_token("POST", "/hooks/events", "{}").status, 403, "hooks come over the socket");

    let other = node.tcp(
        "GET",
        "/status",
        &[("X-Instar-AgentId", "someone-else"), ("Authorization", "Bearer x")],
        "",
    );
    assert_eq!(
        (other.status, &other.body["code"], &other.body["expected"]),
        (403, &"agent_id_mismatch".into(), &"garden".into())
    );
    for _ in 0..20 {
        node.tcp("GET", "/status", &[("Authorization", "Bearer guess")], "");
    }
    let limited = node.tcp("GET", "/status", &[("Authorization", "Bearer guess")], "");
    assert_eq!((limited.status, limited.head.contains("retry-after")), (429, true));
}

#[test]
fn browsers_of_other_places_are_kept_out() {
    let node = Node::start();
    assert_eq!(node.tcp("GET", "/ping", &[("Host", "evil.example")], "").status, 421);
    assert_eq!(node.tcp("GET", "/ping", &[("Host", "127.0.0.1:4040")], "").status, 200);
    assert_eq!(node.tcp("GET", "/ping", &[("X-Forwarded-For", "1.2.3.4")], "").status, 404);
    let bearer = format!("Bearer {}", node.token);
    let from = |origin: &str, extra: &[(&str, &str)]| {
        let headers = [&[("Origin", origin), ("Authorization", bearer.as_str())], extra].concat();
        node.tcp("POST", "/sessions/cleanup-stale", &headers, "{}")
    };
    assert_eq!(from("https://evil.example", &[("X-Instar-Request", "1")]).status, 403);
    assert_eq!(from("http://localhost:3000", &[]).body["code"], "request_header_missing");
    let good = from("http://localhost:3000", &[("X-Instar-Request", "1")]);
    assert_eq!(good.status, 200);
    assert!(good.head.contains("access-control-allow-origin: http://localhost:3000"), "{}", good.head);
    let preflight = node.tcp("OPTIONS", "/status", &[("Origin", "http://localhost:3000")], "");
    assert_eq!(preflight.status, 204);
}

#[test]
fn malformed_requests_get_the_errors_that_are_documented() {
    let node = Node::start();
    let unknown = node.with_token("GET", "/jobs", "");
    assert_eq!((unknown.status, &unknown.body["code"]), (404, &"not_found".into()));
    assert_eq!(node.with_token("DELETE", "/ping", "").status, 405);
    let bearer = format!("Bearer {}", node.token);
    let form = [("Authorization", bearer.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
    assert_eq!(node.tcp("POST", "/sessions/spawn", &form, "name=x").status, 415);
    let broken = node.with_token("POST", "/sessions/spawn", "{");
    assert_eq!((broken.status, broken.body["details"].is_array()), (400, true));
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    assert_eq!(node.with_token("POST", "/sessions/spawn", &large).status, 413);
    assert_eq!(node.with_token("GET", "/sessions/none/output", "").status, 404);
    assert!(node.with_token("GET", "/ping", "").head.contains("x-request-id"));
}

#[test]
fn only_the_owner_decides_and_proves_it_for_one_request() {
    let node = Node::start();
    let path = "/threadline/approvals/none/approve";
    assert_eq!(node.with_token("POST", path, "{}").body["code"], "user_verification_required");
    let asked = node.socket_request("POST", path, &[], "{}");
    assert_eq!((asked.status, &asked.body["code"]), (403, &"user_verification_required".into()));
    let challenge = |answer: &Answer| answer.body["challengeId"].as_str().expect("a challenge").to_owned();
    let first = challenge(&asked);
    let prove = |id: &str, pin: &str, body: &str| {
        node.socket_request("POST", path, &[("X-Instar-Challenge", id), ("X-Instar-Pin", pin)], body)
    };
    assert_eq!(prove(&first, &node.pin, "{\"option\":\"agent\"}").body["code"], "challenge_expired");
    let second = challenge(&node.socket_request("POST", path, &[], "{}"));
    let wrong = prove(&second, "000000", "{}");
    assert_eq!((wrong.status, &wrong.body["code"]), (403, &"wrong_pin".into()));
    let third = challenge(&node.socket_request("POST", path, &[], "{}"));
    let proven = prove(&third, &node.pin, "{}");
    assert_eq!(proven.body["code"], "approval-not-found", "the owner got through: {}", proven.body);
    let bearer = format!("Bearer {}", node.token);
    let fourth = challenge(&node.socket_request("POST", path, &[], "{}"));
    let over_tcp = node.tcp(
        "POST",
        path,
        &[("Authorization", &bearer), ("X-Instar-Challenge", &fourth), ("X-Instar-Pin", &node.pin)],
        "{}",
    );
    assert_eq!(over_tcp.body["code"], "owner_channel");
}

#[test]
fn the_description_names_exactly_what_answers() {
    let node = Node::start();
    let described = node.socket_request("GET", "/openapi.json", &[], "").body;
    let paths = described["paths"].as_object().expect("paths");
    assert!(paths.len() > 40, "{}", paths.len());
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            let path = path
                .split('/')
                .map(|s| if s.starts_with('{') { "none" } else { s })
                .collect::<Vec<_>>()
                .join("/");
            let answer =
                node.tcp(&method.to_uppercase(), &path, &[], if method == "get" { "" } else { "{}" });
            let public = operation["x-instar-auth"] == "pub";
            assert_eq!(answer.status == 401, !public, "{method} {path} answered {}", answer.status);
        }
    }
    let features = node.socket_request("GET", "/capabilities", &[], "").body;
    let told: usize = features["features"]
        .as_object()
        .expect("features")
        .values()
        .map(|f| f["endpoints"].as_array().map_or(0, Vec::len))
        .sum();
    let routes: usize = paths.values().map(|m| m.as_object().map_or(0, serde_json::Map::len)).sum();
    assert_eq!(told, routes);
}

#[test]
fn a_second_node_and_a_taken_port_are_told_apart() {
    let node = Node::start();
    let second = node.home.run(&node.project, &["server", "start", "--foreground"]).exit(1);
    assert!(second.stderr.contains("already runs") && second.stderr.contains(&node.child.id().to_string()));
    let other = node.home.project("other");
    let foreign = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = foreign.local_addr().expect("address").port().to_string();
    let made = node.home.run(&other, &["init", "--port", &port]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let taken = node.home.run(&other, &["server", "start", "--foreground"]).exit(1);
    let holder = std::process::id().to_string();
    assert!(taken.stderr.contains("in use") && taken.stderr.contains(&holder), "{}", taken.stderr);
    let stopped = node.home.json(&node.project, &["server", "stop"]);
    assert_eq!((&stopped["stopped"], &stopped["forced"]), (&true.into(), &false.into()));
    node.home.run(&node.project, &["server", "status"]).exit(4);
}

/// Starting in the background, which leaves a node of its own behind.
#[test]
fn the_background_start_answers_when_the_node_does() {
    let home = Home::new();
    let project = home.project("garden");
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("address").port();
    home.run(&project, &["init", "--port", &free.to_string()]).ok();
    let started = home.json(&project, &["server", "start"]);
    let pid = started["pid"].to_string();
    let session = Command::new("ps").args(["-o", "sid=", "-p", &pid]).output().expect("ps").stdout;
    assert_eq!(String::from_utf8_lossy(&session).trim(), pid, "it leads a session of its own");
    assert_eq!(home.json(&project, &["server", "status"])["running"], true);
    assert_eq!(home.json(&project, &["server", "restart"])["health"]["status"], "degraded");
    home.run(&project, &["server", "stop"]).ok();
}

#[test]
fn every_hook_says_how_it_does() {
    let node = Node::start();
    let report = r#"{"id": "f1", "at_ms": 0, "event": "PreToolUse", "runtime": "claude", "hook_ms": 1.5,
        "decisions": [{"hook": "dangerous-command-guard", "verdict": "deny"}]}"#;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_millis();
    let report = report.replace("\"at_ms\": 0", &format!("\"at_ms\": {now}"));
    let taken = node.socket_request("POST", "/hooks/events", &[], &report);
    assert_eq!(taken.status, 200, "{}", taken.body);
    let told = node.with_token("GET", "/hooks/status", "").body;
    let hooks = told["hooks"].as_array().expect("hooks");
    let guard = hooks.iter().find(|hook| hook["name"] == "dangerous-command-guard").expect("the guard");
    assert_eq!((&guard["installed"], &guard["enabled"]), (&true.into(), &true.into()), "{guard}");
    assert_eq!((&guard["blocks"], &guard["p50"]), (&1.into(), &1.5.into()), "{guard}");
    assert!(guard["lastFired"].is_string());
    let listed = node.home.json(&node.project, &["hooks", "list"]);
    assert_eq!(&listed["hooks"], &told["hooks"]);
}
