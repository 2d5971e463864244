//! The relay as a program: command line, log, signals, service manager.

mod descriptors;
mod probe;
mod service;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Setting;
use crate::server;
use crate::{ConfigError, Heartbeat, Launch, RelayConfig};

/// The Threadline relay. Exit codes: 0 stopped in order, 1 failed, 2 bad configuration, 3 already running,
/// 4 damaged queue.
#[derive(Parser)]
#[command(name = "threadline-relay", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay (the default).
    Run,
    /// Check the configuration and exit with 2 if anything is wrong.
    CheckConfig,
    /// Print the effective configuration.
    PrintConfig,
    /// Bring over the directory of another relay, while neither runs.
    Import {
        /// Its data directory.
        #[arg(long)]
        from: PathBuf,
    },
    /// Ask the running relay of this configuration for its health; exit with 1 if it does not answer.
    Health,
}

#[derive(Args)]
struct Settings {
    /// Configuration file; default: relay.toml in the data directory, if there.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, global = true)]
    host: Option<String>,
    /// TCP port; 0 lets the system choose.
    #[arg(long, global = true)]
    port: Option<String>,
    /// Where everything is stored.
    #[arg(long, global = true)]
    data_dir: Option<String>,
    /// Any key of the configuration, such as `queue.ttl_s=3600`; may be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = parse_setting)]
    set: Vec<Setting>,
    /// Set a damaged database aside and start with an empty one.
    #[arg(long, global = true)]
    accept_data_loss: bool,
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok(Setting { key: key.trim().to_owned(), value: value.trim().to_owned() })
}

impl Settings {
    fn load(self) -> Result<RelayConfig, ConfigError> {
        let named = [("host", self.host), ("port", self.port), ("data_dir", self.data_dir)];
        let named =
            named.into_iter().filter_map(|(key, value)| Some(Setting { key: key.to_owned(), value: value? }));
        let flags: Vec<Setting> = self.set.into_iter().chain(named).collect();
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut config = RelayConfig::load(self.config.as_deref(), env, &flags)?;
        config.accept_data_loss = self.accept_data_loss;
        Ok(config)
    }
}

/// Runs the program with these arguments, of which the first is its name. Returns its exit code.
pub fn main_from_args(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(answer) => {
            let _ = answer.print();
            return u8::try_from(answer.exit_code()).unwrap_or(2);
        }
    };
    let config = match cli.settings.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return 2;
        }
    };
    match cli.command {
        Some(Command::CheckConfig) => {
            println!("configuration is valid");
            0
        }
        Some(Command::PrintConfig) => {
            print!("{}", config.print());
            0
        }
        Some(Command::Import { from }) => match server::import(&config, &from) {
            Ok(report) => {
                println!("{report}");
                0
            }
            Err(error) => {
                eprintln!("{error}");
                error.exit_code()
            }
        },
        Some(Command::Health) => match probe::health(&config) {
            Ok(body) => {
                println!("{body}");
                0
            }
            Err(error) => {
                eprintln!("{error}");
                1
            }
        },
        None | Some(Command::Run) => run(config),
    }
}

fn run(config: RelayConfig) -> u8 {
    let level = config.log_level.parse().unwrap_or(LevelFilter::INFO);
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    if config.log_json {
        log.json().init();
    } else {
        log.init();
    }
    descriptors::raise(config.max_sessions);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return 1;
        }
    };
    match runtime.block_on(serve(config)) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

async fn serve(config: RelayConfig) -> Result<(), u8> {
    let (shutdown, hurry) = (CancellationToken::new(), CancellationToken::new());
    let watcher = tokio::spawn(watch_signals(shutdown.clone(), hurry.clone()));
    let (ready, address) = tokio::sync::oneshot::channel();
    let (beat, beats) = tokio::sync::mpsc::channel(1);
    let heartbeat = service::heartbeat_interval().map(|every| Heartbeat { every, beat });
    let (admin_ready, admin_address) = tokio::sync::oneshot::channel();
    let (quic_ready, quic_address) = tokio::sync::oneshot::channel();
    let reload = std::sync::Arc::new(tokio::sync::Notify::new());
    let hangups = tokio::spawn(watch_hangups(std::sync::Arc::clone(&reload)));
    let launch = Launch {
        ready: Some(ready),
        admin_ready: Some(admin_ready),
        quic_ready: Some(quic_ready),
        reload,
        hurry,
        heartbeat,
        ..Launch::default()
    };
    let announce = async {
        if let Ok(address) = address.await {
            say(format_args!("listening on {address}"));
            service::ready(address);
        }
        if let Ok(address) = admin_address.await {
            say(format_args!("admin on {address}"));
        }
        if let Ok(address) = quic_address.await {
            say(format_args!("QUIC on UDP {address}"));
        }
    };
    let stopping = tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            service::stopping();
        }
    });
    let (served, (), ()) =
        tokio::join!(crate::serve(config, launch, shutdown), announce, service::pass_on(beats));
    stopping.abort();
    watcher.abort();
    hangups.abort();
    match served {
        Ok(counters) => {
            say(format_args!("{counters}"));
            Ok(())
        }
        Err(error) => {
            eprintln!("{error}");
            Err(error.exit_code())
        }
    }
}

/// Prints a line. Whoever started the relay may have stopped to listen, which is no reason to end.
fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The first SIGTERM or SIGINT drains, the second closes at once.
async fn watch_signals(shutdown: CancellationToken, hurry: CancellationToken) {
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return tracing::error!("signals cannot be watched");
    };
    for token in [shutdown, hurry] {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
}

/// SIGHUP reads certificate and key again.
async fn watch_hangups(reload: std::sync::Arc<tokio::sync::Notify>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return tracing::error!("SIGHUP cannot be watched");
    };
    while hangup.recv().await.is_some() {
        reload.notify_one();
    }
}
