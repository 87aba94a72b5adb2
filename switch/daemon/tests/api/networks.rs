//! Networks: made, shown as docker shows them, changed and removed; and how the API refuses.

use daemon::api::{NetworkChange, NetworkCreate, Uplink};
use serde_json::Value;

use crate::Case;
use crate::lab::{Container, Daemon};

pub(crate) const CASES: &[Case] = &[
    ("the default network is docker's", the_default_network_is_dockers),
    ("networks come and go", networks_come_and_go),
    ("a subnet of the host's is refused by name", a_subnet_of_the_hosts_is_refused_by_name),
    ("refusals are JSON with a status", refusals_are_json_with_a_status),
    ("an uplink reads as it is written", an_uplink_reads_as_it_is_written),
    ("a bridged network's MTU is its interface's", a_bridged_networks_mtu_is_its_interfaces),
    ("without a carrier no address is free", without_a_carrier_no_address_is_free),
    ("a gateway comes and goes while containers run", a_gateway_comes_and_goes),
    ("a transient network goes with its endpoint", a_transient_network_goes),
];

fn named(name: &str) -> NetworkCreate {
    NetworkCreate { name: name.to_owned(), ..NetworkCreate::default() }
}

fn the_default_network_is_dockers() {
    let daemon = Daemon::start();
    let (status, body) = daemon.request("GET", "/v1/networks", "");
    assert_eq!(status, 200);
    let networks: Value = serde_json::from_str(&body).expect("JSON");
    let bridge = &networks[0];
    assert_eq!(bridge["Name"], "bridge");
    assert_eq!(bridge["Driver"], "pontoon");
    assert_eq!(bridge["Scope"], "local");
    assert_eq!(bridge["IPAM"]["Config"][0]["Subnet"], "172.17.0.0/16");
    assert_eq!(bridge["IPAM"]["Config"][0]["Gateway"], "172.17.0.1");
    assert_eq!(bridge["Id"].as_str().map(str::len), Some(64));
    // The host's own interface of it: we are root of this namespace.
    let interfaces = netns::interfaces().expect("interfaces");
    let host_port = interfaces.iter().find(|interface| interface.name == "pontoon0").expect("it");
    assert!(host_port.addresses.contains(&"172.17.0.1/16".parse().expect("an address")));
    assert_eq!(host_port.mac, Some([2, 0x42, 172, 17, 0, 1]));
    assert!(host_port.up);
}

fn networks_come_and_go() {
    let daemon = Daemon::start();
    let made = daemon.client.create_network(&named("net0")).expect("made");
    assert_eq!(made.ipam.config[0].subnet, "172.18.0.0/16");
    let dual = NetworkCreate {
        subnets: vec!["172.100.0.0/16".into(), "fd00:100::/64".into()],
        ..named("dual")
    };
    let dual = daemon.client.create_network(&dual).expect("made");
    assert!(dual.enable_ipv6);
    assert_eq!(dual.ipam.config[1].gateway, "fd00:100::1");
    for name in ["net0", &made.id, &made.id[..12]] {
        assert_eq!(daemon.client.network(name).expect("found").id, made.id);
    }
    let names = || -> Vec<String> {
        daemon.client.networks().expect("a list").into_iter().map(|network| network.name).collect()
    };
    assert_eq!(names(), ["bridge", "dual", "net0"]);
    let again = daemon.client.create_network(&named("net0")).expect_err("taken").to_string();
    assert!(again.contains("network net0 exists already"), "{again}");
    let clash = NetworkCreate { subnets: vec!["172.18.9.0/24".into()], ..named("net1") };
    let clash = daemon.client.create_network(&clash).expect_err("overlaps").to_string();
    assert!(
        clash.contains("of network net0") && clash.contains("--subnet 172.19.0.0/16 is free"),
        "{clash}"
    );
    daemon.client.remove_network("net0").expect("removed");
    assert_eq!(names(), ["bridge", "dual"]);
    let interfaces = netns::interfaces().expect("interfaces");
    assert!(interfaces.iter().all(|interface| interface.name != "pt-net0"));
    assert!(interfaces.iter().any(|interface| interface.name == "pt-dual"));
    assert!(daemon.client.remove_network("bridge").is_err());
    assert!(daemon.client.remove_network("net0").expect_err("gone").is_not_found());
}

