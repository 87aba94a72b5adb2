//! Our station on the segment of a lab's world, and containers behind it.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

use datapath::{IpMtu, MacAddr, Offloads, PortRole, Uplink};
use netns::Netns;
use worker::{AddressState, Addressing, PortConfig, SegmentConfig, SegmentId};

use crate::lab::{self, Lab, NET, PATIENCE, WORLD, WORLD6, serve, wait_for};

pub const SEGMENT: SegmentId = SegmentId(1);
pub const SHOWN: &str = "198.51.100.9";
pub const SHOWN6: &str = "2001:db8:7::9";
/// Our station.
pub const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
/// Addresses of the world that are not on the segment.
pub const FAR: &str = "203.0.113.2";
pub const FAR6: &str = "2001:db8:8::2";

pub fn station() -> SegmentConfig {
    let (v4, v6) = (format!("{SHOWN}/24"), format!("{SHOWN6}/64"));
    SegmentConfig {
        v4: Addressing::Static {
            addresses: vec![v4.parse().unwrap()],
            gateway: WORLD.parse().ok(),
        },
        v6: Addressing::Static {
            addresses: vec![v6.parse().unwrap()],
            gateway: WORLD6.parse().ok(),
        },
        ..SegmentConfig::new(STATION, IpMtu(1500))
    }
}

/// Puts our station on the world's segment.
pub fn add_segment(lab: &Lab, config: SegmentConfig) {
    let queues = u16::try_from(lab.switch.workers()).unwrap();
    let queues = lab.host.enter(|| netns::packet_sockets("up", queues)).unwrap();
    let device = PortConfig {
        role: PortRole::Interface,
        mtu: IpMtu(1500),
        mac: STATION,
        addresses: Vec::new(),
        offloads: Offloads::Header,
        queues,
    };
    lab.switch.add_segment(SEGMENT, config, device).unwrap();
}

/// A lab whose containers reach the world by our own station on its segment.
pub fn lab_with(lab: Lab, config: SegmentConfig) -> Lab {
    add_segment(&lab, config);
    lab.switch.set_network(NET, lab::config(Uplink::Raw(SEGMENT.zone())));
    await_addresses(&lab);
    lab.world
        .enter(|| {
            netns::link::add_address("lo", format!("{FAR}/32").parse().unwrap())?;
            netns::link::add_address("lo", format!("{FAR6}/128").parse().unwrap())?;
            netns::link::set_up("lo")
        })
        .unwrap();
    lab
}

/// Waits until every address has been probed for (RFC 5227 §2.1.1: seven seconds at most).
pub fn await_addresses(lab: &Lab) {
    wait_for("our station's addresses", || {
        let rows = lab.switch.segment_rows();
        let addresses = &rows[0].addresses;
        !addresses.is_empty() && addresses.iter().all(|row| row.state == AddressState::Valid)
    });
}

pub fn lab_of(workers: usize) -> Lab {
    lab_with(Lab::new(workers), station())
}

pub fn shown(v6: bool) -> IpAddr {
    if v6 { SHOWN6.parse().unwrap() } else { SHOWN.parse().unwrap() }
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0]).collect()
}

/// Sends `send` and reads what comes, both directions at once.
pub fn exchange(stream: TcpStream, send: Vec<u8>) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        writer.write_all(&send)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    (&stream).read_to_end(&mut got)?;
    sender.join().unwrap()?;
    Ok(got)
}

/// A TCP transfer both ways between `client` and a server at `bind` in `server`, which the client knows as
/// `dial`; returns whom the server saw.
pub fn transfer(client: &Netns, server: &Netns, dial: SocketAddr, bind: SocketAddr) -> SocketAddr {
    let (down, up) = (pattern(3_000_001), pattern(2_000_003));
    let (send, expect) = (down.clone(), up.clone());
    let server = serve(
        server,
        move || TcpListener::bind(bind),
        move |listener| {
            let (stream, peer) = listener.accept()?;
            let got = exchange(stream, send)?;
            assert!(got == expect, "the upload arrived whole: {} octets", got.len());
            Ok(peer)
        },
    );
    let got = client
        .with(|| exchange(TcpStream::connect_timeout(&dial, PATIENCE)?, up))
        .unwrap_or_else(|error| panic!("client to {dial}: {error}"));
    assert!(got == down, "the download arrived whole: {} octets", got.len());
    server.join().unwrap().unwrap()
}
