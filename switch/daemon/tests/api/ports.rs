//! Published ports: reached, refused by name, all or none, and taken back.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use crate::Case;
use crate::lab::{Container, DEADLINE, Daemon, until};

pub(crate) const CASES: &[Case] = &[
    ("a published port leads to the container", a_published_port_leads_to_the_container),
    ("the host reaches a container by its address", the_host_reaches_a_container_by_its_address),
    ("all ports of a request are published or none", all_or_none),
    ("free host ports are found one after the other", free_host_ports_are_found),
    ("a port is refused with the name of who has it", a_port_is_refused_by_name),
    ("a port may be spliced for every client", a_port_may_be_spliced_for_every_client),
    ("an ended container's namespace is let go", an_ended_containers_namespace_is_let_go),
];

/// A server in the container that answers one client with its address.
fn serve_once(container: &Container, port: u16) -> JoinHandle<IpAddr> {
    let listener = container
        .netns
        .with(|| TcpListener::bind(("0.0.0.0", port)))
        .expect("a listener in the container");
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("a client");
        stream.write_all(b"hello").expect("sent");
        peer.ip()
    })
}

fn greeted_by(addr: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "hello", "{addr}");
}

fn a_published_port_leads_to_the_container() {
    let daemon = Daemon::start();
    let container = Container::new();
    daemon.attach(&container, "c1");
    let ports = daemon.client.publish("c1", vec!["8080:80".into()]).expect("published");
    let bound: Vec<_> =
        ports.iter().map(|port| format!("{} {}", port.host_ip, port.host_port)).collect();
    assert_eq!(bound, ["0.0.0.0 8080", ":: 8080"]);
    for addr in ["127.0.0.1:8080", "172.17.0.1:8080"] {
        let server = serve_once(&container, 80);
        greeted_by(addr.parse().expect("an address"));
        server.join().expect("the server");
    }
    daemon.client.unpublish("c1", vec!["8080:80".into()]).expect("taken back");
    assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    assert!(daemon.client.endpoint("c1").expect("found").ports.is_empty());
    let gone = daemon.client.unpublish("c1", vec!["8080:80".into()]).expect_err("gone");
    assert!(gone.is_not_found(), "{gone}");
}

fn the_host_reaches_a_container_by_its_address() {
    let daemon = Daemon::start();
    let container = Container::new();
    let endpoint = daemon.attach(&container, "c1");
    let server = serve_once(&container, 80);
    greeted_by(SocketAddr::new(endpoint.ip_address.parse().expect("an address"), 80));
    assert_eq!(server.join().expect("the server"), IpAddr::from([172, 17, 0, 1]));
}

fn all_or_none() {
    let daemon = Daemon::start();
    let container = Container::new();
    daemon.attach(&container, "c1");
    let taken = TcpListener::bind("127.0.0.1:8003").expect("a port");
    let publish = |specs: &[&str]| {
        daemon.client.publish("c1", specs.iter().map(|text| (*text).to_owned()).collect())
    };
    let refused =
        publish(&["9000:90", "127.0.0.1:8000-8005:80-85"]).expect_err("in use").to_string();
    assert!(refused.contains("127.0.0.1:8003/tcp: pid"), "{refused}");
    assert!(daemon.client.endpoint("c1").expect("found").ports.is_empty());
    for port in [9000, 8000, 8005] {
        TcpListener::bind(("127.0.0.1", port)).expect("nobody listens there");
    }
    drop(taken);
    let ports = publish(&["9000:90", "127.0.0.1:8000-8005:80-85", "53:53/udp"]).expect("published");
    assert_eq!(ports.len(), 2 + 6 + 2);
    let wrong = publish(&["7000:70", "nonsense"]).expect_err("no spec").to_string();
    assert!(wrong.contains("\"nonsense\""), "{wrong}");
    daemon.client.unpublish("c1", vec!["127.0.0.1:8000-8005:80-85".into()]).expect("taken back");
    assert_eq!(daemon.client.endpoint("c1").expect("found").ports.len(), 4);
    daemon.client.unpublish("c1", vec!["90".into(), "53/udp".into()]).expect("taken back");
    assert!(daemon.client.endpoint("c1").expect("found").ports.is_empty());
}

fn free_host_ports_are_found() {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 32772").expect("our namespace");
    let daemon = Daemon::start();
    let container = Container::new();
    daemon.attach(&container, "c1");
    let _taken = TcpListener::bind("127.0.0.1:32769").expect("a port");
    let find = || daemon.client.publish("c1", vec!["80".into()]).map(|ports| ports[0].host_port);
    let found: Vec<u16> = (0..3).map(|_| find().expect("found")).collect();
    assert_eq!(found, [32768, 32770, 32771]);
    daemon.client.unpublish("c1", vec!["32770:80".into()]).expect("taken back");
    // On from where the search ended, and only then round again.
    assert_eq!(find().expect("found"), 32772);
    assert_eq!(find().expect("found"), 32770);
    let none = find().expect_err("all are used").to_string();
    assert!(none.contains("no free host port from 32768 to 32772"), "{none}");
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999").expect("our namespace");
}

