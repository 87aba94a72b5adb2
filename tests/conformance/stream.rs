//! What a TCP connection tells both its users, whoever is in between: RFC 9293, by real sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, MsgFlags, sockopt};

use crate::lab::{Container, Family, Lab, accept, connect, listen};
use crate::packet::{ACK, Packet, RST, SYN, Segment};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "S" ANY a_refused_connection_is_refused_with_no_syn_ack_before;
        "S" ANY an_unreachable_host_or_network_is_said_to_be_so;
        "S" ANY a_silent_host_stays_silent;
        "S" ANY each_side_may_end_first_and_still_be_told_more;
        "S" ANY a_reader_that_stops_stops_the_writer;
        "S" ANY the_urgent_octet_is_urgent_on_the_other_side;
        "S" ANY a_reset_is_a_reset_on_the_other_side;
        "S" ANY a_million_octets_go_both_ways_unharmed;
        "U10" ANY payload_with_addresses_in_it_is_left_alone;
    }
}

/// A connection from inside to the outside's kernel.
fn pair(
    lab: &Lab,
    container: &Container,
    family: Family,
    port: u16,
) -> Result<(TcpStream, TcpStream), String> {
    let listener = listen(&lab.outside, family.outside(2), port);
    let to = SocketAddr::new(family.outside(2), port);
    let near = connect(&container.netns, container.at(family, 0), to)
        .map_err(|error| format!("connect to {to}: {error}"))?;
    let (far, peer) = accept(&listener)?;
    ensure!(peer.ip() == lab.external(family), "from {peer}");
    Ok((near, far))
}

fn a_refused_connection_is_refused_with_no_syn_ack_before(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let (own, peer) = (inside.at(family, 46_000), SocketAddr::new(family.outside(2), 9));
    let mut syn = Segment::new(SYN, 4_000_000_000, 0);
    syn.options = crate::conn::MSS.to_vec();
    inside.wire.send(&Packet::tcp(own, peer, &syn));
    let answer = inside.wait("an answer", |packet| packet.from() == Some(peer))?;
    let segment = answer.segment().unwrap();
    ensure!(segment.flags == RST | ACK, "answered by {segment:?}");
    ensure!(segment.ack == 4_000_000_001, "it acknowledges {}", segment.ack);
    let container = lab.container(&format!("d{family:?}"));
    let error = connect(&container.netns, container.at(family, 0), peer).err();
    ensure!(
        error.as_ref().map(std::io::Error::kind) == Some(ErrorKind::ConnectionRefused),
        "connect(2): {error:?}"
    );
    Ok(())
}

fn an_unreachable_host_or_network_is_said_to_be_so(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    // A router knows of the second only when nobody there has answered for three seconds.
    for (n, addr) in (0..).zip([family.nowhere(), family.nobody()]) {
        let (own, peer) = (inside.at(family, 46_100 + n), SocketAddr::new(addr, 80));
        inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)));
        let told =
            inside.wait("an answer", |packet| packet.is_error() || packet.from() == Some(peer))?;
        let kind = told.icmp_kind();
        let (unreachable, codes) = match family {
            Family::V4 => (3, [0, 1]),
            Family::V6 => (1, [0, 3]),
        };
        let due = (unreachable, codes[usize::from(n)]);
        ensure!(kind == Some(due), "{addr}: told {told:?}, not {due:?}");
        let quoted = told.quoted()?;
        ensure!(quoted.from() == Some(own) && quoted.to() == Some(peer), "quotes {quoted:?}");
    }
    Ok(())
}

fn a_silent_host_stays_silent(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 46_200), outside.at(family, 80));
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)));
    outside.wait("the SYN", |packet| packet.to() == Some(peer))?;
    // No answer is earlier than the first retransmission: RFC 6298 2.
    let early = inside.wire.within(Duration::from_millis(1500), |packet| {
        packet.is_error() || packet.from() == Some(peer)
    });
    ensure!(early.is_none(), "answered: {early:?}");
    // And another is not held up by it.
    let container = lab.container(&format!("d{family:?}"));
    pair(lab, &container, family, 8000).map(drop)
}

/// Reads to the end of the stream.
fn rest(stream: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).map_err(|error| format!("read: {error}"))?;
    Ok(octets)
}

/// A socket buffer's worth and more, that repeats nowhere near.
fn octets(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..count).map(|_| next()).collect()
}

fn each_side_may_end_first_and_still_be_told_more(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    for near_first in [true, false] {
        let port = 8000 + u16::from(near_first);
        let (near, far) = pair(lab, &container, family, port)?;
        let (mut first, mut second) = if near_first { (near, far) } else { (far, near) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        ensure!(rest(&mut second)? == b"question", "another question came");
        let answer = octets(300_000, 7);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                second.write_all(&answer)?;
                second.shutdown(Shutdown::Write)
            });
            let got = rest(&mut first)?;
            writer.join().unwrap().map_err(|error| format!("answer: {error}"))?;
            ensure!(got == answer, "{} octets came of {}", got.len(), answer.len());
            Ok(())
        })?;
    }
    Ok(())
}

