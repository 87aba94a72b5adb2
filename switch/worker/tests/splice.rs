//! Published ports relayed socket to socket: what a client and a server see of it is a connection.

mod lab;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use lab::{Container, HOST, HOST6, Lab, NET, PATIENCE, WORLD, at, serve, wait_for};
use nat::Protocol;
use netns::{Kind, Netns, SocketMaker};
use worker::{Publication, Splice, Stock};

/// More than any buffer on the way holds.
const LARGE: u64 = 300_000_000;

/// One test at a time: some look at all descriptors of this process.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    lab::possible().then_some(turn)
}

/// The stream every sender sends, from octet `at` on.
fn fill(at: u64, octets: &mut [u8]) {
    for (n, octet) in (at..).zip(octets) {
        *octet = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29).to_le_bytes()[0];
    }
}

/// Sends so much of the stream.
fn send(mut to: &TcpStream, len: u64) -> io::Result<()> {
    let mut chunk = vec![0; 1 << 16];
    let mut at = 0;
    while at < len {
        let size = usize::try_from((len - at).min(1 << 16)).unwrap();
        fill(at, &mut chunk[..size]);
        to.write_all(&chunk[..size])?;
        at += size as u64;
    }
    Ok(())
}

/// Reads to the end; how much of the stream that was, and nothing else.
fn receive(mut from: &TcpStream) -> io::Result<u64> {
    from.set_read_timeout(Some(PATIENCE))?;
    let (mut chunk, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let got = from.read(&mut chunk)?;
        if got == 0 {
            return Ok(at);
        }
        fill(at, &mut expected[..got]);
        assert!(chunk[..got] == expected[..got], "another octet between {at} and {got} on");
        at += got as u64;
    }
}

/// Sends and receives at once, to the end of both.
fn exchange(stream: &TcpStream, len: u64) -> io::Result<u64> {
    let writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        send(&writer, len)?;
        writer.shutdown(Shutdown::Write)
    });
    let got = receive(stream)?;
    sender.join().unwrap()?;
    Ok(got)
}

/// A lab with a container whose port 80 is the host's port 8080, by sockets made inside.
struct Spliced {
    lab: Lab,
    container: Container,
    stock: Arc<Stock>,
}

impl Spliced {
    fn new(workers: usize, everybody: bool) -> Self {
        let lab = Lab::new(workers);
        let container = lab.container(10, Kind::Tap);
        let maker = SocketMaker::new(container.netns.try_clone().unwrap());
        let stock = lab.switch.stock(maker, true, true).unwrap();
        for any in ["0.0.0.0", "::"] {
            let publication = Publication {
                network: NET,
                port: container.port,
                protocol: Protocol::Tcp,
                listen: at(any, 8080),
                to: vec![container.addr, container.addr6],
                to_port: 80,
                splice: Some(Splice { stock: Arc::clone(&stock), everybody }),
            };
            lab.host.with(|| lab.switch.publish(publication)).unwrap();
        }
        let spliced = Self { lab, container, stock };
        spliced.wait_for_sockets();
        spliced
    }

    /// Waits for sockets of both families.
    fn wait_for_sockets(&self) {
        wait_for("sockets inside", || self.stock.at_hand() >= 32);
    }

    /// Connections spliced, and octets moved so.
    fn counts(&self) -> (u64, u64) {
        let stats = self.lab.switch.worker_stats();
        (
            stats.iter().map(|worker| worker.spliced).sum(),
            stats.iter().map(|worker| worker.spliced_octets).sum(),
        )
    }

