//! TCP through the relay, segment by segment: what RFC 9293 and 5961 ask of it towards a container, and
//! what the far side must see of that.

mod lab;
mod station;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lab::{HOST, Lab, NET, PATIENCE, WORLD, WORLD6, at, wait_for};
use nat::Protocol;
use netns::Kind;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use station::{
    ACK, Connection, FIN, RST, SYN, Segment, Station, URG, accept, listen, pattern, with_connection,
};
use worker::Publication;

/// MSS 1460, window scale 7.
const SCALED: [u8; 8] = [2, 4, 0x05, 0xb4, 1, 3, 3, 7];

fn wait_until_forgotten(lab: &Lab) {
    wait_for("the flow to be forgotten", || lab.switch.flows(Some(NET)).is_empty());
}

fn publish(lab: &Lab, station: &Station) {
    let publication = Publication {
        network: NET,
        port: station.port,
        protocol: Protocol::Tcp,
        listen: at("0.0.0.0", 8080),
        to: vec![IpAddr::V4(station.v4)],
        to_port: 80,
        splice: None,
    };
    lab.host.with(|| lab.switch.publish(publication)).unwrap();
}

/// RFC 9293 §3.8.6: a reader that pauses is no reason to leave octets unacknowledged, or the container's
/// kernel gives the connection up; the window closes instead, is told to whoever asks, and opens again.
#[test]
fn a_stalled_reader_closes_the_window_and_ends_nothing() {
    with_connection(&SCALED, |lab, mut connection, mut server| {
        // Little room at the far side, so that it is full soon.
        for netns in [&lab.host, &lab.world] {
            for (file, sizes) in [("tcp_wmem", "4096 16384 32768"), ("tcp_rmem", "4096 8192 32768")]
            {
                let file = format!("/proc/sys/net/ipv4/{file}");
                netns.with(|| std::fs::write(&file, sizes)).unwrap();
            }
        }
        let mut room = 65_535;
        let mut sent: Vec<u8> = Vec::new();
        while room > 0 {
            assert!(sent.len() < 64 << 20, "the window never closed");
            let octets = pattern(1000.min(room));
            sent.extend(&octets);
            connection.push(&octets);
            let told = connection
                .await_segment("an acknowledgment of all that was sent", |segment| {
                    segment.ack == connection.seq
                });
            room = usize::from(told.window) << 7;
        }
        let probe = connection.segment(ACK, connection.seq.wrapping_sub(1), connection.ack, &[]);
        connection.station.send(connection.peer.ip(), &probe);
        let told = connection.await_segment("an answer to the probe", |_| true);
        assert_eq!((told.ack, told.window), (connection.seq, 0));

        let expect = sent.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; expect.len()];
            server.read_exact(&mut got).unwrap();
            assert!(got == expect, "what was acknowledged is what the reader gets");
            server
        });
        connection.await_segment("the window's update", |segment| segment.window > 0);
        let mut server = reader.join().unwrap();
        connection.push(b"more");
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"more");
    });
}

/// RFC 9293 §3.8.6.1, §3.10.7.4: an upload that waits is not acknowledged together with its FIN until the
/// far side can have been told.
#[test]
fn a_fin_behind_octets_that_wait_is_passed_on_behind_them() {
    with_connection(&SCALED, |_, mut connection, mut server| {
        let mut sent: Vec<u8> = Vec::new();
        loop {
            let octets = pattern(16 << 10);
            sent.extend(&octets);
            for piece in octets.chunks(1460) {
                connection.push(piece);
            }
            let told = connection
                .await_segment("an acknowledgment", |segment| segment.ack == connection.seq);
            if u32::from(told.window) << 7 < 64 << 10 || sent.len() > 64 << 20 {
                break;
            }
        }
        connection.send(ACK | FIN, &[]);
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} octets before the end", got.len(), sent.len());
        // As a container would, say it again until it is acknowledged.
        let end = connection.seq.wrapping_add(1);
        wait_for("the FIN's acknowledgment", || {
            connection.send(ACK | FIN, &[]);
            connection.next_within(Duration::from_millis(50)).is_some_and(|told| told.ack == end)
        });
    });
}

