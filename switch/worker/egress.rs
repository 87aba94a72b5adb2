//! Departures: what a turn has decided is written to the ports' devices.
//!
//! Frames leave in order. A run of packets of one flow leaves as one frame where the device can cut it
//! (`datapath::coalesce`); a frame with work left undone is finished first where the device cannot.
//! A full or dead port costs only itself.

use std::io::IoSlice;

use datapath::coalesce::{self, MAX_RUN, Run};
use datapath::{
    Body, Departure, DropReason, OFFLOAD_HEADER_LEN, Offload, Offloads, Outbox, PortId, segment,
};
use nat::Zone;
use nix::errno::Errno;

use crate::burst::Burst;
use crate::nets::{Nets, PortQueue};
use crate::queue::{Queue, QueueError};

/// Octets of the longest headers a run's first frame has, offload header included.
const MAX_HEADERS: usize = OFFLOAD_HEADER_LEN + coalesce::MAX_HEADERS;

/// What writing needs besides the frames.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    scratch: Vec<u8>,
}

impl Egress {
    /// Writes every departure, counts it, and returns the ports whose device turned out to be gone.
    pub(crate) fn flush(
        &mut self,
        nets: &mut Nets,
        burst: &Burst,
        out: &mut Outbox,
    ) -> Vec<(Zone, PortId, QueueError)> {
        let mut failed = Vec::new();
        let mut index = 0;
        while let Some(departure) = out.departures().get(index).copied() {
            let Some(net) = nets.get_mut(&departure.zone) else {
                index += 1;
                continue;
            };
            let run = run_at(out.departures(), index, burst, &net.queues);
            let frames = run.map_or(1, |run| run.count());
            let departures = index..index + frames;
            index += frames;
            let counters = net.dp.counters(departure.to).unwrap_or(net.dp.gateway_counters());
            let Some(Some(held)) = net.queues.get_mut(departure.to.index()) else {
                departures.for_each(|_| counters.not_sent(DropReason::NoPort));
                continue;
            };
            let sent = if held.dead {
                Err(QueueError::Gone(Errno::EBADFD))
            } else if let Some(run) = run {
                send_run(held, run, &out.departures()[departures.clone()], burst)
            } else {
                self.send_one(&held.queue, departure, burst, out)
            };
            let reason = match sent {
                Ok(()) => {
                    for departure in &out.departures()[departures] {
                        counters.sent(len_of(departure, burst));
                    }
                    continue;
                }
                Err(QueueError::WouldBlock) => DropReason::EgressFull,
                Err(QueueError::Refused(_)) => DropReason::EgressDown,
                Err(error @ QueueError::Gone(_)) => {
                    if !held.dead {
                        failed.push((departure.zone, departure.to, error));
                    }
                    DropReason::EgressDown
                }
            };
            departures.for_each(|_| counters.not_sent(reason));
        }
        failed
    }

    fn send_one(
        &mut self,
        queue: &Queue,
        departure: Departure,
        burst: &Burst,
        out: &mut Outbox,
    ) -> Result<(), QueueError> {
        let offload = departure.offload;
        let with_header = match departure.body {
            Body::Received(place) => burst.with_header(usize::from(place)),
            Body::Built(built) => out.with_header(built, offload),
        };
        if queue.offloads() == Offloads::Header || offload == Offload::NONE {
            return queue.send(with_header);
        }
        let mut outcome = Ok(());
        let frame = &with_header[OFFLOAD_HEADER_LEN..];
        let cut = segment::segment(frame, offload, &mut self.scratch, &mut |plain| {
            if outcome.is_ok() {
                outcome = queue.send_plain(plain);
            }
        });
        cut.map_err(|_| QueueError::Refused(Errno::EINVAL)).and(outcome)
    }
}

/// The run of packets that begins at `index`, if there is one of two or more.
fn run_at(
    departures: &[Departure],
    index: usize,
    burst: &Burst,
    queues: &[Option<PortQueue>],
) -> Option<Run> {
    let first = received(departures, index)?;
    // Most departures are followed by none: look there first.
    received(departures, index + 1)?;
    let held = queues.get(departures[index].to.index()).and_then(Option::as_ref)?;
    if held.queue.offloads() != Offloads::Header {
        return None;
    }
    let first_frame = &burst.with_header(first)[OFFLOAD_HEADER_LEN..];
    let mut run = Run::start(first_frame, &departures[index].offload)?;
    if run.is_udp() && !held.datagram_runs {
        return None;
    }
    for next in index + 1..departures.len() {
        let Some(place) = received(departures, next) else { break };
        let frame = &burst.with_header(place)[OFFLOAD_HEADER_LEN..];
        let leaves_by = |departure: &Departure| (departure.zone, departure.to);
        if leaves_by(&departures[next]) != leaves_by(&departures[index])
            || !run.join(first_frame, frame, &departures[next].offload)
        {
            break;
        }
    }
    (run.count() > 1).then_some(run)
}

/// The place of a received frame that leaves by one port only: of a flooded one every copy is due whole.
fn received(departures: &[Departure], index: usize) -> Option<usize> {
    let body = departures.get(index)?.body;
    let Body::Received(place) = body else { return None };
    let same = |other: Option<usize>| {
        other.and_then(|other| departures.get(other)).is_some_and(|other| other.body == body)
    };
    let flooded = same(index.checked_sub(1)) || same(index.checked_add(1));
    (!flooded).then_some(usize::from(place))
}

/// Writes a run as one frame: the first one's headers, made the run's, and everybody's payload.
fn send_run(
    held: &mut PortQueue,
    run: Run,
    departures: &[Departure],
    burst: &Burst,
) -> Result<(), QueueError> {
    let place_of = |departure: &Departure| match departure.body {
        Body::Received(place) => usize::from(place),
        Body::Built(_) => unreachable!("a run is made of received frames"),
    };
    let first = place_of(&departures[0]);
    let payload_at = OFFLOAD_HEADER_LEN + run.payload_at();
    let mut headers = [0; MAX_HEADERS];
    let headers = &mut headers[..payload_at];
    headers.copy_from_slice(&burst.with_header(first)[..payload_at]);
    let (offload_header, frame_headers) =
        headers.split_first_chunk_mut().expect("the headers begin with the offload header");
    run.finish(frame_headers, departures[0].offload).emit(offload_header);

    let mut pieces = [IoSlice::new(&[]); MAX_RUN + 1];
    pieces[0] = IoSlice::new(headers);
    for (piece, departure) in pieces[1..].iter_mut().zip(departures) {
        *piece = IoSlice::new(&burst.with_header(place_of(departure))[payload_at..]);
    }
    match held.queue.send_pieces(&pieces[..=departures.len()]) {
        Err(QueueError::Refused(Errno::EINVAL)) if run.is_udp() => {
            // A kernel that cannot cut datagrams: one by one then, now and from now on.
            held.datagram_runs = false;
            departures
                .iter()
                .try_for_each(|departure| held.queue.send(burst.with_header(place_of(departure))))
        }
        sent => sent,
    }
}

fn len_of(departure: &Departure, burst: &Burst) -> usize {
    match departure.body {
        Body::Received(place) => burst.with_header(usize::from(place)).len() - OFFLOAD_HEADER_LEN,
        Body::Built(built) => built.len(),
    }
}
