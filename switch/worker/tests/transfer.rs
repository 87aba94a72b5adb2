//! Octets end to end through the relay, compared one by one: over ways that lose, repeat and reorder
//! frames, with readers that pause, with many connections at once.

mod lab;
mod way;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use lab::{Lab, NET, WORLD, WORLD6, at, wait_for};
use netns::{Kind, Netns};
use nix::sys::socket::{setsockopt, sockopt};
use way::Odds;

/// Longest silence of one side of a transfer.
const SILENCE: Duration = Duration::from_secs(60);

/// Octets repeat after so many: a prime, so that no octets of a transfer stand in for others.
const PERIOD: usize = 1_000_003;

/// What both sides know of what is sent.
fn period() -> Arc<[u8]> {
    (0..PERIOD).map(|n| (n.wrapping_mul(2_654_435_761) >> 9).to_le_bytes()[0]).collect()
}

fn send(mut stream: &TcpStream, octets: &[u8], total: usize, sent: &AtomicUsize) {
    let mut done = 0;
    while done < total {
        let start = done % PERIOD;
        let end = PERIOD.min(start + (total - done)).min(start + (64 << 10));
        let wrote = stream.write(&octets[start..end]).unwrap_or_else(|error| {
            panic!("after {done} of {total} octets: {error}");
        });
        done += wrote;
        sent.store(done, Relaxed);
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Receives until the end; at each of `pauses` it reads no further until the sender stands still, too.
fn receive(
    mut stream: &TcpStream,
    octets: &[u8],
    total: usize,
    sent: &AtomicUsize,
    pauses: &[usize],
) {
    let mut pauses = pauses.iter().peekable();
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    loop {
        if pauses.next_if(|pause| **pause <= done).is_some() {
            stand_still(sent);
        }
        let got = stream.read(&mut buffer).unwrap_or_else(|error| {
            panic!("after {done} of {total} octets: {error}");
        });
        if got == 0 {
            assert_eq!(done, total, "octets before the end");
            return;
        }
        let start = done % PERIOD;
        let first = got.min(PERIOD - start);
        let same = buffer[..first] == octets[start..start + first]
            && buffer[first..got] == octets[..got - first];
        assert!(same, "octets differ behind {done}");
        done += got;
    }
}

/// Waits until the sender has written nothing for a while: all queues between are full.
fn stand_still(sent: &AtomicUsize) {
    let mut before = (sent.load(Relaxed), 0);
    wait_for("the sender to stand still", || {
        let now = sent.load(Relaxed);
        before = if now == before.0 { (now, before.1 + 1) } else { (now, 0) };
        before.1 > 60
    });
}

/// What one side of a connection does: both directions at once.
#[derive(Clone)]
struct Side {
    octets: Arc<[u8]>,
    send: usize,
    expect: usize,
    /// How far this side, and the other, got with sending.
    sent: [Arc<AtomicUsize>; 2],
    pauses: Vec<usize>,
}

impl Side {
    fn exchange(&self, stream: &TcpStream) {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream.set_write_timeout(Some(SILENCE)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| send(stream, &self.octets, self.send, &self.sent[0]));
            receive(stream, &self.octets, self.expect, &self.sent[1], &self.pauses);
        });
    }
}

/// Sends `up` octets to the world and `down` from it, over one connection, by the container's
/// congestion control `control`.
fn transfer(
    lab: &Lab,
    client: &Netns,
    (addr, port): (&str, u16),
    [up, down]: [usize; 2],
    control: &str,
    pauses: &[usize],
) {
    let listener = lab.world.with(|| TcpListener::bind(at(addr, port))).unwrap();
    let [one, other] = [Arc::<AtomicUsize>::default(), Arc::default()];
    let near = Side {
        octets: period(),
        send: up,
        expect: down,
        sent: [Arc::clone(&one), Arc::clone(&other)],
        pauses: pauses.to_vec(),
    };
    let far = Side { send: down, expect: up, sent: [other, one], ..near.clone() };
    let server = thread::spawn(move || far.exchange(&listener.accept().unwrap().0));
    let stream = client.with(|| TcpStream::connect(at(addr, port))).unwrap();
    if setsockopt(&stream, sockopt::TcpCongestion, &control.into()).is_err() {
        eprintln!("SKIP: congestion control {control} is not to be had");
    }
    near.exchange(&stream);
    server.join().unwrap();
}

