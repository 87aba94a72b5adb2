//! New connections, as fast as they come, with the newest of them held open.
//!
//! A connection counts once an octet has come back over it: a forwarder that answers for a far side
//! it has not reached gains nothing.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Connections being opened at any time.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(3);
/// The same while nothing may be there to answer yet.
const GLANCE: Duration = Duration::from_millis(50);

/// Opens connections for as long as `lasting`, keeping the newest `held` of them.
pub(crate) fn connect(to: SocketAddr, lasting: Duration, held: usize) -> io::Result<Value> {
    let begin = Instant::now();
    let openers: Vec<_> = (0..AT_ONCE)
        .map(|_| thread::spawn(move || open_until(to, begin + lasting, held / AT_ONCE)))
        .collect();
    let (mut opened, mut failed) = (0, 0);
    for opener in openers {
        let (good, bad) = opener.join().map_err(|_| io::Error::other("an opener died"))?;
        opened += good;
        failed += bad;
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(json!({ "opened": opened, "failed": failed, "seconds": seconds }))
}

/// Tries until a connection carries an octet there and back, or `lasting` is over.
pub(crate) fn reach(to: SocketAddr, lasting: Duration) -> io::Result<Value> {
    let begin = Instant::now();
    loop {
        match open(to, GLANCE) {
            Ok(_) => return Ok(json!({ "seconds": begin.elapsed().as_secs_f64() })),
            Err(error) if begin.elapsed() > lasting => return Err(error),
            // A refusal comes at once; asking again without end would be all that runs.
            Err(_) => thread::sleep(Duration::from_micros(500)),
        }
    }
}

fn open_until(to: SocketAddr, end: Instant, held: usize) -> (u64, u64) {
    let (mut kept, mut good, mut bad) = (VecDeque::new(), 0, 0);
    while Instant::now() < end {
        match open(to, PATIENCE) {
            Ok(stream) => {
                good += 1;
                kept.push_back(stream);
            }
            Err(_) => bad += 1,
        }
        if kept.len() > held {
            kept.pop_front();
        }
    }
    (good, bad)
}

fn open(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}
