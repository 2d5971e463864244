//! One client over a pair of streams, and over the pipes of a child process.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use instar_mcp::{ServerIdentity, StdioError, serve_streams};
use rmcp::model::{ClientRequest, ProtocolVersion, Request, SubscriptionFilter};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt, PeerRequestOptions, RoleClient, RunningService, ServiceError,
    ServiceExt,
};
use rmcp::transport::TokioChildProcess;
use serde_json::{Value, json};
use threadline::service::{Caller, SessionCaller, ToolCall};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex, split};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Listener, call, code, request, text, within};
use crate::memory::Memory;

pub(crate) fn identity() -> ServerIdentity {
    ServerIdentity { agent: "ada".into(), version: "0.0.1".into() }
}

/// Serves `service` on one end of a pipe and returns the other.
fn serve(service: Arc<Memory>, caller: Caller) -> (DuplexStream, JoinHandle<Result<(), StdioError>>) {
    let (ours, theirs) = duplex(64 * 1024);
    let (reader, writer) = split(ours);
    let serving = serve_streams(reader, writer, service, caller, identity(), CancellationToken::new());
    (theirs, tokio::spawn(serving))
}

/// A connected client of a fresh server.
pub(crate) async fn connect(service: Arc<Memory>) -> RunningService<RoleClient, Listener> {
    let (stream, _) = serve(service, Caller::Local);
    within(Listener::new().serve(stream)).await.expect("a session")
}

#[tokio::test]
async fn a_client_finds_the_server_by_its_name_and_calls_a_tool() {
    let service = Memory::new(false);
    let session = SessionCaller { id: "ses-1".into(), bound: None, tainted: true };
    let (stream, _) = serve(Arc::clone(&service), Caller::Session(session.clone()));
    let client = within(Listener::new().serve(stream)).await.expect("a session");
    let server = client.peer().peer_info().expect("initialized").clone();
    assert_eq!(server.server_info.as_ref().map(|info| info.name.as_str()), Some("threadline-ada"));

    let result = call(client.peer(), "threadline_send", json!({"agentId": "bob", "message": "hi"})).await;

    let expected = json!({"success": true, "reply": "you said: hi"});
    assert_eq!(result.structured_content.as_ref(), Some(&expected));
    assert_eq!(serde_json::from_str::<Value>(text(&result)).expect("JSON"), expected);
    let calls = service.calls();
    let [(caller, ToolCall::Send(send))] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!(*caller, Caller::Session(session));
    assert!(send.wait_for_reply);
}

#[tokio::test]
async fn failures_carry_their_facts() {
    let client = connect(Memory::new(false)).await;
    let to = |agent: &str| json!({"agentId": agent, "message": "hi"});

    let result = call(client.peer(), "threadline_send", to("nobody")).await;
    assert_eq!(text(&result), "Error: there is no agent `nobody`");
    assert_eq!(
        result.structured_content,
        Some(json!({"error": {
            "code": "agent-not-found", "message": "there is no agent `nobody`", "retryable": false,
        }}))
    );

    let result = call(client.peer(), "threadline_send", to("busy")).await;
    let error = &result.structured_content.as_ref().expect("facts")["error"];
    assert_eq!((&error["retryable"], &error["retryAfterSeconds"]), (&json!(true), &json!(42)));

    let result = call(client.peer(), "threadline_send", to("twins")).await;
    assert_eq!(code(&result), "ambiguous-agent");
    assert!(text(&result).contains("twins:01234567"), "the model sees the candidates");
}

#[tokio::test]
async fn an_unknown_tool_is_a_protocol_error() {
    let client = connect(Memory::new(true)).await;
    let error =
        within(client.peer().call_tool(request("threadline_fly", json!({})))).await.expect_err("refused");
    assert!(matches!(error, ServiceError::McpError(_)), "{error:?}");
}

#[tokio::test]
async fn registry_tools_come_and_go() {
    let service = Memory::new(false);
    let client = connect(Arc::clone(&service)).await;
    let count = async || within(client.peer().list_all_tools()).await.expect("tools").len();
    assert_eq!(count().await, 7);
    service.set_registry(true);
    client.service().list_changed(1).await;
    assert_eq!(count().await, 11);
    service.set_registry(false);
    client.service().list_changed(2).await;
    assert_eq!(count().await, 7);
}

