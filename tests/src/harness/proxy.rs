//! A TCP proxy that stops forwarding without closing: half-open sockets and relays behind a dead network.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Forwards connections on a loopback port to another, until told otherwise. Ends with its value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    inner: Arc<Inner>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Inner {
    target: u16,
    /// Whether new connections are taken and then left alone.
    dark: AtomicBool,
    /// One switch for each connection that was made; `true` freezes it for ever.
    connections: Mutex<Vec<watch::Sender<bool>>>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `target`.
    pub async fn start(target: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for a proxy")?;
        let port = listener.local_addr()?.port();
        let inner =
            Arc::new(Inner { target, dark: AtomicBool::new(false), connections: Mutex::new(Vec::new()) });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&inner)));
        Ok(Self { port, inner, _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Freezes every `n`-th open connection: neither end hears of it, and neither gets another byte. Returns how many.
    pub fn freeze(&self, n: usize) -> usize {
        let connections = self.inner.connections();
        let open = connections.iter().filter(|switch| !switch.is_closed() && !*switch.borrow());
        let mut frozen = 0;
        for switch in open.step_by(n.max(1)) {
            switch.send_replace(true);
            frozen += 1;
        }
        frozen
    }

    /// While dark, no byte passes: connections that are open, and those that are made meanwhile, are frozen for ever.
    pub fn set_dark(&self, dark: bool) {
        self.inner.dark.store(dark, Ordering::SeqCst);
        // What was frozen stays so: its ends have to find out.
        self.freeze(1);
    }
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, Vec<watch::Sender<bool>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    let mut tasks = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (switch, frozen) = watch::channel(inner.dark.load(Ordering::SeqCst));
        inner.connections().push(switch);
        tasks.spawn(forward(client, inner.target, frozen));
        while tasks.try_join_next().is_some() {}
    }
}

async fn forward(client: TcpStream, target: u16, frozen: watch::Receiver<bool>) {
    if *frozen.borrow() {
        return hold(client).await;
    }
    // A client of a relay that is down is told so at once, as by its kernel.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_reads, client_writes), (server_reads, server_writes)) =
        (client.into_split(), server.into_split());
    let up = copy(client_reads, server_writes, frozen.clone());
    let down = copy(server_reads, client_writes, frozen);
    // A connection whose one side has ended is over.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            _ = frozen.wait_for(|frozen| *frozen) => break,
            read = from.read(&mut buffer) => read,
        };
        let Ok(count @ 1..) = read else { return };
        tokio::select! {
            biased;
            _ = frozen.wait_for(|frozen| *frozen) => break,
            written = to.write_all(&buffer[..count]) => if written.is_err() { return },
        }
    }
    hold((from, to)).await;
}

/// Keeps a socket open and leaves it alone.
async fn hold<T>(socket: T) {
    std::future::pending::<()>().await;
    drop(socket);
}
