//! What the kernel knows of TCP connections on this machine: whether what was sent has been read.

use std::net::SocketAddr;

/// A connection as one of its ends sees it: its own port, the port of the other end, bytes sent and not taken over by the
/// other end's kernel, bytes that have arrived and were not read.
struct Row {
    port: u16,
    peer: u16,
    unsent: usize,
    unread: usize,
}

/// The connections over IPv4. `/proc/net/tcp`: `sl local_address rem_address st tx_queue:rx_queue ...`, in hexadecimal.
fn rows() -> Vec<Row> {
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (unsent, unread) = words.get(4)?.split_once(':')?;
        Some(Row {
            port: port(words[1])?,
            peer: port(words[2])?,
            unsent: usize::from_str_radix(unsent, 16).ok()?,
            unread: usize::from_str_radix(unread, 16).ok()?,
        })
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).filter_map(row).collect()
}

/// Whether a process on this machine has read everything that was written to it over the connection between these ends.
pub fn has_read_all(writer: SocketAddr, reader: SocketAddr) -> bool {
    let (writer, reader) = (writer.port(), reader.port());
    let of = |row: &&Row| [(writer, reader), (reader, writer)].contains(&(row.port, row.peer));
    let rows = rows();
    let mut both = rows.iter().filter(of);
    both.clone().count() == 2
        && both.all(|row| if row.port == writer { row.unsent == 0 } else { row.unread == 0 })
}

/// Bytes that have arrived for the server on this port and that it has not read.
pub fn unread_at(port: u16) -> usize {
    rows().iter().filter(|row| row.port == port && row.peer != 0).map(|row| row.unread).sum()
}
