//! The way of datagrams to a relay, which can be cut while everything else goes on: a firewall without UDP.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Largest datagram.
const LARGEST: usize = 65_536;

/// Passes datagrams on in both directions, or swallows them. It ends when dropped.
#[derive(Debug)]
pub struct UdpPath {
    port: u16,
    open: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl UdpPath {
    /// A way to a loopback port, open at first.
    pub async fn to(target: u16) -> anyhow::Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let port = front.local_addr()?.port();
        let open = Arc::new(AtomicBool::new(true));
        let mut task = JoinSet::new();
        task.spawn(carry(front, target, Arc::clone(&open)));
        Ok(Self { port, open, _task: task })
    }

    /// Where clients send to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Swallows everything from now on, in both directions.
    pub fn cut(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    /// Passes everything on again.
    pub fn mend(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

async fn carry(front: Arc<UdpSocket>, target: u16, open: Arc<AtomicBool>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok((length, client)) = front.recv_from(&mut buffer).await else { continue };
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        if let Entry::Vacant(entry) = clients.entry(client) {
            let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
            if socket.connect((Ipv4Addr::LOCALHOST, target)).await.is_err() {
                continue;
            }
            let socket = Arc::new(socket);
            entry.insert(Arc::clone(&socket));
            answers.spawn(carry_back(socket, Arc::clone(&front), client, Arc::clone(&open)));
        }
        if let Some(socket) = clients.get(&client) {
            // A datagram may be lost.
            let _ = socket.send(&buffer[..length]).await;
        }
    }
}

async fn carry_back(from: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, open: Arc<AtomicBool>) {
    let mut buffer = vec![0; LARGEST];
    loop {
        // While the relay is away its port is refused.
        let Ok(length) = from.recv(&mut buffer).await else { continue };
        if open.load(Ordering::SeqCst) {
            let _ = front.send_to(&buffer[..length], client).await;
        }
    }
}
