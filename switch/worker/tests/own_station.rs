//! Our station on a segment as others there know it: how it comes by its address, and the interface as a
//! port of a network.

mod lab;
mod world;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use std::time::Duration;

use datapath::{IpMtu, MacAddr, Offloads, PortRole, Uplink};
use lab::{Lab, WORLD, WORLD6, at, spawn_in, wait_for};
use netns::{EndpointConfig, Kind, Netns};
use nix::sys::socket::{setsockopt, sockopt};
use worker::{
    AddressOrigin, AddressState, Addressing, Event, NetworkConfig, NetworkId, PortConfig,
    SegmentConfig,
};
use world::{SEGMENT, STATION, lab_with, station, transfer};

const LEASED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 50);

/// Answers every DHCP client with the one address there is, for so many messages: RFC 2131 §4.3.
fn serve_dhcp(lab: &Lab, messages: usize) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
    const COOKIE: usize = 236;
    spawn_in(&lab.world, move || {
        let socket = UdpSocket::bind("0.0.0.0:67")?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        setsockopt(&socket, sockopt::BindToDevice, &"down".into())?;
        let mut kinds = Vec::new();
        let mut question = [0; 1500];
        while kinds.len() < messages {
            let (len, _) = socket.recv_from(&mut question)?;
            let options = &question[COOKIE + 4..len];
            // The first option is the message's type, as every client of today sends it.
            let [53, 1, kind, ..] = options else { panic!("{options:?}") };
            kinds.push(*kind);
            let answer = match kind {
                1 => 2,
                3 => 5,
                _ => continue,
            };
            let mut reply = question[..COOKIE].to_vec();
            reply[0] = 2;
            reply[16..20].copy_from_slice(&LEASED.octets());
            reply.extend([99, 130, 83, 99, 53, 1, answer, 54, 4, 198, 51, 100, 2]);
            reply.extend([51, 4, 0, 0, 0x0e, 0x10, 1, 4, 255, 255, 255, 0]);
            reply.extend([3, 4, 198, 51, 100, 2, 6, 4, 198, 51, 100, 53, 255]);
            socket.send_to(&reply, "255.255.255.255:68")?;
        }
        Ok(kinds)
    })
}

/// RFC 2131, RFC 5227: an address is leased, probed for, shown to the world, and given back at the end.
#[test]
fn an_address_is_leased_used_and_given_back() {
    if !lab::possible() {
        return;
    }
    let config = SegmentConfig { v4: Addressing::Auto, ..SegmentConfig::new(STATION, IpMtu(1500)) };
    let lab = Lab::new(2);
    let server = serve_dhcp(&lab, 3);
    let lab = lab_with(lab, config);
    let row = &lab.switch.segment_rows()[0];
    let address = &row.addresses[0];
    assert_eq!(address.cidr.to_string(), format!("{LEASED}/24"));
    assert_eq!((address.origin, address.state), (AddressOrigin::Dhcp, AddressState::Valid));
    assert_eq!(row.routers, [WORLD.parse::<IpAddr>().unwrap()]);
    let lease = row.lease.as_ref().unwrap();
    assert_eq!(
        (lease.state, lease.server, &lease.dns[..]),
        ("BOUND", WORLD.parse().ok(), &["198.51.100.53".parse().unwrap()][..])
    );
    assert!((3500..=3600).contains(&lease.expires_in.unwrap().as_secs()), "{lease:?}");
    let changed = lab.events.try_iter().any(|event| matches!(event, Event::SegmentChanged { .. }));
    assert!(changed, "somebody is told");
    let container = lab.container(10, Kind::Tap);
    let to = at(WORLD, 5000);
    assert_eq!(transfer(&container.netns, &lab.world, to, to).ip(), LEASED);
    lab.switch.remove_segment(SEGMENT);
    assert!(lab.switch.segment_rows().is_empty());
    assert_eq!(server.join().unwrap().unwrap(), [1, 3, 7], "DISCOVER, REQUEST, RELEASE");
}