    fn dial(&self, from: &Netns, to: SocketAddr) -> TcpStream {
        let stream = from.with(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn dial_loopback(&self) -> TcpStream {
        self.dial(&self.lab.host, at("127.0.0.1", 8080))
    }

    /// A server in the container that serves one client.
    fn serve<T: Send + 'static>(
        &self,
        addr: SocketAddr,
        with: impl FnOnce(TcpStream, SocketAddr) -> io::Result<T> + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        serve(
            &self.container.netns,
            move || TcpListener::bind(addr),
            move |listener| {
                let (stream, peer) = listener.accept()?;
                drop(listener);
                stream.set_read_timeout(Some(PATIENCE))?;
                with(stream, peer)
            },
        )
    }

    fn flows_end(&self) {
        wait_for("the flows to end", || self.lab.switch.flows(None).is_empty());
    }

    /// A transfer both ways; whom the server saw.
    fn transfer(&self, from: &Netns, to: SocketAddr, up: u64, down: u64) -> IpAddr {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let server = self.serve(at(any, 80), move |stream, peer| {
            assert_eq!(exchange(&stream, down)?, up, "the upload arrived whole");
            Ok(peer.ip())
        });
        let client = self.dial(from, to);
        assert_eq!(exchange(&client, up).unwrap(), down, "the download arrived whole");
        server.join().unwrap().unwrap()
    }
}

#[test]
fn a_loopback_clients_octets_arrive_as_sent_few_or_many_in_both_families() {
    let Some(_turn) = turn() else { return };
    for workers in [1, 2] {
        let spliced = Spliced::new(workers, false);
        let own = [("127.0.0.1", spliced.container.addr), ("::1", spliced.container.addr6)];
        let mut octets = 0;
        for (to, own) in own {
            for (up, down) in
                [(10, 10), (0, 10), (LARGE, 10), (10, LARGE), (LARGE / 10, LARGE / 10)]
            {
                let seen = spliced.transfer(&spliced.lab.host, at(to, 8080), up, down);
                assert_eq!(seen, own, "made inside, from the container's own address");
                octets += up + down;
            }
        }
        spliced.flows_end();
        wait_for("the counts", || spliced.counts() == (10, octets));
    }
}

#[test]
fn others_keep_their_address_unless_the_port_is_spliced_for_everybody() {
    let Some(_turn) = turn() else { return };
    for everybody in [false, true] {
        let spliced = Spliced::new(1, everybody);
        let (lab, container) = (&spliced.lab, &spliced.container);
        let cases = [
            (&lab.world, at(HOST, 8080), WORLD, container.addr),
            (&lab.world, at(HOST6, 8080), lab::WORLD6, container.addr6),
            (&lab.host, at(HOST, 8080), HOST, container.addr),
        ];
        for (client, dial, address, own) in cases {
            let seen = spliced.transfer(client, dial, 2_000_000, 2_000_000);
            let expected = if everybody { own } else { address.parse().unwrap() };
            assert_eq!(seen, expected, "{dial}");
        }
        assert_eq!(spliced.counts().0, if everybody { 3 } else { 0 });
    }
}

#[test]
fn the_connection_is_listed_while_it_lasts() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let server = spliced.serve(at("0.0.0.0", 80), |stream, peer| Ok((receive(&stream)?, peer)));
    let client = spliced.dial_loopback();
    send(&client, 10).unwrap();
    wait_for("the flow", || {
        let flows = spliced.lab.switch.flows(Some(NET));
        flows.len() == 1 && flows[0].sent.1 == 10
    });
    let flow = spliced.lab.switch.flows(Some(NET)).remove(0);
    assert_eq!(SocketAddr::from(flow.original.src), client.local_addr().unwrap());
    assert_eq!(flow.original.dst, at("127.0.0.1", 8080).into());
    assert_eq!(flow.reply.src, SocketAddr::new(spliced.container.addr, 80).into());
    assert_eq!(flow.state, Some("ESTABLISHED"));
    drop(client);
    let (got, peer) = server.join().unwrap().unwrap();
    assert_eq!((got, flow.reply.dst), (10, peer.into()));
    spliced.flows_end();
}

#[test]
fn an_end_of_one_direction_leaves_the_other_open() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    // The client ends first; the answer comes after that.
    let server = spliced.serve(at("0.0.0.0", 80), |stream, _| {
        let got = receive(&stream)?;
        send(&stream, 5_000_000)?;
        Ok(got)
    });
    let client = spliced.dial_loopback();
    send(&client, 5_000_000).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(&client).unwrap(), 5_000_000);
    assert_eq!(server.join().unwrap().unwrap(), 5_000_000);
    // The server ends first.
    let server = spliced.serve(at("0.0.0.0", 80), |stream, _| {
        stream.shutdown(Shutdown::Write)?;
        receive(&stream)
    });
    let client = spliced.dial_loopback();
    assert_eq!(receive(&client).unwrap(), 0);
    send(&client, 5_000_000).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.join().unwrap().unwrap(), 5_000_000);
    spliced.flows_end();
}

#[test]
fn a_closed_port_inside_resets_the_client() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let refused = spliced
        .lab
        .host
        .with(|| TcpStream::connect_timeout(&at("127.0.0.1", 8080), PATIENCE))
        .and_then(|mut client| {
            client.set_read_timeout(Some(PATIENCE))?;
            client.read(&mut [0; 1])
        });
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    spliced.flows_end();
    assert_eq!(spliced.counts().0, 0);
}