fn a_reader_that_stops_stops_the_writer(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    for outwards in [true, false] {
        let (near, far) = pair(lab, &container, family, 8000 + u16::from(outwards))?;
        let (mut writer, mut reader) = if outwards { (near, far) } else { (far, near) };
        let data = octets(1 << 20, 3);
        writer.set_nonblocking(true).unwrap();
        // Three buffers of sixteen megabytes at most: two kernels', and a relay's between them.
        let most = 48 << 20;
        let mut sent = 0;
        let end = Instant::now() + crate::patience();
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(700) {
            match writer.write(&data[sent % data.len()..]) {
                Ok(more) => (sent, quiet) = (sent + more, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(format!("write: {error}")),
            }
            ensure!(sent < most && Instant::now() < end, "{sent} octets and no end");
        }
        writer.shutdown(Shutdown::Write).unwrap();
        let got = rest(&mut reader)?;
        ensure!(got.len() == sent, "{} octets came of {sent}", got.len());
        let same = got.chunks(data.len()).all(|chunk| *chunk == data[..chunk.len()]);
        ensure!(same, "other octets came");
    }
    Ok(())
}

fn the_urgent_octet_is_urgent_on_the_other_side(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    for outwards in [true, false] {
        let (near, far) = pair(lab, &container, family, 8000 + u16::from(outwards))?;
        let (mut writer, mut reader) = if outwards { (near, far) } else { (far, near) };
        writer.write_all(b"before").unwrap();
        let mut before = [0; 6];
        reader.read_exact(&mut before).map_err(|error| format!("before: {error}"))?;
        socket::send(writer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        let mut urgent = [0; 1];
        let end = Instant::now() + crate::patience();
        // EINVAL as long as nothing urgent has come: tcp(7).
        while socket::recv(reader.as_raw_fd(), &mut urgent, MsgFlags::MSG_OOB).is_err() {
            ensure!(Instant::now() < end, "nothing urgent came (outwards: {outwards})");
            thread::sleep(Duration::from_millis(5));
        }
        ensure!(urgent == *b"!", "{urgent:?} came");
        writer.write_all(b"after").unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        let after = rest(&mut reader)?;
        ensure!(after == b"after", "{after:?} came after it");
    }
    Ok(())
}

fn a_reset_is_a_reset_on_the_other_side(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    for outwards in [true, false] {
        let (near, far) = pair(lab, &container, family, 8000 + u16::from(outwards))?;
        let (mut first, mut second) = if outwards { (near, far) } else { (far, near) };
        first.write_all(b"so far").unwrap();
        let mut before = [0; 6];
        second.read_exact(&mut before).map_err(|error| format!("before: {error}"))?;
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        socket::setsockopt(&first, sockopt::Linger, &abort).unwrap();
        drop(first);
        let error = second.read(&mut before).err().map(|error| error.kind());
        ensure!(
            error == Some(ErrorKind::ConnectionReset),
            "the other side reads {error:?} (outwards: {outwards})"
        );
    }
    Ok(())
}

fn a_million_octets_go_both_ways_unharmed(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let (mut near, mut far) = pair(lab, &container, family, 8000)?;
    let (out, back) = (octets(3_000_000, 11), octets(3_000_000, 12));
    thread::scope(|scope| {
        let mut writers = Vec::new();
        for (stream, octets) in [(&near, &out), (&far, &back)] {
            let mut stream = stream.try_clone().unwrap();
            writers.push(scope.spawn(move || {
                stream.write_all(octets)?;
                stream.shutdown(Shutdown::Write)
            }));
        }
        let reader = scope.spawn(|| rest(&mut far));
        let came_back = rest(&mut near)?;
        let came_out = reader.join().unwrap()?;
        for writer in writers {
            writer.join().unwrap().map_err(|error| format!("write: {error}"))?;
        }
        ensure!(came_out == out, "out: {} octets of {}", came_out.len(), out.len());
        ensure!(came_back == back, "back: {} octets of {}", came_back.len(), back.len());
        Ok(())
    })
}

/// FTP's and SIP's own ports, and the very addresses a gateway for them would rewrite.
fn payload_with_addresses_in_it_is_left_alone(lab: &Lab, family: Family) -> Verdict {
    let container = lab.container(&format!("c{family:?}"));
    let addr = container.addr(family);
    let (mut near, mut far) = pair(lab, &container, family, 21)?;
    let port = match family {
        Family::V4 => format!("PORT {},156,64\r\n", addr.to_string().replace('.', ",")),
        Family::V6 => format!("EPRT |2|{addr}|40000|\r\n"),
    };
    near.write_all(port.as_bytes()).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let came = rest(&mut far)?;
    ensure!(came == port.as_bytes(), "{:?} came", String::from_utf8_lossy(&came));
    let inside = lab.by_hand(&container)?;
    let outside = lab.outsider(66);
    let invite = format!(
        "INVITE sip:b@{} SIP/2.0\r\nVia: SIP/2.0/UDP {addr}:5060\r\nContact: <sip:a@{addr}>\r\n\r\n",
        outside.addr(family)
    );
    inside.says(inside.at(family, 5060), outside.at(family, 5060), invite.as_bytes());
    outside.hears(invite.as_bytes()).map(drop)
}
