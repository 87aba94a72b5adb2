//! How long silence is borne: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 5508 REQ-2.
//!
//! The defaults are read from the table of flows; that a timer does what it says is seen with short ones.

use std::thread;
use std::time::{Duration, Instant};

use crate::conn::Conn;
use crate::errors::{HOST, error};
use crate::lab::{Family, Lab, Station};
use crate::mapping::{answered, map};
use crate::packet::{Packet, SYN, Segment};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U5" ANY the_times_are_the_rfcs;
        "U6" ANY what_goes_out_keeps_a_mapping("--timeouts", "rfc,udp-unreplied=3,udp-stream=3");
        "U5" ANY a_mapping_lasts_its_time_and_no_longer("--timeouts", "rfc,udp-unreplied=3,udp-stream=3");
        "U6" ANY what_comes_in_does_not_keep_a_mapping("--timeouts", "rfc,udp-unreplied=3,udp-stream=3");
        "I6" ANY errors_do_not_keep_a_mapping("--timeouts", "rfc,udp-unreplied=3,udp-stream=3");
        "I2" ANY a_question_lasts_its_time_and_no_longer("--timeouts", "rfc,icmp=3");
    }
    Raw {
        "T5" ANY a_silent_connection_lasts_its_time("--timeouts", "rfc,tcp-established=3");
        "T5" ANY an_attempt_lasts_its_time("--timeouts", "rfc,tcp-syn-sent=3");
    }
}

/// How much later than said a mapping may go: it is looked for now and then.
const LATE: Duration = Duration::from_secs(4);

/// A mapping of three seconds.
struct Mapping<'s> {
    inside: &'s Station,
    outside: &'s Station,
    family: Family,
    mapped: std::net::SocketAddr,
    number: u32,
}

impl<'s> Mapping<'s> {
    fn new(inside: &'s Station, outside: &'s Station, family: Family) -> Result<Self, String> {
        let (own, peer) = (inside.at(family, 55_000), outside.at(family, 9000));
        let mapped = map(inside, own, outside, peer)?;
        Ok(Self { inside, outside, family, mapped, number: 0 })
    }

    /// Whether a datagram comes in by it, now.
    fn is_open(&mut self) -> bool {
        self.number += 1;
        let data = format!("in {}", self.number);
        let from = self.outside.at(self.family, 9000);
        self.outside.says(from, self.mapped, data.as_bytes());
        let wanted = |packet: &Packet| packet.datagram() == Some(data.as_bytes());
        self.inside.wire.within(Duration::from_millis(250), wanted).is_some()
    }

    /// Does something every quarter of a second until the mapping is over; returns how long that took.
    fn closes(&mut self, mut meanwhile: impl FnMut(&Self)) -> Result<Duration, String> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs(3) + LATE;
        while self.is_open() {
            ensure!(Instant::now() < end, "still open after {:?}", begin.elapsed());
            meanwhile(self);
            thread::sleep(Duration::from_millis(250));
        }
        Ok(begin.elapsed())
    }
}

fn a_mapping_lasts_its_time_and_no_longer(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let mut mapping = Mapping::new(&inside, &outside, family)?;
    ensure!(mapping.is_open(), "closed from the first");
    let mut mapping = Mapping::new(&inside, &outside, family)?;
    // Nothing at all goes either way; what would come is looked at once.
    thread::sleep(Duration::from_millis(2200));
    ensure!(mapping.is_open(), "closed before its time");
    mapping.closes(|_| {}).map(drop)
}

fn what_goes_out_keeps_a_mapping(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 55_000), outside.at(family, 9000));
    let mapped = map(&inside, own, &outside, peer)?;
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(1000));
        ensure!(map(&inside, own, &outside, peer)? == mapped, "another mapping");
    }
    answered(&inside, own, &outside, peer, mapped)
}

fn what_comes_in_does_not_keep_a_mapping(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let mut mapping = Mapping::new(&inside, &outside, family)?;
    let lasted = mapping.closes(|_| {})?;
    ensure!(lasted > Duration::from_millis(1500), "closed after {lasted:?}");
    Ok(())
}

fn errors_do_not_keep_a_mapping(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let mut mapping = Mapping::new(&inside, &outside, family)?;
    mapping
        .closes(|mapping| {
            let about = Packet::udp(mapping.mapped, outside.at(family, 9000), b"quoted").octets();
            outside.wire.send(&error(outside.addr(family), HOST, 0, &about));
            // And the inside's own about what comes in: RFC 7857 8.
            let came = Packet::udp(outside.at(family, 9000), inside.at(family, 55_000), b"came");
            inside.wire.send(&error(inside.addr(family), HOST, 0, &came.octets()));
        })
        .map(drop)
}

