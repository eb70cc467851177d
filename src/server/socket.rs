//! What is set on every TCP connection, to servers and of clients.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// For a connection to a server: as [`swift`], and one that vanished without a word is noticed within a minute.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    swift(tcp, tcp.peer_addr()?)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    #[cfg(target_os = "linux")]
    let keepalive = keepalive.with_retries(3);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// No delay of small writes. To a peer on this machine, no clever congestion control either: there is no
/// congestion on the loopback interface, but BBR, which many systems have as their default, costs a sixteenth of all CPU
/// there. Reno is in every Linux kernel and may be set by anybody; where that is forbidden nothing changes.
///
/// # Errors
/// The connection is gone.
pub(crate) fn swift(tcp: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if peer.ip().to_canonical().is_loopback() {
        let _ = SockRef::from(tcp).set_tcp_congestion(b"reno");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = peer;
    Ok(())
}
