//! Which connections are this process's own, as a server's `CLIENT LIST` names them.
//!
//! The gateway's lanes bear no name of the gateway's (they may bear a client's), so they are recognised by address: the
//! kernel lists the local addresses of our sockets. Where it does not (other systems, or NAT between us and the server)
//! nothing is known, and nobody is accused.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Local addresses of all TCP sockets of this process; `None` where the system does not tell.
pub(super) fn addresses() -> Option<HashSet<SocketAddr>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir("/proc/self/fd").ok()?.flatten() {
        // A descriptor may be closed while we look.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if let Some(inode) =
            target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok())
        {
            inodes.insert(inode);
        }
    }
    let mut found = HashSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let Ok(text) = std::fs::read_to_string(table) else { continue };
        found.extend(text.lines().skip(1).filter_map(|line| row(line, &inodes)));
    }
    Some(found)
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn row(line: &str, inodes: &HashSet<u64>) -> Option<SocketAddr> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let inode = fields.get(9)?.parse().ok()?;
    inodes.contains(&inode).then(|| address(fields[1]))?
}

/// Hexadecimal, each group of four bytes in the machine's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..host.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn our_own_connection_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(addresses().unwrap().contains(&client.local_addr().unwrap()));
    }
}
