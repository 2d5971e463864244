//! The node's listeners: loopback TCP on its port, and its unix socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use instar_state::paths::AgentPaths;
use tokio::net::{TcpListener, UnixListener};

use crate::cli::{Exit, Failure};

/// Binds the configured host. For a loopback host both loopbacks are taken, the second where the system has it.
pub(crate) async fn tcp(host: &str, port: u16) -> Result<Vec<TcpListener>, Failure> {
    let loopback = matches!(host, "127.0.0.1" | "localhost" | "::1");
    if !loopback {
        let address: IpAddr = host.parse().map_err(|_| {
            Failure::new(Exit::NoAgent, "config_invalid", format!("host {host:?} is no IP address"))
        })?;
        return Ok(vec![bind(SocketAddr::new(address, port)).await?]);
    }
    let mut listeners = vec![bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await?];
    match TcpListener::bind(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)).await {
        Ok(second) => listeners.push(second),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(taken(port)),
        // A machine without IPv6 has one loopback.
        Err(_) => {}
    }
    Ok(listeners)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => taken(address.port()),
        _ => Failure::failed(format!("cannot listen on {address}: {error}")),
    })
}

fn taken(port: u16) -> Failure {
    let holder = holder_of(port).map_or_else(String::new, |pid| format!(" by process {pid}"));
    Failure::new(
        Exit::Failed,
        "port_taken",
        format!(
            "port {port} is in use{holder}; end that program, or choose another port: instar config set port <n>"
        ),
    )
}

/// The process that listens on a loopback port, where the system lets us see it.
fn holder_of(port: u16) -> Option<u32> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = std::fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit(':').next()?;
            let listening = *fields.get(3)? == "0A";
            (listening && u16::from_str_radix(local, 16).ok()? == port)
                .then(|| fields.get(9).map(|s| (*s).to_owned()))?
        })
    })?;
    let wanted = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let open = std::fs::read_dir(process.path().join("fd")).ok()?;
        let holds = open
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy() == wanted));
        holds.then_some(pid)
    })
}

/// Binds the unix socket, mode 0600. The caller holds the node's lock, so a socket file that exists is a leftover.
pub(crate) fn socket(paths: &AgentPaths) -> io::Result<UnixListener> {
    let path = paths.socket();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
