//! What happens when the process has no descriptor left. Tests of their own process, one after the other:
//! the limit is the process's.

mod lab;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use lab::{Container, HOST, Lab, NET, PATIENCE, at, wait_for};
use nat::Protocol;
use netns::Kind;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use worker::Publication;

const CLIENTS: usize = 8;

/// Held by the one test that may set the limit.
static TURN: Mutex<()> = Mutex::new(());

/// The process's limit of descriptors, put back when this goes.
struct Limit {
    before: (rlim_t, rlim_t),
}

impl Limit {
    /// Descriptors below `number` only; the open ones stay open.
    fn lower_to(number: u64) -> Self {
        let before = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, number, before.1).unwrap();
        Self { before }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let (soft, hard) = self.before;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    }
}

/// A container that listens, with its port published.
fn published(lab: &Lab) -> (Container, TcpListener) {
    let container = lab.container(10, Kind::Tap);
    let publication = Publication {
        network: NET,
        port: container.port,
        protocol: Protocol::Tcp,
        listen: at("0.0.0.0", 8080),
        to: vec![container.addr],
        to_port: 80,
        splice: None,
    };
    lab.host.with(|| lab.switch.publish(publication)).unwrap();
    let listener = container.netns.with(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    listener.set_nonblocking(true).unwrap();
    (container, listener)
}

/// Sockets of clients: theirs are the process's descriptors, too, so they are made before the shortage.
fn clients(lab: &Lab) -> Vec<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = || Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?.into());
    lab.world.with(|| (0..CLIENTS).map(|_| client()).collect::<io::Result<Vec<_>>>()).unwrap()
}

fn set_out(client: &TcpStream) {
    let addr = SockaddrStorage::from(at(HOST, 8080));
    assert_eq!(connect(client.as_raw_fd(), &addr), Err(Errno::EINPROGRESS));
}

/// The first octet the far side sends.
fn first_octet(mut client: &TcpStream) -> io::Result<usize> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.read(&mut [0; 1])
}

/// How often a client could not be taken.
fn shortages(lab: &Lab) -> u64 {
    let gateway = &lab.switch.stats(NET)[0].1;
    let refused = gateway.tx_dropped.iter().find(|(reason, _)| *reason == "no_socket");
    refused.map_or(0, |(_, count)| *count)
}

/// The one descriptor held back for it is enough to tell each of them.
#[test]
fn clients_of_a_published_port_are_reset_while_there_is_no_descriptor_for_them() {
    if !lab::possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new(1);
    let (_container, _listener) = published(&lab);
    let clients = clients(&lab);
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let highest = open.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).max();
    let limit = Limit::lower_to(highest.unwrap_or(0u64) + 8);
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    clients.iter().for_each(set_out);
    // They stay open: the descriptor of one that went would be one for another.
    for (n, client) in clients.iter().enumerate() {
        let error = first_octet(client).expect_err("nobody serves it");
        assert_eq!(error.raw_os_error(), Some(Errno::ECONNRESET as i32), "client {n}");
    }
    assert!(shortages(&lab) > 0);
    drop(limit);
}

/// Where not even the one held back can be used, nothing announces those that wait a second time.
#[test]
fn clients_of_a_published_port_that_could_not_even_be_reset_are_served_later() {
    if !lab::possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = Lab::new(1);
    let (_container, listener) = published(&lab);
    let clients = clients(&lab);
    // No number is allowed any more, not that of one just closed either.
    let limit = Limit::lower_to(0);
    for client in &clients {
        let before = shortages(&lab);
        set_out(client);
        wait_for("the client to be met", || shortages(&lab) > before);
    }
    drop(limit);
    let mut served = Vec::new();
    wait_for("the clients to reach the container", || {
        served.extend(listener.accept());
        served.len() == CLIENTS
    });
    for (stream, _) in &mut served {
        stream.write_all(b"x").unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(first_octet(client).unwrap(), 1, "client {n}");
    }
}
