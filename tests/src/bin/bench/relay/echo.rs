//! The reference: a plain server that sends every WebSocket message back after it has appended it to one file, and
//! perhaps waited until the disk has it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::scratch;
use super::subject::{Subject, free_port, pinned};
use super::wire::{Client, Heard, Phase, Template};
use crate::report;

/// Argument that turns this program into the reference server: `bench FILE echo PORT written|synced`.
pub(crate) const ARGUMENT: &str = "echo";
const SYNCED: &str = "synced";
const CONNECTIONS: usize = 16;
const WINDOW: u64 = 64;

/// Runs the reference server.
pub(crate) fn serve() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(arguments.next().context("FILE")?);
    let port: u16 = arguments.nth(1).context("PORT")?.parse()?;
    let synced = arguments.next().context("written|synced")? == SYNCED;
    let file = Arc::new(Mutex::new(OpenOptions::new().create(true).append(true).open(file)?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(echo(stream, Arc::clone(&file), synced));
        }
    })
}

async fn echo(stream: TcpStream, file: Arc<Mutex<File>>, synced: bool) -> Result<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() {
            let data = message.clone().into_data();
            {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write_all(&data)?;
                if synced {
                    file.sync_data()?;
                }
            }
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// The reference server as a process of its own.
pub(crate) fn start(synced: bool) -> Result<Subject> {
    let data = tempfile::Builder::new().prefix("echo-bench-").tempdir_in(scratch())?;
    let (port, file) = (free_port()?, data.path().join("echo.log"));
    let mut command = pinned(&std::env::current_exe()?);
    let port_text = port.to_string();
    command.arg(&file).args([ARGUMENT, &port_text, if synced { SYNCED } else { "written" }]);
    Subject::spawn(command, port, data)
}

pub(crate) fn measure(size: usize, length: Duration) -> Result<()> {
    let server = start(false)?;
    let address = "0".repeat(32);
    let template = Template::new(&address, &address, size);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::start(server.at, "/", None)?;
        while client.phase != Phase::Live {
            client.poll(&mut |_, _| Ok(()))?;
        }
        clients.push((client, 0_u64, 0_u64));
    }
    let (start, cpu) = (Instant::now(), server.cpu()?);
    while start.elapsed() < length {
        for (client, sent, back) in &mut clients {
            if *sent - *back <= WINDOW / 2 {
                while *sent - *back < WINDOW {
                    template.write(*sent, client.output_mut());
                    *sent += 1;
                }
            }
            client.poll(&mut |_, heard| {
                *back += u64::from(matches!(heard, Heard::Message { .. }));
                Ok(())
            })?;
        }
    }
    let took = start.elapsed().as_secs_f64();
    let cpu = server.cpu()?.saturating_sub(cpu).as_secs_f64();
    let count = clients.iter().map(|(_, _, back)| *back).sum::<u64>() as f64;
    report::figure(
        &format!("reference: plain echo that appends to a file, {} KiB", size / 1024),
        &format!(
            "{:.0} messages/s, {:.1} us CPU per message ({:.0} % of its core)",
            count / took,
            cpu * 1e6 / count.max(1.0),
            cpu / took * 100.0
        ),
        "-",
    );
    Ok(())
}