/// RFC 9293 §3.5.2, §3.5.3: octets that arrive before the reset that follows them are delivered.
#[test]
fn an_early_answer_arrives_whole_though_the_upload_fails() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let container = lab.container(10, Kind::Tap);
    let listener = listen(&lab, WORLD);
    for _ in 0..10 {
        let mut client = container.netns.with(|| TcpStream::connect(at(WORLD, 5000))).unwrap();
        let mut server = accept(&listener);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let uploader = std::thread::spawn(move || {
            let octets = vec![0; 64 << 10];
            let mut left = 400;
            while left > 0 && client.write_all(&octets).is_ok() {
                left -= 1;
            }
            let mut got = Vec::new();
            // The reset comes behind the answer; whether as an error or an end is the kernel's.
            let _ = client.read_to_end(&mut got);
            (left, got)
        });
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&pattern(2000)).unwrap();
        // With octets unread, closing resets.
        drop(server);
        let (left, got) = uploader.join().unwrap();
        assert!(left > 0, "the upload fails, as it would without us between");
        assert!(got == pattern(2000), "{} of 2000 octets of the answer", got.len());
    }
    wait_until_forgotten(&lab);
}

/// RFC 9293 §3.10.7.2 to §3.10.7.4: `<SEQ=SEG.ACK><CTL=RST>` for what acknowledges something never sent,
/// while the connection opens, which goes on opening.
#[test]
fn an_acknowledgment_of_nothing_is_reset_by_its_own_number() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    let listener = listen(&lab, WORLD);
    let to = at(WORLD, 5000);

    let answer = station.dial(to, 4000, &[]);
    assert!(answer.has(SYN | ACK), "{answer:?}");
    let mut connection = Connection {
        station: &station,
        peer: to,
        port: 4000,
        seq: 1001,
        ack: answer.seq + 1,
        window: 9999,
    };
    connection.send_at(ACK, 1001, connection.ack.wrapping_add(77), &[]);
    let reset = connection.await_segment("a reset", |segment| segment.has(RST));
    assert_eq!((reset.flags, reset.seq), (RST, connection.ack.wrapping_add(77)));
    connection.send(ACK, &[]);
    connection.push(b"on it goes");
    accept(&listener).read_exact(&mut [0; 10]).unwrap();

    // Nobody answers there for some seconds.
    let mute: SocketAddr = at("198.51.100.77", 5000);
    let syn =
        Segment { src_port: 4001, dst_port: 5000, seq: 1000, flags: SYN, ..Segment::default() };
    station.send(mute.ip(), &syn);
    station.send(mute.ip(), &Segment { seq: 1001, ack: 4711, flags: ACK, ..syn });
    let reset = station.await_segment("a reset", |segment| segment.dst_port == 4001);
    assert_eq!((reset.flags, reset.seq), (RST, 4711));

    publish(&lab, &station);
    let mut client = lab.world.with(|| TcpStream::connect(at(HOST, 8080))).unwrap();
    let syn = station.await_segment("a SYN", |segment| segment.flags == SYN);
    let from: IpAddr = WORLD.parse().unwrap();
    let stale = Segment {
        src_port: syn.dst_port,
        dst_port: syn.src_port,
        seq: 9000,
        ack: syn.seq.wrapping_sub(5),
        flags: ACK,
        ..Segment::default()
    };
    station.send(from, &stale);
    let reset = station.await_segment("a reset", |segment| segment.has(RST));
    assert_eq!((reset.flags, reset.seq), (RST, stale.ack));
    let fresh = Segment { ack: syn.seq.wrapping_add(1), flags: SYN | ACK, window: 9999, ..stale };
    station.send(from, &fresh);
    client.write_all(b"through").unwrap();
    let got = station.await_segment("octets", |segment| !segment.data.is_empty());
    assert_eq!(got.data, b"through");
}