fn a_port_is_refused_by_name() {
    let daemon = Daemon::start();
    let containers = [Container::new(), Container::new()];
    daemon.attach(&containers[0], "c1");
    daemon.attach(&containers[1], "c2");
    let publish = |name: &str, spec: &str| daemon.client.publish(name, vec![spec.to_owned()]);
    publish("c1", "8080:80").expect("published");
    let refused = publish("c2", "8080:80").expect_err("taken").to_string();
    assert!(refused.contains("endpoint c1 publishes it"), "{refused}");
    let refused = publish("c2", "192.0.2.1:8081:80").expect_err("not ours").to_string();
    assert!(refused.contains("192.0.2.1 is no address of this host"), "{refused}");
    let refused = publish("c2", "1-65535:1-65535").expect_err("too many").to_string();
    assert!(refused.contains("descriptors") || refused.contains("cannot listen"), "{refused}");
    daemon.client.detach("c1").expect("detached");
    publish("c2", "8080:80").expect("free again");
}

/// Connects to `addr` until the container sees `own` as the client's address.
fn seen_from_inside(container: &Container, addr: &str, own: IpAddr) {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let server = serve_once(container, 80);
        greeted_by(addr.parse().expect("an address"));
        let seen = server.join().expect("the server");
        if seen == own {
            return;
        }
        // Sockets inside are made beside the first connections.
        assert!(std::time::Instant::now() < deadline, "{addr}: the container sees {seen}");
    }
}

fn a_port_may_be_spliced_for_every_client() {
    let daemon = Daemon::start();
    let container = Container::new();
    let endpoint = daemon.attach(&container, "c1");
    let own: IpAddr = endpoint.ip_address.parse().expect("an address");
    let publish = |spec: &str| daemon.client.publish("c1", vec![spec.to_owned()]);
    let ports = publish("8080:80/tcp,splice").expect("published");
    assert!(ports.iter().all(|port| port.splice && port.host_port == 8080));
    assert!(!publish("8081:80").expect("published")[0].splice);
    // The host's address on the bridge is not loopback.
    seen_from_inside(&container, "172.17.0.1:8080", own);
    seen_from_inside(&container, "127.0.0.1:8081", own);
    let server = serve_once(&container, 80);
    greeted_by("172.17.0.1:8081".parse().expect("an address"));
    assert_eq!(server.join().expect("the server"), IpAddr::from([172, 17, 0, 1]));
    let spliced: u64 =
        daemon.client.stats(None).expect("counts").workers.iter().map(|w| w.spliced).sum();
    assert!(spliced >= 2, "{spliced}");
    let udp = publish("53:53/udp,splice").expect_err("no stream").to_string();
    assert!(udp.contains("datagrams cannot be spliced"), "{udp}");
    let unpublish = |spec: &str| daemon.client.unpublish("c1", vec![spec.to_owned()]);
    unpublish("8081:80,splice").expect_err("that one is not");
    unpublish("8080:80,splice").expect("taken back");
    unpublish("8081:80").expect("taken back");
    assert!(daemon.client.endpoint("c1").expect("found").ports.is_empty());
}

/// Descriptors of the daemon's that are sockets or network namespaces.
fn sockets_and_namespaces(daemon: &Daemon) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("our child");
    let links = links.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let kinds = links.map(|link| link.to_string_lossy().into_owned());
    kinds.filter(|kind| kind.starts_with("socket:") || kind.starts_with("net:")).count()
}

fn an_ended_containers_namespace_is_let_go() {
    let daemon = Daemon::start();
    let before = sockets_and_namespaces(&daemon);
    let mut container = Container::new();
    let endpoint = daemon.attach(&container, "c1");
    let own: IpAddr = endpoint.ip_address.parse().expect("an address");
    daemon.client.publish("c1", vec!["8080:80".into()]).expect("published");
    seen_from_inside(&container, "127.0.0.1:8080", own);
    assert!(sockets_and_namespaces(&daemon) > before + 2, "listeners, and sockets inside");
    container.end();
    until("the endpoint's end", || daemon.client.endpoint("c1").is_err().then_some(()));
    until("everything to be closed", || (sockets_and_namespaces(&daemon) <= before).then_some(()));
    TcpListener::bind("0.0.0.0:8080").expect("nobody listens there any more");
}
