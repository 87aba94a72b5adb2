//! Endpoints: what a container gets, what it is refused, and that it ends when its namespace does.

use daemon::api::{EndpointCreate, NetworkChange, NetworkCreate};

use crate::Case;
use crate::lab::{Container, Daemon, until};

pub(crate) const CASES: &[Case] = &[
    ("a container gets what docker would give it", a_container_gets_what_docker_would_give_it),
    ("addresses come back", addresses_come_back),
    ("what is asked for is given or refused", what_is_asked_for_is_given_or_refused),
    ("an attach that fails leaves nothing", an_attach_that_fails_leaves_nothing),
    ("an endpoint ends with its process", an_endpoint_ends_with_its_process),
    ("an endpoint ends with its file", an_endpoint_ends_with_its_file),
    ("an endpoint is its namespace by any name", an_endpoint_is_its_namespace_by_any_name),
    ("a namespace can be on two networks", a_namespace_can_be_on_two_networks),
    ("an endpoint whose device is gone is dead", an_endpoint_whose_device_is_gone_is_dead),
    ("many are attached at once", many_are_attached_at_once),
];

fn a_container_gets_what_docker_would_give_it() {
    let daemon = Daemon::start();
    let container = Container::new();
    let endpoint = daemon.attach(&container, "c1");
    assert_eq!((endpoint.status.as_str(), endpoint.network.as_str()), ("up", "bridge"));
    assert_eq!(endpoint.netns, format!("net:[{}]", container.netns.inode()));
    let interfaces = container.interfaces();
    assert_eq!(interfaces.len(), 1);
    assert_eq!(interfaces[0].name, "eth0");
    assert_eq!(interfaces[0].mac, Some([2, 0x42, 172, 17, 0, 2]));
    assert_eq!(interfaces[0].mtu, 1500);
    assert!(interfaces[0].addresses.contains(&"172.17.0.2/16".parse().expect("an address")));
    assert_eq!(container.routers(), ["172.17.0.1"]);
    let network = daemon.client.network("bridge").expect("found");
    let shown = &network.containers[&endpoint.id];
    assert_eq!((shown.name.as_str(), shown.ipv4_address.as_str()), ("c1", "172.17.0.2/16"));
    assert_eq!(shown.mac_address, "02:42:ac:11:00:02");
    let fdb = daemon.client.fdb(Some("bridge")).expect("a table");
    assert!(fdb.iter().any(|row| row.endpoint == "gateway" && row.permanent));
    let stats = daemon.client.stats(None).expect("counts");
    assert!(stats.ports.iter().any(|port| port.endpoint == "c1"));
    let named = daemon.client.remove_network("bridge").expect_err("in use").to_string();
    assert!(named.contains("default network"), "{named}");
}

fn addresses_come_back() {
    let daemon = Daemon::start();
    let containers = [Container::new(), Container::new(), Container::new()];
    let ip = |container: &Container, name: &str| daemon.attach(container, name).ip_address;
    assert_eq!(ip(&containers[0], "c1"), "172.17.0.2");
    assert_eq!(ip(&containers[1], "c2"), "172.17.0.3");
    daemon.client.detach("c1").expect("detached");
    assert!(containers[0].interfaces().is_empty(), "its interface is gone when we hear so");
    assert_eq!(ip(&containers[2], "c3"), "172.17.0.2");
    assert_eq!(ip(&containers[0], "c1"), "172.17.0.4");
}

fn what_is_asked_for_is_given_or_refused() {
    let daemon = Daemon::start();
    let (first, second) = (Container::new(), Container::new());
    let request = EndpointCreate {
        ip: Some("172.17.0.99".into()),
        mac_address: Some("02:00:00:00:00:99".into()),
        ifname: Some("net1".into()),
        ..first.request("c1")
    };
    let endpoint = daemon.client.attach(&request).expect("attached");
    assert_eq!(
        (endpoint.ip_address.as_str(), endpoint.interface.as_str()),
        ("172.17.0.99", "net1")
    );
    assert_eq!(first.interfaces()[0].mac, Some([2, 0, 0, 0, 0, 0x99]));
    let refused = |change: fn(&mut EndpointCreate)| {
        let mut request = second.request("c2");
        change(&mut request);
        daemon.client.attach(&request).expect_err("refused").to_string()
    };
    let name = refused(|request| request.name = Some("c1".into()));
    assert!(name.contains("the name c1 is taken"), "{name}");
    let ip = refused(|request| request.ip = Some("172.17.0.99".into()));
    assert!(ip.contains("in use by endpoint c1"), "{ip}");
    let mac = refused(|request| request.mac_address = Some("02:00:00:00:00:99".into()));
    assert!(mac.contains("in use by endpoint c1"), "{mac}");
    let network = refused(|request| request.network = "net9".into());
    assert!(network.contains("no network net9"), "{network}");
    let ifname = refused(|request| request.ifname = Some("lo".into()));
    assert!(ifname.contains("already has an interface lo"), "{ifname}");
    let ours = refused(|request| request.target = format!("pid:{}", std::process::id()));
    assert!(ours.contains("the daemon's own namespace"), "{ours}");
    assert_eq!(daemon.client.endpoints().expect("a list").len(), 1);
}

fn an_attach_that_fails_leaves_nothing() {
    let daemon = Daemon::start();
    let container = Container::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let request = EndpointCreate {
        ports: vec!["127.0.0.1:8999:80".into(), format!("127.0.0.1:{port}:81")],
        ..container.request("c1")
    };
    let refused = daemon.client.attach(&request).expect_err("in use").to_string();
    assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
    assert!(daemon.client.endpoints().expect("a list").is_empty());
    assert!(container.interfaces().is_empty());
    std::net::TcpListener::bind("127.0.0.1:8999").expect("nobody listens there");
    assert_eq!(daemon.attach(&container, "c1").ip_address, "172.17.0.2");
}

