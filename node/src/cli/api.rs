//! `instar api`: any route of the node, with the right credential.

use std::io::Read;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{CommandResult, Ctx, Exit, Failure, Reply, node};
use crate::client::{Call, encode};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GET, POST, PUT, PATCH or DELETE
    method: String,
    /// Path, for example /status
    path: String,
    /// JSON body, @FILE, or - for stdin
    #[arg(short = 'b', long = "data", value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// Query parameter; may be repeated
    #[arg(short = 'k', long = "query", value_name = "KEY=VALUE")]
    query: Vec<String>,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 35, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> CommandResult {
    let method: Method = args
        .method
        .to_uppercase()
        .parse()
        .ok()
        .filter(|m| [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(m))
        .ok_or_else(|| {
            Failure::usage(format!("{} is not a method; use GET, POST, PUT, PATCH or DELETE", args.method))
        })?;
    if !args.path.starts_with('/')
        || args.path.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#')
    {
        return Err(Failure::usage(format!(
            "{:?} is not a path; it begins with / and holds no blanks",
            args.path
        )));
    }
    let mut path = args.path.clone();
    for pair in &args.query {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--query {pair:?} is not KEY=VALUE")))?;
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(&encode(key));
        path.push('=');
        path.push_str(&encode(value));
    }
    let mut call = Call::new(method, path).patience(Duration::from_secs(args.timeout));
    if let Some(data) = &args.data {
        call = call.body(body(ctx, data)?);
    }
    let answer = node::exchange(ctx, &ctx.agent()?, call)?;
    if !answer.is_success() {
        return Err(node::refusal(&answer));
    }
    if answer.content_type.starts_with("application/json") {
        let value = answer.json();
        let text = serde_json::to_string_pretty(&value).map_err(anyhow::Error::from)?;
        return Ok(Reply::new(value, text));
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    Ok(Reply::new(json!({"contentType": answer.content_type, "body": text}), text))
}

fn body(ctx: &Ctx, data: &str) -> Result<Value, Failure> {
    let text = if data == "-" {
        let mut text = String::new();
        std::io::stdin().lock().take(64 << 20).read_to_string(&mut text)?;
        text
    } else if let Some(file) = data.strip_prefix('@') {
        let path = ctx.cwd.join(file);
        std::fs::read_to_string(&path).map_err(|e| {
            Failure::new(Exit::NotFound, "not_found", format!("cannot read {}: {e}", path.display()))
        })?
    } else {
        data.to_owned()
    };
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("--data is not JSON: {e}")))
}