fn a_question_lasts_its_time_and_no_longer(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.addr(family), outside.addr(family));
    inside.wire.send(&Packet::echo(own, peer, true, 555, 1, b"question"));
    let question = |packet: &Packet| packet.dst == peer && packet.echo_parts().is_some();
    let request = outside.wait("the question", question)?;
    let id = request.echo_parts().unwrap().0;
    let answer = |seq| Packet::echo(peer, request.src, false, id, seq, b"question");
    let came = |seq| {
        let wanted = |p: &Packet| p.echo_parts().is_some_and(|(_, found, _)| found == seq);
        inside.wire.within(Duration::from_millis(250), wanted).is_some()
    };
    thread::sleep(Duration::from_millis(2000));
    outside.wire.send(&answer(1));
    ensure!(came(1), "over before its time");
    let end = Instant::now() + Duration::from_secs(3) + LATE;
    for seq in 2.. {
        outside.wire.send(&answer(seq));
        if !came(seq) {
            break;
        }
        ensure!(Instant::now() < end, "still open");
        thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

/// Seconds left of the one flow with these words, by the table.
fn left(lab: &Lab, words: &[&str]) -> Result<u64, String> {
    let listed = lab.scene.run(["conntrack"]).succeeded().stdout;
    let line = listed.lines().find(|line| words.iter().all(|word| line.contains(word)));
    let line = line.ok_or_else(|| format!("no flow of {words:?}: {listed}"))?;
    let seconds = line.split_whitespace().nth(2).and_then(|word| word.parse().ok());
    seconds.ok_or_else(|| format!("no time: {line}"))
}

fn the_times_are_the_rfcs(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    ensure!(lab.subject.is_pontoon(), "its table is not read here");
    let (own, peer) = (inside.at(family, 55_100), outside.at(family, 9000));
    let near = |found: u64, due: u64| (due - 20..=due).contains(&found);
    let mapped = map(&inside, own, &outside, peer)?;
    let found = left(lab, &["udp", "sport=55100", "[UNREPLIED]"])?;
    ensure!(near(found, 120), "a datagram without an answer: {found} s");
    answered(&inside, own, &outside, peer, mapped)?;
    map(&inside, own, &outside, peer)?;
    let found = left(lab, &["udp", "sport=55100"])?;
    ensure!(near(found, 300), "a stream of datagrams: {found} s");
    let dns = inside.at(family, 55_101);
    let mapped = map(&inside, dns, &outside, outside.at(family, 53))?;
    answered(&inside, dns, &outside, outside.at(family, 53), mapped)?;
    let found = left(lab, &["udp", "sport=55101"])?;
    ensure!(found <= 10, "an answered question for a name: {found} s");
    inside.wire.send(&Packet::echo(own.ip(), peer.ip(), true, 556, 1, b"question"));
    outside.wait("the question", |packet| packet.echo_parts().is_some())?;
    let found = left(lab, &["icmp", "id=556"])?;
    ensure!(near(found, 60), "an echo: {found} s");
    let own = inside.at(family, 55_102);
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)));
    outside.wait("a SYN", |packet| packet.segment().is_some())?;
    let found = left(lab, &["tcp", "sport=55102"])?;
    ensure!(near(found, 240), "an attempt to connect: {found} s");
    let own = inside.at(family, 55_103);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    conn.lives()?;
    let found = left(lab, &["tcp", "ESTABLISHED", "sport=55103"])?;
    ensure!(near(found, 86_400), "a connection: {found} s");
    Ok(())
}

fn a_silent_connection_lasts_its_time(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let own = inside.at(family, 55_200);
    let mut conn = Conn::open(&inside, own, &outside, outside.at(family, 80))?;
    thread::sleep(Duration::from_millis(2000));
    conn.lives()?;
    let end = Instant::now() + Duration::from_secs(3) + LATE;
    loop {
        // Its own keep-alive does not count: it is the outside that asks, and nobody answers.
        let probe = Segment::new(crate::packet::ACK, conn.outside.seq, conn.outside.ack);
        thread::sleep(Duration::from_millis(3500));
        conn.outside.send(&probe);
        let seq = probe.seq;
        let came = inside.wire.within(Duration::from_millis(250), |packet| {
            packet.to() == Some(own) && packet.segment().is_some_and(|s| s.seq == seq)
        });
        if came.is_none() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "still open");
    }
}

fn an_attempt_lasts_its_time(lab: &Lab, family: Family) -> Verdict {
    let inside = lab.insider(&format!("c{family:?}"))?;
    let outside = lab.outsider(66);
    let (own, peer) = (inside.at(family, 55_300), outside.at(family, 80));
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)));
    let syn = outside.wait("a SYN", |packet| packet.to() == Some(peer))?;
    let mapped = syn.from().unwrap();
    let answer = Segment::new(SYN | crate::packet::ACK, 500, 2);
    thread::sleep(Duration::from_millis(2000));
    outside.wire.send(&Packet::tcp(peer, mapped, &answer));
    inside.wait("the answer", |packet| packet.from() == Some(peer))?;
    let own = inside.at(family, 55_301);
    inside.wire.send(&Packet::tcp(own, peer, &Segment::new(SYN, 1, 0)));
    let syn = outside.wait("a SYN", |p| p.to() == Some(peer) && p.from() != Some(mapped))?;
    thread::sleep(Duration::from_secs(3) + LATE);
    outside.wire.send(&Packet::tcp(peer, syn.from().unwrap(), &answer));
    let late = inside.wire.within(Duration::from_millis(300), |packet| packet.to() == Some(own));
    ensure!(late.is_none(), "let in: {late:?}");
    Ok(())
}