/// Makes the close of this socket a reset.
fn reset(stream: TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

#[test]
fn a_reset_of_one_side_is_a_reset_for_the_other() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    // With little and much moved before; while the other side may still speak, and after its end.
    for moved in [1, 3_000_000] {
        for ended in [false, true] {
            let server = spliced.serve(at("0.0.0.0", 80), move |mut stream, _| {
                stream.read_exact(&mut vec![0; usize::try_from(moved).unwrap()])?;
                stream.write_all(b"!")?;
                if ended {
                    stream.shutdown(Shutdown::Write)?;
                }
                stream.read(&mut [0; 1])
            });
            let mut client = spliced.dial_loopback();
            send(&client, moved).unwrap();
            let mut rest = Vec::new();
            if ended {
                client.read_to_end(&mut rest).unwrap();
            } else {
                client.read_exact(&mut [0; 1]).unwrap();
            }
            reset(client);
            let error = server.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{moved}, {ended}");

            let server = spliced.serve(at("0.0.0.0", 80), move |mut stream, _| {
                if ended {
                    stream.read_to_end(&mut Vec::new())?;
                } else {
                    stream.read_exact(&mut vec![0; usize::try_from(moved).unwrap()])?;
                }
                reset(stream);
                Ok(())
            });
            let mut client = spliced.dial_loopback();
            send(&client, moved).unwrap();
            if ended {
                client.shutdown(Shutdown::Write).unwrap();
            }
            let error = client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{moved}, {ended}");
            server.join().unwrap().unwrap();
        }
    }
    spliced.flows_end();
}

#[test]
fn an_answer_to_half_a_request_arrives_though_the_server_reads_no_more() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let (answered, wait) = std::sync::mpsc::channel();
    let server = spliced.serve(at("0.0.0.0", 80), move |mut stream, _| {
        stream.read_exact(&mut [0; 10])?;
        stream.write_all(b"too large")?;
        // Unread octets make this close a reset (RFC 2525 section 2.17).
        drop(stream);
        answered.send(()).map_err(io::Error::other)
    });
    let mut client = spliced.dial_loopback();
    // It may be told of the reset while it still sends.
    let _ = send(&client, 100_000);
    wait.recv_timeout(PATIENCE).unwrap();
    let mut answer = [0; 9];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"too large");
    server.join().unwrap().unwrap();
    spliced.flows_end();
}

#[test]
fn a_reader_that_stalls_holds_up_only_its_own_connection() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let server = spliced.serve(at("0.0.0.0", 80), |stream, _| {
        stream.set_write_timeout(Some(PATIENCE * 6))?;
        send(&stream, LARGE)
    });
    let stalled = spliced.dial_loopback();
    let mut before = 0;
    wait_for("the sender to be held up", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = spliced.counts().1;
        std::mem::replace(&mut before, now) == now && now > 0
    });
    assert!(before < LARGE, "somewhere it must stop");
    spliced.transfer(&spliced.lab.host, at("127.0.0.1", 8080), 5_000_000, 5_000_000);
    assert_eq!(receive(&stalled).unwrap(), LARGE);
    server.join().unwrap().unwrap();
    drop(stalled);
    spliced.flows_end();
}

#[test]
fn an_urgent_octet_arrives_where_it_stands() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let server = spliced.serve(at("0.0.0.0", 80), |stream, _| receive(&stream));
    let client = spliced.dial_loopback();
    let mut stream = vec![0; 4_000_000];
    fill(0, &mut stream);
    (&client).write_all(&stream[..2_000_000]).unwrap();
    let urgent = nix::sys::socket::MsgFlags::MSG_OOB;
    for at in 2_000_000..2_000_003 {
        nix::sys::socket::send(client.as_raw_fd(), &stream[at..=at], urgent).unwrap();
    }
    (&client).write_all(&stream[2_000_003..]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.join().unwrap().unwrap(), 4_000_000);
}

/// Pipes among the descriptors of this process.
fn pipes() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn a_thousand_idle_connections_hold_no_pipe_and_all_work() {
    let Some(_turn) = turn() else { return };
    const CONNECTIONS: usize = 1000;
    let spliced = Spliced::new(1, false);
    let before = pipes();
    let (held, wait) = std::sync::mpsc::channel();
    let server = serve(
        &spliced.container.netns,
        || TcpListener::bind(at("0.0.0.0", 80)),
        move |listener| {
            for n in 0..CONNECTIONS {
                let (mut stream, peer) = listener.accept()?;
                stream.set_read_timeout(Some(PATIENCE))?;
                if n % 100 == 0 {
                    stream.read_exact(&mut vec![0; 1_000_000])?;
                }
                stream.write_all(b"!")?;
                held.send((stream, peer.ip())).map_err(io::Error::other)?;
            }
            Ok(())
        },
    );
    let mut pairs = Vec::new();
    for n in 0..CONNECTIONS {
        wait_for("a socket inside", || spliced.stock.at_hand() > 16);
        let mut client = spliced.dial_loopback();
        if n % 100 == 0 {
            // Large enough for a pipe, which is to be free again behind it.
            send(&client, 1_000_000).unwrap();
        }
        client.read_exact(&mut [0; 1]).unwrap();
        let (server, _) = wait.recv_timeout(PATIENCE).unwrap();
        pairs.push((client, server));
    }
    server.join().unwrap().unwrap();
    let (spliced_now, _) = spliced.counts();
    assert!(spliced_now > 900, "{spliced_now} of {CONNECTIONS} by sockets inside");
    assert_eq!(spliced.lab.switch.flows(Some(NET)).len(), CONNECTIONS);
    let held = pipes() - before;
    assert!(held <= 32, "{held} descriptors of pipes");
    for (client, server) in pairs.iter_mut().rev() {
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0; 1]).unwrap();
        server.write_all(b"!").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
    }
    drop(pairs);
    spliced.flows_end();
    assert_eq!(pipes(), before);
}

