//! Which addresses of the host's its connections are from, and whether they are its own still.
//!
//! A socket whose address is gone neither sends nor hears, and the kernel gives it up after a quarter of an
//! hour, or two hours if it is idle (tcp(7), `tcp_retries2`, `tcp_keepalive_time`). A masquerading kernel has
//! forgotten such a connection at once, and its container is told by the next reset. So it is here, once the
//! host has been elsewhere for a while: one that comes back to an address soon keeps its connections.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use netns::datagram::source_towards;
use smoltcp::time::{Duration, Instant};

use crate::socket;

/// How long an address must be gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How often the host is asked for an address.
const LOOK: Duration = Duration::from_secs(5);

/// Addresses remembered, before all are asked for anew: as many as hosts have.
const MAX_HOMES: usize = 256;

/// The addresses one worker's connections are from.
#[derive(Debug, Default)]
pub(super) struct Homes(HashMap<IpAddr, Home>);

#[derive(Clone, Copy, Debug)]
struct Home {
    looked: Instant,
    /// Since when it is known to be gone.
    gone: Option<Instant>,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// The host has it, as far as is known.
    There,
    /// It is gone, and may come back.
    Away,
    /// It is gone, and the host speaks to that far side from another one.
    Left,
}

impl Homes {
    /// What is known of the address a connection with `far` is from.
    pub(super) fn stay(&mut self, local: IpAddr, far: SocketAddr, now: Instant) -> Stay {
        self.stay_if(local, now, is_gone, || {
            let elsewhere = socket::udp(local).and_then(|probe| source_towards(probe, far));
            elsewhere.is_ok_and(|from| from != local)
        })
    }

    fn stay_if(
        &mut self,
        local: IpAddr,
        now: Instant,
        is_gone: impl Fn(IpAddr) -> bool,
        is_elsewhere: impl Fn() -> bool,
    ) -> Stay {
        if self.0.len() >= MAX_HOMES {
            self.0.clear();
        }
        let never = Home { looked: Instant::ZERO, gone: None };
        let home = self.0.entry(local).or_insert(never);
        if home.looked + LOOK <= now {
            home.looked = now;
            home.gone = is_gone(local).then(|| home.gone.unwrap_or(now));
        }
        match home.gone {
            None => Stay::There,
            Some(since) if since + PATIENCE <= now && is_elsewhere() => Stay::Left,
            Some(_) => Stay::Away,
        }
    }
}

/// Whether the host has that address no more: bind(2), `EADDRNOTAVAIL`.
fn is_gone(addr: IpAddr) -> bool {
    UdpSocket::bind((addr, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_stays_away_is_left_and_only_for_another() {
        let addr: IpAddr = "198.51.100.1".parse().unwrap();
        let at = Instant::from_secs;
        let mut homes = Homes::default();
        let (yes, no) = (|| true, || false);
        assert_eq!(homes.stay_if(addr, at(100), |_| false, yes), Stay::There);
        assert_eq!(homes.stay_if(addr, at(101), |_| true, yes), Stay::There, "not asked yet");
        assert_eq!(homes.stay_if(addr, at(105), |_| true, yes), Stay::Away);
        assert_eq!(homes.stay_if(addr, at(110), |_| false, yes), Stay::There, "it came back");
        assert_eq!(homes.stay_if(addr, at(115), |_| true, yes), Stay::Away);
        assert_eq!(homes.stay_if(addr, at(3600), |_| true, no), Stay::Away, "nowhere else either");
        assert_eq!(homes.stay_if(addr, at(3601), |_| true, yes), Stay::Left);
    }

    #[test]
    fn the_host_is_asked_what_it_has() {
        for (addr, gone) in [("127.0.0.1", false), ("::1", false), ("192.0.2.77", true)] {
            assert_eq!(is_gone(addr.parse().unwrap()), gone, "{addr}");
        }
        let mut homes = Homes::default();
        let (local, far) = ("192.0.2.77".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        assert_eq!(homes.stay(local, far, Instant::from_secs(100)), Stay::Away);
        assert_eq!(homes.stay(local, far, Instant::from_secs(110)), Stay::Left);
    }
}
