//! Many at once, and one that takes all it can get.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Family, Lab, accept, connect, listen, udp};
use crate::mapping::map;
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "PRODUCT 5" ANY a_burst_of_a_thousand_questions_is_answered;
        "U11" V4 three_thousand_quick_connections_all_carry;
        "6888-4" ANY what_one_container_takes_is_not_anothers;
    }
}

/// As resolvers ask: each question from a port of its own, the answer within the burst.
fn a_burst_of_a_thousand_questions_is_answered(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let server = udp(&lab.outside, family.outside(2), 53);
    let peer = SocketAddr::new(family.outside(2), 53);
    let done = AtomicBool::new(false);
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 600];
            while !done.load(Relaxed) {
                if let Ok((len, from)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(&buffer[..len], from);
                }
            }
        });
        let mut open: HashSet<u16> = (33_000..34_000).collect();
        let end = Instant::now() + crate::patience();
        // A resolver asks again what was lost.
        while !open.is_empty() && Instant::now() < end {
            for port in &open {
                inside.says(inside.at(family, *port), peer, &port.to_be_bytes());
            }
            while let Some(packet) =
                inside.wire.within(Duration::from_millis(400), |packet| packet.from() == Some(peer))
            {
                let port = packet.to().unwrap().port();
                if packet.datagram() == Some(&port.to_be_bytes()) {
                    open.remove(&port);
                }
                if open.is_empty() {
                    break;
                }
            }
        }
        done.store(true, Relaxed);
        ensure!(open.is_empty(), "{} of 1000 have no answer", open.len());
        Ok(())
    })
}

fn three_thousand_quick_connections_all_carry(lab: &Lab, family: Family) -> Verdict {
    const THREADS: usize = 10;
    const EACH: usize = 300;
    let container = lab.container(&format!("c{family:?}"));
    let listener = listen(&lab.outside, family.outside(2), 8000);
    let to = SocketAddr::new(family.outside(2), 8000);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            for _ in 0..THREADS * EACH {
                let (mut stream, _) = accept(&listener)?;
                let mut octets = [0; 4];
                stream.read_exact(&mut octets).map_err(|error| format!("server: {error}"))?;
                stream.write_all(&octets).map_err(|error| format!("server: {error}"))?;
            }
            Ok::<_, String>(())
        });
        let client = |thread: usize| {
            for n in 0..EACH {
                let number = u32::try_from(thread * EACH + n).unwrap().to_be_bytes();
                let mut stream = connect(&container.netns, container.at(family, 0), to)
                    .map_err(|error| format!("connection {n}: {error}"))?;
                stream.write_all(&number).map_err(|error| format!("write: {error}"))?;
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).map_err(|error| format!("read: {error}"))?;
                ensure!(answer == number, "another's answer: {answer:?} for {number:?}");
            }
            Ok(())
        };
        let clients: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || client(n))).collect();
        let mut verdict = Ok(());
        for client in clients {
            verdict = verdict.and(client.join().unwrap());
        }
        verdict?;
        server.join().unwrap()
    })
}

/// Every port of one container's, to many places, while another just wants one.
fn what_one_container_takes_is_not_anothers(lab: &Lab, family: Family) -> Verdict {
    let greedy = lab.insider(&format!("a{family:?}"))?;
    let modest = lab.insider(&format!("b{family:?}"))?;
    let outside = lab.outsider(66);
    let own = modest.at(family, 53_000);
    let before = map(&modest, own, &outside, outside.at(family, 9000))?;
    for port in 1024..=u16::MAX {
        greedy.says(greedy.at(family, port), outside.at(family, 9000), b"mine");
        if port % 512 == 0 {
            outside.wire.forget();
        }
    }
    outside.wire.forget();
    // One that there was, and a new one.
    let again = map(&modest, own, &outside, outside.at(family, 9000))?;
    ensure!(again == before, "{before} was taken away: {again}");
    map(&modest, modest.at(family, 53_001), &outside, outside.at(family, 9000))?;
    // What the two had is not the next family's to bear.
    lab.end_containers();
    Ok(())
}
