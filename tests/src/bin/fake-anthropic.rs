//! The Messages API double as a program: `fake-anthropic RULES.json [--port N] [--log FILE]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use instar_tests::anthropic::MessagesApi;
use instar_tests::script::Script;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut rules, mut port, mut log) = (None, 0, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--port" => port = value()?.parse().context("--port")?,
            "--log" => log = Some(PathBuf::from(value()?)),
            _ if rules.is_none() => rules = Some(PathBuf::from(argument)),
            _ => bail!("usage: fake-anthropic RULES.json [--port N] [--log FILE]"),
        }
    }
    let rules = rules.context("usage: fake-anthropic RULES.json [--port N] [--log FILE]")?;
    let text = std::fs::read(&rules).with_context(|| format!("reading {}", rules.display()))?;
    let script = Script::from_json(&text).with_context(|| rules.display().to_string())?;
    let api = MessagesApi::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), script, log).await?;
    println!("{}", api.base_url());
    api.wait().await;
    Ok(())
}