fn a_subnet_of_the_hosts_is_refused_by_name() {
    let here = netns::Netns::current().expect("ours");
    let other = netns::Netns::create().expect("another");
    netns::link::create_veth_pair("lan0", &here, "far", &other).expect("a pair");
    netns::link::add_address("lan0", "10.20.0.1/24".parse().expect("an address")).expect("added");
    netns::link::set_up("lan0").expect("up");
    let daemon = Daemon::start();
    let request = NetworkCreate { subnets: vec!["10.20.0.0/16".into()], ..named("lan") };
    let refused = daemon.client.create_network(&request).expect_err("overlaps").to_string();
    assert!(refused.contains("10.20.0.0/24 dev lan0"), "{refused}");
    assert!(refused.contains("172.18.0.0/16 is free"), "{refused}");
    // The other end's namespace goes, and the pair with it.
    drop((daemon, other));
    crate::lab::until("the pair's end", || {
        let interfaces = netns::interfaces().expect("interfaces");
        interfaces.iter().all(|interface| interface.name != "lan0").then_some(())
    });
}

fn refusals_are_json_with_a_status() {
    let daemon = Daemon::start();
    let long = "x".repeat(300 * 1024);
    for (method, path, body, status, says) in [
        ("GET", "/v1/nonsense", "", 404, "/v1/nonsense"),
        ("PUT", "/v1/networks", "", 405, "PUT"),
        ("POST", "/v1/networks", "{", 400, "body"),
        ("POST", "/v1/networks", r#"{"Nonsense": 1}"#, 400, "Nonsense"),
        ("POST", "/v1/networks", r#"{"Name": "-"}"#, 400, "not allowed"),
        ("POST", "/v1/networks", r#"{"Name": "none"}"#, 400, "none"),
        (
            "POST",
            "/v1/networks",
            r#"{"Name": "nn", "Subnets": ["10.0.0.0/33"]}"#,
            400,
            "10.0.0.0/33",
        ),
        ("POST", "/v1/networks", r#"{"Name": "nn", "Gateways": ["10.0.0.1"]}"#, 400, "10.0.0.1"),
        ("POST", "/v1/networks", r#"{"Name": "nn", "Mtu": 67}"#, 400, "67"),
        ("POST", "/v1/networks", r#"{"Name": "nn", "Uplink": "tap"}"#, 400, "raw:IF or bridge:IF"),
        (
            "POST",
            "/v1/networks",
            r#"{"Name": "nn", "Uplink": "raw:nic9"}"#,
            400,
            "no interface nic9",
        ),
        ("POST", "/v1/networks", r#"{"Name": "nn", "Timeouts": "bsd"}"#, 400, "rfc or linux"),
        ("POST", "/v1/networks", r#"{"Name": "nn", "SnatTo": ["192.0.2.1"]}"#, 400, "raw:IF"),
        ("PATCH", "/v1/networks/bridge", r#"{"Filtering": "eih"}"#, 400, "eif (anybody"),
        ("PATCH", "/v1/networks/bridge", r#"{"Uplink": "bridge:lo"}"#, 400, "make another"),
        ("GET", "/v1/nat?network=nn", "", 404, "nn"),
        ("GET", "/v1/nat?network=bridge", "", 400, "has the uplink sockets"),
        ("POST", "/v1/networks", &long, 413, "limit"),
        ("GET", "/v1/networks/nn", "", 404, "nn"),
        ("GET", "/v1/endpoints/c1", "", 404, "c1"),
        ("DELETE", "/v1/endpoints/c1", "", 404, "c1"),
        ("POST", "/v1/endpoints", r#"{"Target": "pid:4194305"}"#, 404, "no process 4194305"),
        ("POST", "/v1/endpoints", r#"{"Target": "pid:0"}"#, 404, "no process 0"),
        ("POST", "/v1/endpoints", r#"{"Target": "/proc/version"}"#, 400, "no network namespace"),
        ("POST", "/v1/endpoints", r#"{"Target": "."}"#, 400, "pid:N"),
        ("GET", "/v1/fdb?network=nn", "", 404, "nn"),
    ] {
        let (answered, body) = daemon.request(method, path, body);
        assert_eq!(answered, status, "{method} {path}: {body}");
        let failure: Value = serde_json::from_str(&body).expect("JSON");
        let message = failure["message"].as_str().expect("a message");
        assert!(message.contains(says), "{method} {path}: {message}");
    }
    for path in
        ["/v1/version", "/v1/fdb", "/v1/neighbours", "/v1/conntrack", "/v1/stats?network=bridge"]
    {
        assert_eq!(daemon.request("GET", path, "").0, 200, "{path}");
    }
}

fn a_gateway_comes_and_goes() {
    let daemon = Daemon::start();
    let request = NetworkCreate {
        subnets: vec!["172.18.0.0/16".into()],
        gateways: vec!["none".into()],
        ..named("br0")
    };
    daemon.client.create_network(&request).expect("made");
    let container = Container::new();
    let mut attach = container.request("c1");
    attach.network = "br0".into();
    let endpoint = daemon.client.attach(&attach).expect("attached");
    assert_eq!(endpoint.ip_address, "172.18.0.2");
    assert_eq!(container.routers(), [""; 0]);
    let change = |gateways: &[&str]| {
        let gateways = gateways.iter().map(|text| (*text).to_owned()).collect();
        daemon.client.change_network("br0", &NetworkChange { gateways, ..NetworkChange::default() })
    };
    change(&["172.18.0.1"]).expect("changed");
    assert_eq!(container.routers(), ["172.18.0.1"]);
    let host_port = |name: &str| {
        netns::interfaces().expect("interfaces").into_iter().any(|interface| interface.name == name)
    };
    assert!(host_port("pt-br0"));
    let used = change(&["172.18.0.2"]).expect_err("in use").to_string();
    assert!(used.contains("in use by endpoint c1"), "{used}");
    change(&["none"]).expect("changed");
    assert_eq!(container.routers(), [""; 0]);
    assert!(!host_port("pt-br0"));
    let uplink = NetworkChange { uplink: Some(Uplink::None), ..NetworkChange::default() };
    let changed = daemon.client.change_network("br0", &uplink).expect("changed");
    assert_eq!(changed.options["pontoon.uplink"], "none");
}

/// What is written is what the API answers, and what its station has is beside it.
fn an_uplink_reads_as_it_is_written() {
    let here = netns::Netns::current().expect("ours");
    let other = netns::Netns::create().expect("another");
    netns::link::create_veth_pair("nic0", &here, "far", &other).expect("a pair");
    other.enter(|| netns::link::set_up("far")).expect("up");
    netns::link::set_up("nic0").expect("up");
    let daemon = Daemon::start();
    let body = r#"{"Name": "lan", "Subnets": ["10.9.0.0/24", "fd00:9::/64"], "Filtering": "apdf",
        "Timeouts": "linux,icmp=90", "Prefixes6": ["fd00:9::/64=2001:db8:9::/64"],
        "Uplink": "raw:nic0,address=203.0.113.5/24,address6=none"}"#;
    let (status, made) = daemon.request("POST", "/v1/networks", body);
    assert_eq!(status, 201, "{made}");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    for (option, value) in [
        ("pontoon.uplink", "raw:nic0,address=203.0.113.5/24,address6=none"),
        ("pontoon.filtering", "apdf"),
        ("pontoon.timeouts", "linux,icmp=90s"),
        ("pontoon.prefix6", "fd00:9::/64=2001:db8:9::/64"),
    ] {
        assert_eq!(made["Options"][option], value);
    }
    let station = &made["Uplink"];
    assert_eq!((&station["Interface"], &station["Status"]), (&"nic0".into(), &"up".into()));
    let address = &station["Addresses"][0];
    assert_eq!(
        (&address["Address"], &address["State"]),
        (&"203.0.113.5/24".into(), &"valid".into())
    );
    let container = Container::new();
    let mut attach = container.request("c1");
    (attach.network, attach.ports) =
        ("lan".into(), vec!["8000-8009:80-89".into(), "53:53/udp".into()]);
    daemon.client.attach(&attach).expect("attached");
    let nat = &daemon.client.nat(Some("nic0")).expect("a NAT")[0];
    let published = nat.rules.iter().filter(|rule| rule.target == "DNAT");
    let published: Vec<_> =
        published.map(|rule| (rule.ports, rule.changed_to.as_deref())).collect();
    assert_eq!(
        published,
        [(Some((8000, 8009)), Some("10.9.0.2:80")), (Some((53, 53)), Some("10.9.0.2:53")),]
    );
    daemon.client.detach("c1").expect("detached");
    let nat = &daemon.client.nat(Some("lan")).expect("a NAT")[0];
    assert!(nat.rules.iter().all(|rule| rule.target != "DNAT"), "{nat:?}");
    daemon.client.remove_network("lan").expect("removed");
    assert!(daemon.client.nat(None).expect("a list").is_empty());
    // The other end's namespace goes, and the pair with it.
    drop((daemon, other));
    crate::lab::until("the pair's end", || {
        let interfaces = netns::interfaces().expect("interfaces");
        interfaces.iter().all(|interface| interface.name != "nic0").then_some(())
    });
}

/// The host's segment has one MTU, which a network that is part of it has too.
fn a_bridged_networks_mtu_is_its_interfaces() {
    let here = netns::Netns::current().expect("ours");
    let other = netns::Netns::create().expect("another");
    netns::link::create_veth_pair("nic0", &here, "far", &other).expect("a pair");
    netns::link::set_mtu("nic0", 1400).expect("set");
    netns::link::set_up("nic0").expect("up");
    let daemon = Daemon::start();
    let request = |mtu| NetworkCreate {
        uplink: Uplink::Bridge("nic0".into()),
        subnets: vec!["198.51.100.0/24".into()],
        mtu,
        ..named("seg")
    };
    let refused = daemon.client.create_network(&request(Some(1500))).expect_err("too long");
    let refused = refused.to_string();
    assert!(refused.contains("1400 of nic0") && refused.contains("--mtu"), "{refused}");
    for (asked, has) in [(None, 1400), (Some(1300), 1300)] {
        daemon.client.create_network(&request(asked)).expect("made");
        let container = Container::new();
        let mut attach = container.request("c1");
        attach.network = "seg".into();
        assert_eq!(daemon.client.attach(&attach).expect("attached").mtu, has);
        assert_eq!(container.interfaces()[0].mtu, u32::from(has));
        daemon.client.detach("c1").expect("detached");
        daemon.client.remove_network("seg").expect("removed");
    }
    // The other end's namespace goes, and the pair with it.
    drop((daemon, other));
    crate::lab::until("the pair's end", || {
        let interfaces = netns::interfaces().expect("interfaces");
        interfaces.iter().all(|interface| interface.name != "nic0").then_some(())
    });
}

/// RFC 5227 §2.1.1: an address is probed for where somebody can answer, and not thought free before.
fn without_a_carrier_no_address_is_free() {
    let here = netns::Netns::current().expect("ours");
    let other = netns::Netns::create().expect("another");
    netns::link::create_veth_pair("nic0", &here, "far", &other).expect("a pair");
    netns::link::set_up("nic0").expect("up");
    let daemon = Daemon::start();
    let body = r#"{"Name": "lan", "Uplink": "raw:nic0,address=203.0.113.5/24,address6=none"}"#;
    let (status, made) = daemon.request("POST", "/v1/networks", body);
    assert_eq!(status, 201, "{made}");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let said = made["Warnings"].to_string();
    assert!(said.contains("no carrier") && said.contains("ip link show nic0"), "{made}");
    let state = || {
        let network = daemon.request("GET", "/v1/networks/lan", "").1;
        let network: Value = serde_json::from_str(&network).expect("JSON");
        network["Uplink"]["Addresses"][0]["State"].as_str().map(str::to_owned)
    };
    assert_ne!(state().as_deref(), Some("valid"));
    other.enter(|| netns::link::set_up("far")).expect("up");
    crate::lab::until("the address", || (state()? == "valid").then_some(()));
    daemon.client.remove_network("lan").expect("removed");
    // The other end's namespace goes, and the pair with it.
    drop((daemon, other));
    crate::lab::until("the pair's end", || {
        let interfaces = netns::interfaces().expect("interfaces");
        interfaces.iter().all(|interface| interface.name != "nic0").then_some(())
    });
}

fn a_transient_network_goes() {
    let daemon = Daemon::start();
    let request = NetworkCreate { transient: true, uplink: Uplink::None, ..named("passing") };
    daemon.client.create_network(&request).expect("made");
    let container = Container::new();
    let mut attach = container.request("c1");
    attach.network = "passing".into();
    daemon.client.attach(&attach).expect("attached");
    assert!(daemon.client.remove_network("passing").is_err());
    daemon.client.detach("c1").expect("detached");
    assert!(daemon.client.network("passing").expect_err("gone").is_not_found());
}