/// RFC 9293 §3.5, figure 7: both sides' SYNs may cross.
#[test]
fn a_simultaneous_open_connects() {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    publish(&lab, &station);
    let mut client = lab.world.with(|| TcpStream::connect(at(HOST, 8080))).unwrap();
    let syn = station.await_segment("a SYN", |segment| segment.flags == SYN);
    let mut connection = Connection {
        station: &station,
        peer: at(WORLD, syn.src_port),
        port: 80,
        seq: 7000,
        ack: 0,
        window: 9999,
    };
    connection.send(SYN, &[]);
    connection.seq = 7001;
    connection.ack = syn.seq.wrapping_add(1);
    let both = connection.await_segment("SYN and ACK", |segment| segment.has(SYN | ACK));
    assert_eq!((both.seq, both.ack), (syn.seq, 7001));
    connection.send(ACK, &[]);
    client.write_all(b"crossed").unwrap();
    assert_eq!(connection.receive(7), b"crossed");
}

/// RFC 5961 §5.2, RFC 9293 §3.10.7.4: an acknowledgment beyond what was sent, or older than a window, is
/// challenged, and what came with it is not taken.
#[test]
fn an_impossible_acknowledgment_is_challenged() {
    with_connection(&[], |_, mut connection, mut server| {
        for off in [1, 2_000_000, 0_u32.wrapping_sub(2_000_000)] {
            connection.send_at(ACK, connection.seq, connection.ack.wrapping_add(off), b"forged");
            let told = connection.await_segment("a challenge", |_| true);
            assert_eq!((told.flags, told.seq, told.ack), (ACK, connection.ack, connection.seq));
        }
        connection.push(b"honest");
        let mut got = [0; 6];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"honest");
    });
}

/// RFC 9293 §3.10.7.4 (SND.WL1): the window is that of the newest segment, not of the last to arrive.
#[test]
fn an_overtaken_segments_window_is_not_used() {
    with_connection(&[], |_, mut connection, mut server| {
        connection.window = 0;
        connection.send_at(ACK, connection.seq + 4, connection.ack, b"late");
        connection.window = 65_535;
        connection.send(ACK, b"over");
        connection.await_segment("both acknowledged", |told| told.ack == connection.seq + 8);
        connection.seq += 8;
        server.write_all(&[1; 100]).unwrap();
        // A closed window is asked about; had the older segment opened it, octets would come instead.
        let probe = connection.await_segment("a probe of the closed window", |_| true);
        assert_eq!((probe.seq, probe.data.len()), (connection.ack.wrapping_sub(1), 0));
        connection.send(ACK, &[]);
        assert_eq!(connection.receive(100), [1; 100]);
    });
}

/// RFC 9293 §3.8.4: a keepalive is answered, by a connection that is idle, too.
#[test]
fn a_keepalive_is_answered() {
    with_connection(&[], |_, connection, _server| {
        for garbage in [&b""[..], b"x"] {
            connection.send_at(ACK, connection.seq.wrapping_sub(1), connection.ack, garbage);
            let told = connection.await_segment("an answer", |_| true);
            assert_eq!((told.flags, told.seq, told.ack), (ACK, connection.ack, connection.seq));
        }
    });
}

/// RFC 9293 §3.8.5: the urgent octet stays urgent.
#[test]
fn an_urgent_octet_is_urgent_outside() {
    with_connection(&[], |_, mut connection, mut server| {
        let urgent = Segment {
            urgent: 5,
            ..connection.segment(ACK | URG, connection.seq, connection.ack, b"abcdEfgh")
        };
        connection.station.send(connection.peer.ip(), &urgent);
        connection.seq += 8;
        connection.await_segment("an acknowledgment", |told| told.ack == connection.seq);
        connection.send(ACK | FIN, &[]);
        let mut urgent = [0];
        wait_for("the urgent octet", || {
            recv(server.as_raw_fd(), &mut urgent, MsgFlags::MSG_OOB | MsgFlags::MSG_DONTWAIT)
                .is_ok()
        });
        assert_eq!(&urgent, b"E");
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"abcdfgh");
    });
}

/// The same the other way; and what lies around it is no more urgent than it was.
#[test]
fn an_urgent_octet_from_outside_is_urgent_inside() {
    with_connection(&[], |_, mut connection, mut server| {
        server.set_nodelay(true).unwrap();
        let base = connection.ack;
        server.write_all(&pattern(5000)).unwrap();
        assert!(connection.receive(5000) == pattern(5000));
        send(server.as_raw_fd(), b"E", MsgFlags::MSG_OOB).unwrap();
        let urgent = connection.await_segment("the urgent octet", |segment| {
            let end = segment.seq.wrapping_add(u32::from(segment.urgent));
            segment.has(URG) && end == base.wrapping_add(5001) && segment.data.ends_with(b"E")
        });
        assert!(urgent.data.len() <= 536, "a segment alone");
        connection.ack = base.wrapping_add(5001);
        connection.send(ACK, &[]);
        server.write_all(b"rest").unwrap();
        let rest = connection.await_segment("the rest", |segment| segment.data == b"rest");
        assert!(!rest.has(URG));
    });
}

