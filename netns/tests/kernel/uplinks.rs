//! Interfaces of the host's: what comes up from them, what does not, and what becomes of them.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use netns::{Error, HostInterface, LinkEvent, LinkWatch, Netns, Take, link, open_interface};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::lab::{Container, DEADLINE, eventually};

pub(crate) const CASES: &[Case] = &[
    ("an_interface_is_what_it_is", an_interface_is_what_it_is),
    ("only_our_stations_and_groups_come_up", only_our_stations_and_groups_come_up),
    ("a_bridge_hears_all_but_what_is_the_hosts", a_bridge_hears_all_but_what_is_the_hosts),
    ("frames_of_another_vlan_stay_below", frames_of_another_vlan_stay_below),
    ("the_host_is_not_reached_over_its_own_interface", the_host_is_not_reached),
    ("an_interface_goes_down_comes_back_and_is_deleted", an_interface_goes_and_comes),
    ("each_interface_that_will_not_do_says_why", each_interface_that_will_not_do_says_why),
];

/// The same as a user without privilege.
pub(crate) const ROOTLESS: &[Case] =
    &[("who_may_not_open_is_told_how", who_may_not_open_is_told_how)];

const US: [u8; 6] = [2, 0x42, 192, 0, 2, 5];
const NIC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const BROADCAST: [u8; 6] = [0xff; 6];
/// For experiments (IEEE 802, EtherType 88B5); the last frame of each row, so that what has not come
/// before it does not come.
const MARK: u16 = 0x88b5;
const HEADER: usize = 10;

/// A host with an interface `nic`, and a machine at the far end of its wire.
struct Segment {
    host: Container,
    far: Container,
}

impl Segment {
    fn new() -> Self {
        let (host, far) = (Container::new(), Container::new());
        link::create_veth_pair("nic", &host.netns, "far", &far.netns).expect("a wire");
        for (machine, name, mac, address) in
            [(&host, "nic", NIC, "192.0.2.1/24"), (&far, "far", FAR, "192.0.2.2/24")]
        {
            let address = address.parse().expect("an address");
            let configure = || {
                // Nothing of IPv6's own is to come between.
                link::set_ipv6(name, false)?;
                link::set_mac(name, mac)?;
                link::add_address(name, address)?;
                link::set_up(name)
            };
            machine.netns.enter(configure).expect("configure");
        }
        // An interface just brought up drops what is sent until the kernel gets round to its carrier.
        eventually("the wire carries", || {
            let args = ["-q", "-c1", "-W1", "192.0.2.2"];
            let ping = host.netns.with(|| Command::new("ping").args(args).output());
            ping.expect("ping").status.success()
        });
        Self { host, far }
    }

    fn open(&self, take: &Take, queues: u16) -> HostInterface {
        open_in(&self.host.netns, "nic", take, queues).expect("open")
    }

    /// The far machine's hand on the wire.
    fn far_hand(&self) -> Hand {
        let all = Take::AllBut([0; 6]);
        Hand { interface: open_in(&self.far.netns, "far", &all, 1).expect("open") }
    }
}

fn open_in(netns: &Netns, ifname: &str, take: &Take, queues: u16) -> Result<HostInterface, Error> {
    netns.enter(|| open_interface(ifname, take, queues))
}

/// Sends and hears frames.
struct Hand {
    interface: HostInterface,
}

impl Hand {
    fn new(interface: HostInterface) -> Self {
        Self { interface }
    }

    fn say(&self, frame: &[u8]) {
        let whole = [&[0; HEADER][..], frame].concat();
        netns::send_frame(&self.interface.queues[0], &whole).expect("send");
    }

    /// Everything heard until a frame of [`MARK`], without that.
    fn hear_until_marked(&self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        loop {
            let frame = hear(&self.interface.queues).expect("a frame");
            if frame[12..14] == MARK.to_be_bytes() {
                return heard;
            }
            heard.push(frame);
        }
    }
}