/// RFC 5227 §2.1: an address another station has is not used, and somebody is told whose it is.
#[test]
fn an_address_that_another_station_has_is_a_conflict() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let taken = Addressing::Static {
        addresses: vec![format!("{WORLD}/24").parse().unwrap()],
        gateway: None,
    };
    let config = SegmentConfig { v4: taken, ..SegmentConfig::new(STATION, IpMtu(1500)) };
    world::add_segment(&lab, config);
    wait_for("the conflict", || {
        let row = &lab.switch.segment_rows()[0];
        row.addresses.iter().any(|row| row.state == AddressState::Conflict)
    });
    let told = lab.events.try_iter().find_map(|event| match event {
        Event::AddressConflict { segment, addr, station } => Some((segment, addr, station)),
        _ => None,
    });
    let (segment, addr, other) = told.expect("an event");
    assert_eq!((segment, addr), (SEGMENT, WORLD.parse().unwrap()));
    assert_ne!(other, STATION);
}

/// Another address is shown from then on, and flows with the old one end.
#[test]
fn a_station_that_moves_shows_its_new_address() {
    if !lab::possible() {
        return;
    }
    let lab = lab_with(Lab::new(2), station());
    let container = lab.container(10, Kind::Tap);
    let inside = container.netns.with(|| UdpSocket::bind("0.0.0.0:40000")).unwrap();
    let far = lab.world.with(|| UdpSocket::bind(at(WORLD, 7001))).unwrap();
    far.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    let seen = || {
        inside.send_to(b"who am I?", at(WORLD, 7001)).unwrap();
        far.recv_from(&mut [0; 16]).unwrap().1
    };
    assert_eq!(seen(), at(world::SHOWN, 40_000));
    let other = Addressing::Static {
        addresses: vec!["198.51.100.77/24".parse().unwrap()],
        gateway: WORLD.parse().ok(),
    };
    lab.switch.set_segment(SEGMENT, SegmentConfig { v4: other, ..station() }).unwrap();
    assert!(lab.switch.flows(None).is_empty(), "flows by the lost address end");
    world::await_addresses(&lab);
    assert_eq!(seen(), at("198.51.100.77", 40_000));
}

/// `bridge:IF`: the interface is a port of the network, and its containers are stations of the segment.
#[test]
fn a_container_is_a_station_of_the_segment_itself() {
    const BRIDGED: NetworkId = NetworkId(2);
    if !lab::possible() {
        return;
    }
    for kind in [Kind::Tap, Kind::Veth] {
        let lab = Lab::new(2);
        let none =
            NetworkConfig { gateway: None, uplink: Uplink::None, ..lab::config(Uplink::None) };
        lab.switch.set_network(BRIDGED, none);
        let nic = PortConfig {
            role: PortRole::Interface,
            mtu: IpMtu(1500),
            mac: MacAddr([2; 6]),
            addresses: Vec::new(),
            offloads: Offloads::Header,
            queues: lab.host.enter(|| netns::packet_sockets("up", 2)).unwrap(),
        };
        lab.switch.add_port(BRIDGED, nic).unwrap();
        let container = Netns::create().unwrap();
        let own = ["198.51.100.20", "2001:db8:7::20"];
        let endpoint = netns::attach(
            &container,
            &EndpointConfig {
                ifname: "eth0".into(),
                mac: [2, 0, 0, 0, 0, 0x20],
                mtu: 1500,
                addresses: vec![
                    format!("{}/24", own[0]).parse().unwrap(),
                    format!("{}/64", own[1]).parse().unwrap(),
                ],
                gateways: Vec::new(),
                queues: 2,
                kind,
            },
        )
        .unwrap();
        let port = PortConfig {
            role: PortRole::Container,
            mtu: IpMtu(1500),
            mac: MacAddr([2, 0, 0, 0, 0, 0x20]),
            addresses: own.iter().map(|addr| addr.parse().unwrap()).collect(),
            offloads: Offloads::Header,
            queues: endpoint.queues,
        };
        lab.switch.add_port(BRIDGED, port).unwrap();
        for (own, world) in own.into_iter().zip([WORLD, WORLD6]) {
            let to = at(world, 5000);
            let own: IpAddr = own.parse().unwrap();
            assert_eq!(transfer(&container, &lab.world, to, to).ip(), own);
            let to = SocketAddr::new(own, 5001);
            let seen = transfer(&lab.world, &container, to, to);
            assert_eq!(seen.ip(), world.parse::<IpAddr>().unwrap());
        }
    }
}