#[test]
fn the_end_of_the_port_ends_its_connections_and_gives_the_namespace_back() {
    let Some(_turn) = turn() else { return };
    let Spliced { lab, container, stock } = Spliced::new(1, false);
    let server = serve(
        &container.netns,
        || TcpListener::bind(at("0.0.0.0", 80)),
        |listener| send(&listener.accept()?.0, LARGE),
    );
    let mut client =
        lab.host.with(|| TcpStream::connect_timeout(&at("127.0.0.1", 8080), PATIENCE)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_exact(&mut vec![0; 1_000_000]).unwrap();
    lab.switch.remove_port(NET, container.port);
    let error = io::copy(&mut client, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    server.join().unwrap().unwrap_err();
    assert!(lab.switch.flows(None).is_empty());
    assert_eq!(lab.switch.worker_stats().iter().map(|worker| worker.flows).sum::<u64>(), 0);
    let gone = lab.host.with(|| TcpStream::connect_timeout(&at("127.0.0.1", 8080), PATIENCE));
    assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    wait_for("the switch to let go of the sockets", || Arc::strong_count(&stock) == 1);
}

/// A process that dies leaves its sockets to the kernel: what it had written arrives, what it had not read is
/// answered by a reset, and nothing of ours is left behind. Other connections do not notice.
#[test]
fn a_server_that_dies_in_the_middle_ends_its_own_connection_only() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let before = pipes();
    let bystander = spliced.serve(at("0.0.0.0", 80), |mut stream, _| {
        stream.read_exact(&mut [0; 2])?;
        stream.write_all(b"!")
    });
    let mut other = spliced.dial_loopback();
    other.write_all(b"?").unwrap();
    wait_for("the other connection", || spliced.counts() == (1, 1));

    const WRITTEN: u64 = 3_000_000;
    let server = spliced.serve(at("0.0.0.0", 80), |stream, _| send(&stream, WRITTEN));
    let client = spliced.dial_loopback();
    assert_eq!(receive(&client).unwrap(), WRITTEN, "all that was written, then the end");
    server.join().unwrap().unwrap();
    drop(client);

    let server = spliced.serve(at("0.0.0.0", 80), |mut stream, _| {
        stream.read_exact(&mut vec![0; 1_000_000])?;
        // Its receive queue has more, so that the kernel resets.
        let mut more = [0];
        stream.peek(&mut more).map(drop)
    });
    let client = spliced.dial_loopback();
    let error = send(&client, LARGE).unwrap_err();
    let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    assert!(reset.contains(&error.kind()), "{error}");
    server.join().unwrap().unwrap();
    drop(client);

    wait_for("the ends", || spliced.lab.switch.flows(None).len() == 1);
    other.write_all(b"?").unwrap();
    other.read_exact(&mut [0; 1]).unwrap();
    bystander.join().unwrap().unwrap();
    drop(other);
    spliced.flows_end();
    assert_eq!(pipes(), before);
}

#[test]
fn a_container_that_cannot_be_reached_from_inside_is_reached_over_the_bridge() {
    let Some(_turn) = turn() else { return };
    let spliced = Spliced::new(1, false);
    let down = |up: bool| {
        spliced.container.netns.enter(|| match up {
            true => netns::link::set_up("lo"),
            false => netns::link::set_down("lo"),
        })
    };
    // Without it a connection to oneself gets no answer.
    down(false).unwrap();
    let seen = spliced.transfer(&spliced.lab.host, at("127.0.0.1", 8080), 2_000_000, 2_000_000);
    assert_eq!(seen, "172.18.0.1".parse::<IpAddr>().unwrap(), "the gateway stands for the host");
    assert_eq!(spliced.counts(), (0, 0));
    down(true).unwrap();
    let seen = spliced.transfer(&spliced.lab.host, at("127.0.0.1", 8080), 10, 10);
    assert_eq!(seen, spliced.container.addr);
}