/// The next frame of any queue.
fn hear(queues: &[OwnedFd]) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0; HEADER + 18 + 65_535];
    loop {
        for queue in queues {
            match netns::recv_frame(queue, &mut buf) {
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
                other => return other.map(|len| buf[HEADER..len].to_vec()),
            }
        }
        let mut fds: Vec<_> =
            queues.iter().map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN)).collect();
        let patience = PollTimeout::try_from(DEADLINE).expect("seconds");
        assert_ne!(poll(&mut fds, patience).expect("poll"), 0, "nothing more came");
    }
}

fn frame(dst: [u8; 6], src: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &src, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(src: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    frame(BROADCAST, src, 0x0806, &[&head[..], &src, &sender, &[0; 6], &target].concat())
}

fn an_interface_is_what_it_is() {
    let segment = Segment::new();
    segment.host.run("ip link set nic mtu 1400");
    let opened = segment.open(&Take::Stations(vec![US]), 3);
    assert_eq!(opened.queues.len(), 3);
    let facts = &opened.facts;
    assert_eq!((facts.name.as_str(), facts.mac, facts.mtu), ("nic", NIC, 1400));
    assert!(facts.carrier && facts.gso_max >= 65_536, "{facts:?}");
    // Nothing of the interface is seen to have changed, and nothing remains.
    let shown = || {
        let shown = segment.host.run("ip -d link show dev nic");
        shown.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(!shown().contains("promiscuity 0"), "a veth has no filter of its own: {}", shown());
    drop(opened);
    assert!(shown().contains("promiscuity 0 allmulti 0"), "{}", shown());
    // Without a carrier it is opened all the same.
    segment.far.run("ip link set far down");
    assert!(!segment.open(&Take::Stations(vec![US]), 1).facts.carrier);
}

fn only_our_stations_and_groups_come_up() {
    let segment = Segment::new();
    let other = [2, 0x42, 192, 0, 2, 6];
    let ours = Hand::new(segment.open(&Take::Stations(vec![US, other]), 1));
    let far = segment.far_hand();
    // The host's own traffic, which goes on as ever.
    segment.far.run("ping -c 2 -i 0.1 -W 5 192.0.2.1");
    let group = [0x33, 0x33, 0xff, 0, 0, 5];
    for dst in [US, STRANGER, NIC, group, other] {
        far.say(&frame(dst, FAR, 0x88b6, b"hello"));
    }
    far.say(&frame(BROADCAST, FAR, MARK, b""));
    let heard = ours.hear_until_marked();
    let dsts: Vec<_> =
        heard.iter().map(|frame| &frame[..6]).filter(|dst| **dst != BROADCAST).collect();
    assert_eq!(dsts, [&US[..], &group, &other], "nobody else's");
    // And of the ping the question alone, which was for all.
    let broadcasts = heard.iter().filter(|frame| frame[..6] == BROADCAST);
    let kinds: Vec<_> = broadcasts.map(|frame| &frame[12..14]).collect();
    assert!(kinds.len() <= 1 && kinds.iter().all(|kind| **kind == [8, 6]), "{heard:02x?}");
}

fn a_bridge_hears_all_but_what_is_the_hosts() {
    let segment = Segment::new();
    let ours = Hand::new(segment.open(&Take::AllBut(NIC), 1));
    let far = segment.far_hand();
    for dst in [NIC, STRANGER, US] {
        far.say(&frame(dst, FAR, 0x88b6, b"hello"));
    }
    far.say(&frame(BROADCAST, FAR, MARK, b""));
    let heard = ours.hear_until_marked();
    let dsts: Vec<_> = heard.iter().map(|frame| &frame[..6]).collect();
    assert_eq!(dsts, [STRANGER, US]);
}

fn frames_of_another_vlan_stay_below() {
    let segment = Segment::new();
    let station = Hand::new(segment.open(&Take::Stations(vec![US]), 1));
    let bridge = Hand::new(segment.open(&Take::AllBut(NIC), 1));
    let far = segment.far_hand();
    let tagged = |tag: u16| {
        let inner = [&tag.to_be_bytes()[..], &0x88b6u16.to_be_bytes(), b"hello"].concat();
        frame(US, FAR, 0x8100, &inner)
    };
    far.say(&tagged(10));
    far.say(&tagged(5 << 13)); // priority 5 of no VLAN
    far.say(&frame(BROADCAST, FAR, MARK, b""));
    let heard = station.hear_until_marked();
    assert_eq!(heard.len(), 1, "the one of no VLAN");
    assert_eq!(heard[0][12..19], *b"\x88\xb6hello", "as if it had no tag");
    // A bridge carries both as they are.
    let heard = bridge.hear_until_marked();
    assert_eq!(heard.len(), 2);
    assert_eq!(
        (&heard[0][12..16], &heard[1][12..16]),
        (&[0x81, 0, 0, 10][..], &[0x81, 0, 0xa0, 0][..])
    );
}

/// As with macvlan: what is sent leaves by the wire and does not come back, so that the host, at this
/// end of it, neither hears us nor answers.
fn the_host_is_not_reached() {
    let segment = Segment::new();
    let ours = Hand::new(segment.open(&Take::Stations(vec![US]), 1));
    let far = segment.far_hand();
    // The host is asked first: had it heard, its answer would be before the far machine's.
    ours.say(&arp(US, [192, 0, 2, 5], [192, 0, 2, 1]));
    ours.say(&arp(US, [192, 0, 2, 5], [192, 0, 2, 2]));
    let answer = hear(&ours.interface.queues).expect("an answer");
    assert_eq!((&answer[..12], &answer[28..32]), (&[US, FAR].concat()[..], &[192, 0, 2, 2][..]));
    ours.say(&frame(NIC, US, MARK, b""));
    far.hear_until_marked();
    // The host learnt nothing of us either; the far machine did.
    assert!(!segment.host.run("ip neigh").contains("192.0.2.5"));
    assert!(segment.far.run("ip neigh").contains("192.0.2.5"));
    // And asks the wire in vain: its question is not among what comes up.
    let args = ["-q", "-c1", "-W1", "192.0.2.5"];
    let ping = segment.host.netns.with(|| Command::new("ping").args(args).output());
    assert!(!ping.expect("ping").status.success());
    far.say(&frame(BROADCAST, FAR, MARK, b""));
    assert_eq!(ours.hear_until_marked(), Vec::<Vec<u8>>::new());
}

fn an_interface_goes_and_comes() {
    let segment = Segment::new();
    let host = &segment.host;
    let mut watch = host.netns.enter(LinkWatch::open).expect("watch");
    assert_eq!(watch.next_event(), None);
    let ours = Hand::new(segment.open(&Take::Stations(vec![US]), 2));
    let far = segment.far_hand();
    let number = ours.interface.facts.ifindex;
    let queues = &ours.interface.queues;
    let mut told = |what: &str, holds: &dyn Fn(LinkEvent) -> bool| {
        eventually(what, || {
            let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1_000u16)).expect("poll");
            std::iter::from_fn(|| watch.next_event()).any(holds)
        });
    };
    let errno = |result: std::io::Result<usize>| result.expect_err("an error").raw_os_error();
    let mut buf = vec![0; 70_000];
    let packet = [&[0; HEADER][..], &frame(FAR, US, MARK, b"")].concat();

    host.run("ip link set nic mtu 1300");
    told(
        "the MTU",
        &|event| matches!(event, LinkEvent::Is { ifindex, mtu: 1300, .. } if ifindex == number),
    );

    // Down: each queue says so once, and sends nothing; nothing is gone.
    host.run("ip link set nic down");
    told(
        "down",
        &|event| matches!(event, LinkEvent::Is { ifindex, up: false, .. } if ifindex == number),
    );
    for queue in queues {
        assert_eq!(errno(netns::recv_frame(queue, &mut buf)), Some(libc::ENETDOWN));
        assert_eq!(errno(netns::recv_frame(queue, &mut buf)), Some(libc::EAGAIN));
        assert_eq!(errno(netns::send_frame(queue, &packet)), Some(libc::ENETDOWN));
    }
    // Back: the same sockets serve, with the same filter.
    host.run("ip link set nic up");
    let is_up = |event| matches!(event, LinkEvent::Is { ifindex, up: true, carrier: true, .. } if ifindex == number);
    told("up", &is_up);
    eventually("frames flow again", || {
        far.say(&frame(STRANGER, FAR, 0x88b6, b""));
        far.say(&frame(US, FAR, 0x88b6, b""));
        queues.iter().any(|queue| match netns::recv_frame(queue, &mut buf) {
            Ok(_) => {
                assert_eq!(buf[HEADER..HEADER + 6], US);
                true
            }
            Err(_) => false,
        })
    });
    // The wire is cut at the far end: no carrier, which is no error.
    segment.far.run("ip link set far down");
    told(
        "no carrier",
        &|event| matches!(event, LinkEvent::Is { ifindex, up: true, carrier: false, .. } if ifindex == number),
    );
    segment.far.run("ip link set far up");
    told("a carrier", &is_up);

    // Gone.
    while netns::recv_frame(&queues[0], &mut buf).is_ok() {}
    while netns::recv_frame(&queues[1], &mut buf).is_ok() {}
    host.run("ip link delete nic");
    told("gone", &|event| event == LinkEvent::Gone { ifindex: number });
    for queue in queues {
        assert_eq!(errno(netns::recv_frame(queue, &mut buf)), Some(libc::ENODEV));
        assert_eq!(errno(netns::send_frame(queue, &packet)), Some(libc::ENXIO));
    }
}