fn an_endpoint_ends_with_its_process() {
    let daemon = Daemon::start();
    let mut container = Container::new();
    daemon.attach(&container, "c1");
    container.end();
    until("the endpoint's end", || {
        daemon.client.endpoints().expect("a list").is_empty().then_some(())
    });
}

fn an_endpoint_ends_with_its_file() {
    let daemon = Daemon::start();
    let mut container = Container::new();
    // Stands for a namespace as a file below /run/netns does, and goes with the process.
    let request = EndpointCreate {
        target: format!("/proc/{}/ns/net", container.running.pid()),
        ..container.request("c1")
    };
    let endpoint = daemon.client.attach(&request).expect("attached");
    assert_eq!(endpoint.pid, None);
    container.end();
    until("the endpoint's end", || {
        daemon.client.endpoints().expect("a list").is_empty().then_some(())
    });
}

/// What a target stands for by now is nobody of ours: neither its routes nor its interfaces are touched.
fn an_endpoint_is_its_namespace_by_any_name() {
    let daemon = Daemon::start();
    let request = NetworkCreate {
        name: "net0".into(),
        subnets: vec!["172.18.0.0/16".into()],
        ..NetworkCreate::default()
    };
    daemon.client.create_network(&request).expect("made");
    let (first, other) = (Container::new(), Container::new());
    let default = "0.0.0.0/0".parse().expect("a prefix");
    let made = other.netns.enter(|| {
        let here = netns::Netns::current()?;
        netns::link::create_veth_pair("eth0", &here, "far", &here)?;
        netns::link::set_up("eth0")?;
        netns::link::add_route_through(default, None, "eth0")
    });
    made.expect("an interface of its own");
    let directory = tempfile::tempdir().expect("a directory");
    let name = directory.path().join("box");
    let stand_for = |container: &Container| {
        let next = directory.path().join("next");
        let netns = format!("/proc/{}/ns/net", container.running.pid());
        std::os::unix::fs::symlink(netns, &next).expect("a link");
        std::fs::rename(next, &name).expect("in one step");
    };
    stand_for(&first);
    let endpoint = EndpointCreate {
        target: name.display().to_string(),
        network: "net0".into(),
        veth: true,
        ..first.request("c1")
    };
    daemon.client.attach(&endpoint).expect("attached");
    assert_eq!(first.routers(), ["172.18.0.1"]);
    stand_for(&other);
    let gateways = vec!["172.18.0.254".into()];
    let change = NetworkChange { gateways, ..NetworkChange::default() };
    daemon.client.change_network("net0", &change).expect("changed");
    assert_eq!(other.routers(), [""; 0]);
    until("the endpoint's end", || {
        daemon.client.endpoints().expect("a list").is_empty().then_some(())
    });
    assert!(first.interfaces().is_empty(), "it is taken from whom it was given");
    let kept: Vec<_> = other.interfaces().into_iter().map(|interface| interface.name).collect();
    assert!(kept.iter().any(|name| name == "eth0"), "{kept:?}");
    let routes = other.netns.enter(netns::routes).expect("routes");
    assert!(routes.iter().any(|route| route.dst == default), "{routes:?}");
}

fn a_namespace_can_be_on_two_networks() {
    let daemon = Daemon::start();
    let request = NetworkCreate { name: "net0".into(), ..NetworkCreate::default() };
    daemon.client.create_network(&request).expect("made");
    let container = Container::new();
    daemon.attach(&container, "c1");
    let second =
        EndpointCreate { network: "net0".into(), veth: true, ..container.request("c1-net0") };
    let endpoint = daemon.client.attach(&second).expect("attached");
    assert_eq!((endpoint.interface.as_str(), endpoint.device.as_str()), ("eth1", "veth"));
    assert_eq!(endpoint.gateways, [""; 0]);
    assert_eq!(container.interfaces().len(), 2);
    assert_eq!(container.routers(), ["172.17.0.1"]);
    daemon.client.detach("c1-net0").expect("detached");
    assert_eq!(container.interfaces().len(), 1);
    daemon.client.detach("c1").expect("detached");
    assert!(container.interfaces().is_empty());
}

fn an_endpoint_whose_device_is_gone_is_dead() {
    let daemon = Daemon::start();
    let mut container = Container::new();
    daemon.attach(&container, "c1");
    container.netns.enter(|| netns::link::delete("eth0")).expect("deleted");
    let status = until("its death", || {
        let status = daemon.client.endpoint("c1").expect("found").status;
        (status != "up").then_some(status)
    });
    assert!(status.starts_with("dead ("), "{status}");
    let publish =
        daemon.client.publish("c1", vec!["8080:80".into()]).expect_err("dead").to_string();
    assert!(publish.contains("endpoint c1 is dead"), "{publish}");
    container.end();
    until("the endpoint's end", || {
        daemon.client.endpoints().expect("a list").is_empty().then_some(())
    });
}

fn many_are_attached_at_once() {
    let daemon = Daemon::start();
    let containers: Vec<_> = (0..12).map(|_| Container::new()).collect();
    std::thread::scope(|scope| {
        for (number, container) in containers.iter().enumerate() {
            let request = container.request(&format!("c{number}-"));
            let socket = &daemon.socket;
            scope.spawn(move || {
                let client = daemon::client::Client::new(socket).expect("a client");
                client.attach(&request).expect("attached");
            });
        }
    });
    let endpoints = daemon.client.endpoints().expect("a list");
    let mut addresses: Vec<_> =
        endpoints.iter().map(|endpoint| endpoint.ip_address.clone()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), containers.len(), "each has an address of its own");
}