fn wait_until_forgotten(lab: &Lab) {
    wait_for("the flows to be forgotten", || lab.switch.flows(Some(NET)).is_empty());
}

/// Both directions over a bad way.
fn over_a_bad_way(kind: Kind, workers: usize, control: &str, odds: Odds) {
    if !lab::possible() {
        return;
    }
    let lab = Lab::new(workers);
    let (container, _way) = way::container(&lab, 10, kind, 0x5eed + workers as u64, odds);
    transfer(&lab, &container.netns, (WORLD, 5000), [24_000_001, 24_000_003], control, &[]);
    transfer(&lab, &container.netns, (WORLD6, 5001), [1_000_001, 3_000_003], control, &[]);
}

/// Frames of up to 64 KB: each loss is a large one.
const FEW_LARGE: Odds = Odds { lost: 15, twice: 15, late: 30 };

/// Frames of one segment.
const MANY_SMALL: Odds = Odds { lost: 5, twice: 5, late: 10 };

#[test]
fn octets_arrive_over_a_bad_way_with_offloads_by_cubic() {
    over_a_bad_way(Kind::Tap, 1, "cubic", FEW_LARGE);
}

#[test]
fn octets_arrive_over_a_bad_way_with_offloads_by_reno_and_four_workers() {
    over_a_bad_way(Kind::Tap, 4, "reno", FEW_LARGE);
}

#[test]
fn octets_arrive_over_a_bad_way_segment_by_segment_by_reno() {
    over_a_bad_way(Kind::TapPlain, 1, "reno", MANY_SMALL);
}

#[test]
fn octets_arrive_over_a_bad_way_segment_by_segment_by_cubic_and_four_workers() {
    over_a_bad_way(Kind::TapPlain, 4, "cubic", MANY_SMALL);
}

#[test]
fn readers_that_pause_lose_nothing() {
    if !lab::possible() {
        return;
    }
    let pauses = [0, 10_000_000];
    for kind in [Kind::Tap, Kind::TapPlain, Kind::Veth] {
        let lab = Lab::new(1);
        let container = lab.container(10, kind);
        let total = [40_000_001, 40_000_003];
        transfer(&lab, &container.netns, (WORLD, 5000), total, "cubic", &pauses);
        wait_until_forgotten(&lab);
    }
    let lab = Lab::new(1);
    let (container, _way) = way::container(&lab, 10, Kind::Tap, 0x5eed, FEW_LARGE);
    transfer(&lab, &container.netns, (WORLD, 5000), [24_000_001; 2], "cubic", &pauses);
}

#[test]
fn many_connections_at_once_keep_their_octets_apart() {
    if !lab::possible() {
        return;
    }
    for kind in [Kind::Tap, Kind::TapPlain, Kind::Veth] {
        for workers in [1, 4] {
            let lab = Lab::new(workers);
            let container = lab.container(10, kind);
            thread::scope(|scope| {
                for n in 0..8 {
                    let (lab, netns) = (&lab, &container.netns);
                    let (addr, control) =
                        if n % 2 == 0 { (WORLD, "cubic") } else { (WORLD6, "reno") };
                    let total = [2_500_001 + usize::from(n), 2_500_003];
                    scope.spawn(move || {
                        transfer(lab, netns, (addr, 5000 + n), total, control, &[]);
                    });
                }
            });
            wait_until_forgotten(&lab);
        }
    }
}
