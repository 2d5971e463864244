//! Figures beside their budgets. Run it through `tests/bench`, which builds the release binaries first.

mod process;
mod registry;
mod relay;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result};

const USAGE: &str =
    "usage: bench BIN_DIR all|process|registry|relay|hostile [--idle-seconds N] [--load-seconds N] \
                     [--connections N,N…] [--only PART,PART…] [--json FILE]
parts: echo, capacity, latency, rounds, v2, round-trip, custody, connections, v2-connections, hostile; of hostile: words out of
the names of the attacks, such as searches";

/// Entries of the directory, and how often it is asked for each kind of query.
const AGENTS: u32 = 100_000;
const QUERIES: u32 = 300;

struct Options {
    bin_dir: PathBuf,
    idle_seconds: u64,
    part: String,
    json: Option<PathBuf>,
    relay: relay::Plan,
}

fn options() -> Result<Options> {
    let mut arguments = std::env::args().skip(1);
    let bin_dir = PathBuf::from(arguments.next().context(USAGE)?);
    let part = arguments.next().context(USAGE)?;
    let mut options = Options { bin_dir, part, idle_seconds: 300, json: None, relay: relay::Plan::default() };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().context(USAGE)?;
        match flag.as_str() {
            "--idle-seconds" => options.idle_seconds = value.parse()?,
            "--load-seconds" => options.relay.seconds = value.parse()?,
            "--connections" => {
                options.relay.connections = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--only" => options.relay.only = value.split(',').map(str::to_owned).collect(),
            "--json" => options.json = Some(value.into()),
            _ => anyhow::bail!(USAGE),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    if std::env::args().nth(2).is_some_and(|part| part == relay::ECHO) {
        return relay::serve_echo();
    }
    let options = options()?;
    let measured = match options.part.as_str() {
        "all" => processes(&options)
            .and_then(|()| registry::all(&options.bin_dir, AGENTS, QUERIES))
            .and_then(|()| relay::all(&options.bin_dir, &options.relay)),
        "process" => processes(&options),
        "registry" => registry::all(&options.bin_dir, AGENTS, QUERIES),
        "relay" => relay::all(&options.bin_dir, &options.relay),
        "hostile" => relay::hostile(&options.bin_dir, &options.relay),
        _ => anyhow::bail!(USAGE),
    };
    // What was measured until something failed is worth keeping.
    let written = options.json.map_or(Ok(()), |path| report::write_json(&path));
    measured.and(written)
}

fn processes(options: &Options) -> Result<()> {
    let setup = process::Setup::new(&options.bin_dir)?;
    process::version(&setup, 200)?;
    process::hook(&setup, 500)?;
    process::boot(&setup, 20)?;
    process::status(&setup, 100)?;
    process::mcp(&setup, 50)?;
    process::idle(&setup, options.idle_seconds)
}
