//! What is set on every TCP connection, to servers and of clients.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// For a connection to a server: as [`swift`], and one that vanished without a word is noticed within a minute.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    swift(tcp, tcp.peer_addr()?)?;
    keep_alive(tcp, Duration::from_secs(30))
}

/// A peer that vanished without a word is noticed after twice this time: it is asked when it has been silent for so long,
/// then three times at a third of it. As Redis has it (anet.c, `anetKeepAlive`); the system's own interval would make it
/// eleven minutes more.
///
/// # Errors
/// The connection is gone.
pub(crate) fn keep_alive(tcp: &TcpStream, after: Duration) -> io::Result<()> {
    // The system counts in whole seconds, and takes no zero.
    let second = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_time(after.max(second)).with_interval((after / 3).max(second));
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keep_alive_asks_three_times_at_a_third_of_the_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        for (after, interval) in [(300, 100), (30, 10), (2, 1), (1, 1)] {
            keep_alive(&tcp, Duration::from_secs(after)).unwrap();
            let socket = SockRef::from(&tcp);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(after));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(interval));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        }
        keep_alive(&tcp, Duration::from_millis(200)).unwrap();
    }
}
