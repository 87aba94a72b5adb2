//! What happens when the process has no descriptor left. A test of its own process: the limit is the
//! process's.

mod lab;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use lab::{HOST, Lab, NET, PATIENCE, at, spawn_in, wait_for};
use nat::Protocol;
use netns::Kind;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use worker::Publication;

const CLIENTS: usize = 32;

/// A client that comes while there is no descriptor is reset, or served as soon as there is one again;
/// none waits for nothing.
#[test]
fn no_client_of_a_published_port_is_forgotten_for_want_of_descriptors() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
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
    let over = Arc::new(AtomicBool::new(false));
    let listener = container.netns.with(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::clone(&over);
    let server = spawn_in(&container.netns, move || {
        while !stop.load(Relaxed) {
            match listener.accept() {
                Ok((mut stream, _)) => stream.write_all(b"x")?,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Ok(())
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let kind = SockType::Stream;
            lab.world.with(|| Ok(socket(AddressFamily::Inet, kind, flags, None)?)).unwrap()
        })
        .collect();

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let highest = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok())
        .max()
        .unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, highest + 8, hard).unwrap();
    // Whatever becomes free is taken by somebody else at once.
    let shortage = Arc::new(AtomicBool::new(true));
    let none_left = Arc::new(AtomicBool::new(false));
    let (goes_on, says) = (Arc::clone(&shortage), Arc::clone(&none_left));
    let taker = std::thread::spawn(move || {
        let mut taken = Vec::new();
        while goes_on.load(Relaxed) {
            match File::open("/dev/null") {
                Ok(file) => taken.push(file),
                Err(_) => says.store(true, Relaxed),
            }
        }
    });
    wait_for("the last descriptor to be taken", || none_left.load(Relaxed));
    let addr = SockaddrStorage::from(at(HOST, 8080));
    for client in &clients {
        assert_eq!(connect(client.as_raw_fd(), &addr), Err(Errno::EINPROGRESS));
    }
    wait_for("the shortage to be met", || {
        let stats = lab.switch.stats(NET);
        stats[0].1.tx_dropped.iter().any(|(reason, _)| *reason == "no_socket")
    });
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    shortage.store(false, Relaxed);
    taker.join().unwrap();

    for (n, client) in clients.into_iter().enumerate() {
        let mut client = TcpStream::from(client);
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        match client.read(&mut [0; 1]) {
            Ok(len) => assert_eq!(len, 1, "client {n} is served"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::ECONNRESET as i32), "client {n}");
            }
        }
    }
    over.store(true, Relaxed);
    server.join().unwrap().unwrap();
}