/// RFC 9293 §3.6: each side finishes for itself.
#[test]
fn either_side_may_finish_first_and_still_receive() {
    for addr in [WORLD, WORLD6] {
        if !lab::possible() {
            return;
        }
        let lab = Lab::new(1);
        let station = Station::new(&lab, 10);
        let listener = listen(&lab, addr);

        let mut connection = station.connect(at(addr, 5000), 4000, &[]);
        let mut server = accept(&listener);
        connection.push(b"question");
        connection.send(ACK | FIN, &[]);
        connection.seq += 1;
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"question");
        server.write_all(&pattern(100_000)).unwrap();
        drop(server);
        assert!(connection.receive(usize::MAX) == pattern(100_000));

        let mut connection = station.connect(at(addr, 5000), 4001, &[]);
        let mut server = accept(&listener);
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(connection.receive(1), b"");
        connection.push(b"answer");
        connection.send(ACK | FIN, &[]);
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"answer");
        connection.await_segment("the last acknowledgment", |told| told.ack == connection.seq + 1);
        wait_until_forgotten(&lab);
    }
}

/// RFC 9293 §3.6, case 3: both finish at once.
#[test]
fn a_simultaneous_close_ends() {
    with_connection(&[], |lab, mut connection, mut server| {
        server.shutdown(Shutdown::Write).unwrap();
        let fin = connection.await_segment("a FIN", |segment| segment.has(FIN));
        assert_eq!(fin.seq, connection.ack);
        // Sent before that arrived: it acknowledges nothing of it.
        connection.send(ACK | FIN, &[]);
        connection.await_segment("the FIN's acknowledgment", |told| told.ack == connection.seq + 1);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        connection.seq += 1;
        connection.ack = connection.ack.wrapping_add(1);
        connection.send(ACK, &[]);
        wait_until_forgotten(lab);
    });
}

/// RFC 5961 §3.2, RFC 9293 §3.10.7.4: a reset counts exactly where the next octet is due, either way.
#[test]
fn a_reset_passes_both_ways_at_the_right_place() {
    with_connection(&[], |lab, mut connection, mut server| {
        connection.push(b"some");
        server.read_exact(&mut [0; 4]).unwrap();
        connection.send_at(RST, connection.seq + 10, 0, &[]);
        let told = connection.await_segment("a challenge", |told| told.ack == connection.seq);
        assert_eq!(told.flags, ACK);
        connection.push(b"alive");
        server.read_exact(&mut [0; 5]).unwrap();
        connection.send_at(RST, connection.seq, 0, &[]);
        let error = server.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        wait_until_forgotten(lab);
    });
    with_connection(&[], |lab, mut connection, mut server| {
        server.write_all(&pattern(5000)).unwrap();
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        assert!(connection.receive(5000) == pattern(5000));
        setsockopt(&server, sockopt::Linger, &linger).unwrap();
        drop(server);
        let reset = connection.await_segment("a reset", |segment| segment.has(RST));
        assert_eq!(reset.seq, connection.ack);
        wait_until_forgotten(lab);
    });
}

/// RFC 9293 §3.5.3: of octets and the reset behind them, those lost come again before the reset.
#[test]
fn octets_in_flight_arrive_before_the_reset_behind_them() {
    with_connection(&[], |_, mut connection, mut server| {
        server.write_all(&[1; 100]).unwrap();
        connection.await_segment("octets, which are lost", |segment| !segment.data.is_empty());
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&server, sockopt::Linger, &linger).unwrap();
        drop(server);
        let got = connection.receive(100);
        assert_eq!(got, [1; 100]);
        let reset = connection.await_segment("a reset", |segment| segment.has(RST));
        assert_eq!(reset.seq, connection.ack);
    });
}
