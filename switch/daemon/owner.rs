//! Who else listens on a host port, for the error that says it is in use.
//!
//! `/proc/net/{tcp,udp}{,6}` gives the socket's inode (`Documentation/networking/proc_net_tcp.rst`),
//! and `/proc/PID/fd` whose it is, of processes we may look into. A best effort: what cannot be read
//! is left out of the error.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nat::Protocol;

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub pid: u32,
    /// Its command's name, at most 15 octets (`/proc/PID/comm`).
    pub command: String,
}

/// The process whose socket keeps us from binding `listen`, if `/proc` allows to see it.
#[must_use]
pub fn find(protocol: Protocol, listen: SocketAddr) -> Option<Owner> {
    let tables: [&str; 2] = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        _ => return None,
    };
    let inode = tables.iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        sockets(&table).find(|socket| socket.blocks(listen)).map(|socket| socket.inode)
    })?;
    holder(inode)
}

/// The ports of `/proc/net/tcp`-like `table` that a connection from elsewhere could reach: in state
/// LISTEN and not bound to loopback.
pub fn listening_ports(table: &str) -> impl Iterator<Item = u16> {
    sockets(table)
        .filter(|socket| {
            socket.state == TCP_LISTEN && !socket.local.ip().to_canonical().is_loopback()
        })
        .map(|socket| socket.local.port())
}

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 0x0a;
/// `TCP_CLOSE`, which a bound and unconnected UDP socket shows.
const UDP_BOUND: u8 = 0x07;

#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    state: u8,
    inode: u64,
}

impl Socket {
    fn blocks(&self, listen: SocketAddr) -> bool {
        let (ours, theirs) = (listen.ip(), self.local.ip().to_canonical());
        let waits = matches!(self.state, TCP_LISTEN | UDP_BOUND);
        let meets = ours == theirs || ours.is_unspecified() || theirs.is_unspecified();
        waits && meets && self.local.port() == listen.port() && self.inode != 0
    }
}

fn sockets(table: &str) -> impl Iterator<Item = Socket> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = socket_addr(fields.nth(1)?)?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let inode = fields.nth(5)?.parse().ok()?;
        Some(Socket { local, state, inode })
    })
}

/// `0100007F:1F90`: the address in words of 32 bits of the machine's own byte order.
fn socket_addr(text: &str) -> Option<SocketAddr> {
    let (addr, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(addr.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let addr: IpAddr = match addr.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(addr, port))
}

fn holder(inode: u64) -> Option<Owner> {
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))
            .then(|| Owner { pid, command: command(pid) })
    })
}

fn command(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn we_find_ourselves() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let us = std::process::id();
        for (protocol, addr) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            assert_eq!(find(protocol, addr).unwrap().pid, us, "{addr}");
            let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
            assert_eq!(find(protocol, everywhere).unwrap().pid, us, "{everywhere}");
        }
        let elsewhere = SocketAddr::new([127, 9, 9, 9].into(), tcp.local_addr().unwrap().port());
        assert_eq!(find(Protocol::Tcp, elsewhere), None);
    }

    #[test]
    fn only_what_others_can_reach_counts_as_listening() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1
   2: 020011AC:0051 0300A8C0:C350 01 00000000:00000000 00:00000000 00000000     0        0 103 1
   3: nonsense
";
        // The words are in the machine's order, and this table is a little-endian machine's.
        if cfg!(target_endian = "little") {
            assert_eq!(listening_ports(table).collect::<Vec<_>>(), [80]);
        }
    }

    #[test]
    fn ipv6_addresses_are_read_word_by_word() {
        let loopback = Ipv6Addr::LOCALHOST.octets();
        let text: String = loopback
            .chunks_exact(4)
            .map(|chunk| format!("{:08X}", u32::from_ne_bytes(chunk.try_into().unwrap())))
            .collect();
        assert_eq!(socket_addr(&format!("{text}:0050")), Some("[::1]:80".parse().unwrap()));
        assert_eq!(socket_addr("00:0050"), None);
    }
}