fn each_interface_that_will_not_do_says_why() {
    let segment = Segment::new();
    let host = &segment.host;
    link::create_veth_pair("dum0", &host.netns, "dum1", &segment.far.netns).expect("a wire");
    host.run("ip tuntap add tun0 mode tun");
    host.run("ip link set tun0 up");
    host.run("ip link set lo up");
    let refused = |ifname: &str| {
        open_in(&host.netns, ifname, &Take::Stations(vec![US]), 1).expect_err("refused").to_string()
    };
    assert_eq!(
        refused("nci"),
        "there is no interface nci; did you mean nic? Those there are: nic, dum0"
    );
    assert_eq!(refused("wlan0"), "there is no interface wlan0; those there are: nic, dum0");
    assert_eq!(
        refused("lo"),
        "lo is the loopback, behind which there is no segment; choose one of nic, dum0"
    );
    assert_eq!(refused("dum0"), "the interface dum0 is down; `ip link set dum0 up` brings it up");
    assert_eq!(
        refused("tun0"),
        "tun0 carries no Ethernet frames (its type is none); choose one of nic, dum0"
    );
    let alone = Container::new();
    let err = open_in(&alone.netns, "eth0", &Take::Stations(vec![US]), 1).expect_err("refused");
    assert_eq!(err.to_string(), "there is no interface eth0, nor another with Ethernet frames");
    let group = Take::Stations(vec![BROADCAST]);
    let err = open_in(&host.netns, "nic", &group, 1).expect_err("a group is no station");
    assert_eq!(err.errno(), None, "{err:#}");
}

fn who_may_not_open_is_told_how() {
    // Where we are, we are nobody; what the interface is called matters little.
    let Some(ifname) = netns::candidates().into_iter().find(|name| netns::look_at(name).is_ok())
    else {
        return crate::lab::skip("no interface with Ethernet frames is up here");
    };
    let err = open_interface(&ifname, &Take::Stations(vec![US]), 1).expect_err("not for nobody");
    let text = err.to_string();
    assert!(
        text.contains(&format!("on {ifname}")) && text.contains("setcap cap_net_raw+ep"),
        "{text}"
    );
    assert_eq!(err.errno(), Some(libc::EPERM));
}