#[tokio::test]
async fn a_client_without_handshake_lists_calls_and_subscribes() {
    let service = Memory::new(false);
    let (stream, _) = serve(Arc::clone(&service), Caller::Local);
    let lifecycle = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
    let client = within(Listener::new().serve_with_lifecycle(stream, lifecycle)).await.expect("a session");
    assert_eq!(within(client.peer().list_all_tools()).await.expect("tools").len(), 7);
    let result = call(client.peer(), "threadline_agents", json!({})).await;
    assert_eq!(result.structured_content.as_ref().expect("a result")["caller"], "local");

    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    let mut changes = within(client.peer().listen(filter)).await.expect("a subscription");
    // The registry is looked at once the subscription runs; a change before that is no change to it.
    let noticed = async {
        loop {
            service.set_registry(true);
            if let Ok(change) = tokio::time::timeout(Duration::from_millis(200), changes.next()).await {
                break change;
            }
            service.set_registry(false);
        }
    };
    assert!(within(noticed).await.expect("no error").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_send_reports_progress_every_ten_seconds() {
    let service = Memory::new(false);
    let client = connect(Arc::clone(&service)).await;
    let peer = client.peer().clone();
    let arguments = json!({"agentId": "slow", "message": "hi", "timeoutSeconds": 60});
    let waiting = tokio::spawn(async move { peer.call_tool(request("threadline_send", arguments)).await });
    let mut progress = client.service().progress.subscribe();
    let seen = progress.wait_for(|all| all.len() >= 3).await.expect("the sender lives").clone();
    let seconds: Vec<f64> = seen.iter().map(|one| one.progress).collect();
    assert_eq!(seconds, [10.0, 20.0, 30.0]);
    assert!(seen.iter().all(|one| one.total == Some(60.0)));
    waiting.abort();
}

#[tokio::test]
async fn a_cancelled_call_is_dropped_and_the_session_goes_on() {
    let service = Memory::new(false);
    let client = connect(Arc::clone(&service)).await;
    let slow = request("threadline_send", json!({"agentId": "slow", "message": "hi"}));
    let handle = client
        .peer()
        .send_cancellable_request(
            ClientRequest::CallToolRequest(Request::new(slow)),
            PeerRequestOptions::no_options(),
        )
        .await
        .expect("sent");
    within(service.waiting(1)).await;
    handle.cancel(Some("enough".into())).await.expect("sent");
    within(service.waiting(0)).await;
    assert_eq!(service.dropped(), 1);
    let result = call(client.peer(), "threadline_agents", json!({})).await;
    assert_eq!(result.is_error, Some(false));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_server_and_its_calls() {
    let service = Memory::new(false);
    let (stream, serving) = serve(Arc::clone(&service), Caller::Local);
    let client = within(Listener::new().serve(stream)).await.expect("a session");
    let peer = client.peer().clone();
    let call = tokio::spawn(async move {
        peer.call_tool(request("threadline_send", json!({"agentId": "slow", "message": "hi"}))).await
    });
    within(service.waiting(1)).await;
    client.cancel().await.expect("closed");
    let soon = tokio::time::timeout(Duration::from_secs(2), serving).await.expect("soon");
    soon.expect("no panic").expect("a clean end");
    within(service.waiting(0)).await;
    within(call).await.expect("no panic").expect_err("nobody answers");
}

#[tokio::test]
async fn a_client_that_says_nothing_is_no_error() {
    let (stream, serving) = serve(Memory::new(false), Caller::Local);
    drop(stream);
    within(serving).await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_drops_its_calls_and_stops() {
    let (ours, theirs) = duplex(1024);
    let (reader, writer) = split(ours);
    let (service, cancel) = (Memory::new(false), CancellationToken::new());
    let serving = tokio::spawn(serve_streams(
        reader,
        writer,
        Arc::clone(&service) as Arc<_>,
        Caller::Local,
        identity(),
        cancel.clone(),
    ));
    let client = within(Listener::new().serve(theirs)).await.expect("a session");
    let peer = client.peer().clone();
    let call = tokio::spawn(async move {
        peer.call_tool(request("threadline_send", json!({"agentId": "slow", "message": "hi"}))).await
    });
    within(service.waiting(1)).await;
    cancel.cancel();
    let soon = tokio::time::timeout(Duration::from_millis(900), serving).await.expect("within a second");
    soon.expect("no panic").expect("a clean end");
    within(call).await.expect("no panic").expect_err("no answer");
}

#[tokio::test]
async fn requests_piped_in_at_once_are_answered_after_the_input_ended() {
    let (mut stream, serving) = serve(Memory::new(false), Caller::Local);
    for message in [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {"name": "threadline_agents", "arguments": {}}}),
    ] {
        stream.write_all(format!("{message}\n").as_bytes()).await.expect("written");
    }
    stream.shutdown().await.expect("closed");
    within(serving).await.expect("no panic").expect("a clean end");
    let mut lines = String::new();
    within(stream.read_to_string(&mut lines)).await.expect("read");
    let ids: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("nothing but messages")["id"].clone())
        .collect();
    assert_eq!(ids, [json!(1), json!(2)]);
}

/// One line per message, as clients of each handshake version write them.
async fn raw_initialize(version: &str) -> Value {
    let (stream, _) = serve(Memory::new(false), Caller::Local);
    let (reader, mut writer) = split(stream);
    let initialize = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"},
    }});
    writer.write_all(format!("{initialize}\n").as_bytes()).await.expect("written");
    let mut line = String::new();
    within(BufReader::new(reader).read_line(&mut line)).await.expect("read");
    serde_json::from_str(&line).expect("JSON")
}

#[tokio::test]
async fn the_handshake_versions_are_spoken() {
    for version in ["2025-06-18", "2025-11-25"] {
        let answer = raw_initialize(version).await;
        assert_eq!(answer["result"]["protocolVersion"], version);
        assert_eq!(answer["result"]["capabilities"]["tools"]["listChanged"], true);
    }
    assert_eq!(raw_initialize("2031-01-01").await["result"]["protocolVersion"], "2025-11-25");
}

/// The example next to this test's own binary.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    let target = test.parent().and_then(|deps| deps.parent()).expect("target directory");
    let path = target.join("examples").join(name);
    assert!(path.exists(), "{} is built with the tests: cargo test -p instar-mcp", path.display());
    path
}

#[tokio::test]
async fn a_child_process_speaks_over_its_pipes_and_ends_with_its_stdin() {
    let transport = TokioChildProcess::new(Command::new(example("memory_server"))).expect("started");
    let client = within(Listener::new().serve(transport)).await.expect("a session");
    assert_eq!(within(client.peer().list_all_tools()).await.expect("tools").len(), 11);
    let result = call(client.peer(), "threadline_send", json!({"agentId": "bob", "message": "hi"})).await;
    assert_eq!(result.is_error, Some(false));
    client.cancel().await.expect("closed");

    let mut child = Command::new(example("memory_server"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    drop(child.stdin.take());
    assert!(within(child.wait()).await.expect("waited").success());
}
