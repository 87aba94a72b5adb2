//! Many octets towards a container: what RFC 6298, 6582 and 6675 ask of whoever sends them, and what
//! flows beside each other may expect.

mod lab;
mod station;

use std::io::Write;
use std::time::{Duration, Instant};

use lab::{Lab, PATIENCE, WORLD, at};
use station::{ACK, RST, Station, accept, listen, pattern, with_connection};

/// MSS 1460, window scale 7.
const SCALED: [u8; 8] = [2, 4, 0x05, 0xb4, 1, 3, 3, 7];
/// The same, and selective acknowledgments are understood.
const SACKS: [u8; 12] = [2, 4, 0x05, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2];

/// RFC 6298 §5: the timer runs from when the octets were sent; what goes the other way does not set it anew.
#[test]
fn traffic_upstream_does_not_hold_off_a_retransmission() {
    with_connection(&[], |_, mut connection, mut server| {
        server.write_all(&[7; 500]).unwrap();
        let first = connection.await_segment("the octets", |segment| !segment.data.is_empty());
        let deadline = Instant::now() + PATIENCE;
        let mut copies = 1;
        while copies < 3 {
            assert!(Instant::now() < deadline, "sent {copies} times while upstream went on");
            connection.push(b"upstream");
            while let Some(segment) = connection.next_within(Duration::from_millis(20)) {
                copies += u32::from(segment.seq == first.seq && !segment.data.is_empty());
            }
        }
    });
}

/// What of a download arrived at a station, and how often.
#[derive(Default)]
struct Arrived {
    runs: Vec<(usize, usize)>,
    octets: usize,
}

impl Arrived {
    /// Takes in `start..end`; says how much of it was there already.
    fn take(&mut self, start: usize, end: usize) -> usize {
        self.octets += end - start;
        let held =
            |runs: &[(usize, usize)]| runs.iter().map(|(start, end)| end - start).sum::<usize>();
        let before = held(&self.runs);
        self.runs.push((start, end));
        self.runs.sort_unstable();
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for (start, end) in self.runs.drain(..) {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        self.runs = joined;
        end - start - (held(&self.runs) - before)
    }

    fn in_order(&self) -> usize {
        self.runs.first().filter(|run| run.0 == 0).map_or(0, |run| run.1)
    }
}

/// Downloads `total` octets, losing those segments `lose` says by place. Returns octets that came again
/// needlessly.
fn download(options: &[u8], total: usize, mut lose: impl FnMut(usize) -> bool) -> usize {
    let mut again = 0;
    let expect = pattern(total);
    with_connection(options, |_, mut connection, mut server| {
        let octets = expect.clone();
        let sender = std::thread::spawn(move || {
            server.write_all(&octets).unwrap();
            server
        });
        let (base, sacks) = (connection.ack, options.len() == SACKS.len());
        connection.window = 8192;
        connection.send(ACK, &[]);
        let mut arrived = Arrived::default();
        while arrived.in_order() < total {
            let segment = connection.await_segment("octets", |segment| !segment.data.is_empty());
            let start = segment.seq.wrapping_sub(base) as usize;
            let end = start + segment.data.len();
            if lose(start) {
                continue;
            }
            assert!(segment.data == expect[start..end], "the octets at {start}");
            again += arrived.take(start, end);
            connection.ack = base.wrapping_add(u32::try_from(arrived.in_order()).unwrap());
            let mut answer = connection.segment(ACK, connection.seq, connection.ack, &[]);
            let beyond = arrived.runs.iter().filter(|run| run.0 > 0 && sacks);
            let edges: Vec<u8> = beyond
                .rev()
                .take(3)
                .flat_map(|run| [run.0, run.1])
                .flat_map(|edge| base.wrapping_add(u32::try_from(edge).unwrap()).to_be_bytes())
                .collect();
            if !edges.is_empty() {
                answer.options = vec![1, 1, 5, u8::try_from(2 + edges.len()).unwrap()];
                answer.options.extend(edges);
            }
            connection.station.send(connection.peer.ip(), &answer);
        }
        drop(sender.join().unwrap());
    });
    again
}

/// RFC 6675: what the container says it has is not sent again.
#[test]
fn only_what_was_lost_is_sent_again_to_a_container_that_tells() {
    // A station that gets no processor for a timeout cannot tell anything: so more than one chance.
    let again = (0..3).map(|_| {
        let mut places = vec![500_000, 1_500_000, 1_600_000, 2_900_000];
        download(&SACKS, 4_000_000, |start| {
            let lost = places.first().is_some_and(|place| start >= *place);
            if lost {
                places.remove(0);
            }
            lost
        })
    });
    let again: Vec<_> = again.take_while(|again| *again > 0).collect();
    assert!(again.len() < 3, "octets that had arrived came again: {again:?}");
}

/// RFC 6582 §3.2: one loss is recovered from once, even where the container does not say what it has.
#[test]
fn one_loss_is_recovered_from_once() {
    let again = (0..3).map(|_| {
        let mut lost = false;
        download(&SCALED, 4_000_000, |start| {
            start > 1_000_000 && !std::mem::replace(&mut lost, true)
        })
    });
    // The frame that was lost is asked for in parts, the last of which may be longer than what is left.
    let again: Vec<_> = again.take_while(|again| *again > 64 << 10).collect();
    assert!(again.len() < 3, "octets that had arrived came again: {again:?}");
}

/// A flow with much to do does not keep the others from their share.
#[test]
fn flows_with_much_to_do_have_equal_shares() {
    if !lab::possible() {
        return;
    }
    const FLOWS: u16 = 6;
    const TOTAL: usize = 48 << 20;
    let lab = Lab::new(1);
    let station = Station::new(&lab, 10);
    let listener = listen(&lab, WORLD);
    let mut connections = Vec::new();
    let mut servers = Vec::new();
    for n in 0..FLOWS {
        let mut connection = station.connect(at(WORLD, 5000), 4000 + n, &SCALED);
        connection.window = 2048;
        connections.push((connection, 0));
        servers.push(accept(&listener));
    }
    // Nothing comes before all are connected, or it would be passed over and lost.
    let writers: Vec<_> = servers
        .into_iter()
        .map(|mut server| {
            std::thread::spawn(move || {
                let octets = vec![0; 1 << 20];
                while server.write_all(&octets).is_ok() {}
            })
        })
        .collect();
    let mut got = 0;
    while got < TOTAL {
        let segment = station.await_segment("octets", |segment| !segment.data.is_empty());
        let (connection, share) = &mut connections[usize::from(segment.dst_port - 4000)];
        if segment.seq == connection.ack {
            let octets = segment.data.len();
            connection.ack = connection.ack.wrapping_add(u32::try_from(octets).unwrap());
            *share += octets;
            got += octets;
        }
        connection.send(ACK, &[]);
    }
    let shares: Vec<_> = connections.iter().map(|(_, share)| *share).collect();
    for (connection, _) in &connections {
        connection.send_at(RST, connection.seq, 0, &[]);
    }
    let fair = TOTAL / usize::from(FLOWS);
    assert!(shares.iter().all(|share| *share >= fair / 2), "{shares:?}");
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}
