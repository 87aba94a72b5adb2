//! One message at a time, there and back, each round trip noted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Transport, any};

/// How long an answer may take before its message counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// Round trips before the first that counts: connecting, neighbours and caches.
const WARM_UP: usize = 20;

/// Percentiles of the round trip of `size` octets, in microseconds.
pub(crate) fn ping(
    transport: Transport,
    to: SocketAddr,
    lasting: Duration,
    size: usize,
) -> io::Result<Value> {
    let mut message = vec![0x5a; size];
    let (mut trips, lost) = match transport {
        Transport::Tcp => {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            trips(lasting, || {
                stream.write_all(&message)?;
                stream.read_exact(&mut message).map(|()| true)
            })?
        }
        Transport::Udp => {
            let socket = UdpSocket::bind(any(to))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            trips(lasting, || {
                socket.send(&message)?;
                match socket.recv(&mut message) {
                    Ok(_) => Ok(true),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock) => Ok(false),
                    Err(e) => Err(e),
                }
            })?
        }
    };
    trips.sort_unstable();
    let at = |share: f64| percentile(&trips, share).map(|trip| trip.as_secs_f64() * 1e6);
    Ok(json!({
        "p50": at(0.50), "p99": at(0.99), "p999": at(0.999), "trips": trips.len(), "lost": lost,
    }))
}

/// Every round trip's time, but for the first few, and how many had no answer.
fn trips(
    lasting: Duration,
    mut trip: impl FnMut() -> io::Result<bool>,
) -> io::Result<(Vec<Duration>, usize)> {
    let mut lost = 0;
    for _ in 0..WARM_UP {
        lost += usize::from(!trip()?);
    }
    // A path that answers nothing would otherwise take its patience for each message.
    if lost == WARM_UP {
        return Err(ErrorKind::TimedOut.into());
    }
    let (begin, mut times) = (Instant::now(), Vec::with_capacity(1 << 16));
    lost = 0;
    while begin.elapsed() < lasting {
        let before = Instant::now();
        if trip()? {
            times.push(before.elapsed());
        } else {
            lost += 1;
        }
    }
    Ok((times, lost))
}

/// The value below which `share` of the sorted `times` lie.
fn percentile(times: &[Duration], share: f64) -> Option<Duration> {
    let last = times.len().checked_sub(1)?;
    // Truncation is the point: the index of the nearest rank below.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (last as f64 * share) as usize;
    times.get(rank).copied()
}
