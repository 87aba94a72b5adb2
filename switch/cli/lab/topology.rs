//! What there is before pontoon does anything: a host with one card, and the world at its other end.
//!
//! ```text
//!   host  eth0 10.0.2.15/24 ═══ 10.0.2.2/24 eth0  world  223.5.5.5/32
//!         default via 10.0.2.2                    forwards, and knows no way to 172.18.0.0/16
//! ```

use std::fs;
use std::str::FromStr;

use netns::{Error, Target, link};

/// The host's address.
pub(crate) const HOST: &str = "10.0.2.15";

/// The router's address, which is the client's address, too.
pub(crate) const ROUTER: &str = "10.0.2.2";

/// A server of the Internet.
pub(crate) const SERVER: &str = "223.5.5.5";

/// Name of the namespace beyond the host's card.
pub(crate) const WORLD: &str = "world";

/// Wires the calling thread's namespace, which becomes the host, to the namespace [`WORLD`].
pub(crate) fn wire() -> Result<(), Error> {
    let host = Target::Current.open()?;
    let world = Target::Name(WORLD.to_owned()).open()?;
    link::create_veth_pair("eth0", &host, "eth0", &world)?;
    world.enter(|| {
        set_up("eth0", ROUTER, 24)?;
        link::add_address("lo", fixed(&format!("{SERVER}/32")))?;
        // So that it says "net unreachable" of what it knows no way to, as a router does.
        write("/proc/sys/net/ipv4/ip_forward", "1")
    })?;
    set_up("eth0", HOST, 24)?;
    link::add_route(fixed("0.0.0.0/0"), fixed(ROUTER))?;
    // The host lets its users ping, as distributions do; the only user here is root.
    write("/proc/sys/net/ipv4/ping_group_range", "0 0")
}

fn set_up(ifname: &str, address: &str, prefix_len: u8) -> Result<(), Error> {
    link::no_own_link_local(ifname)?;
    link::add_address(ifname, fixed(&format!("{address}/{prefix_len}")))?;
    link::set_up(ifname)
}

/// Reads one of the texts above.
fn fixed<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("{text} is an address or a prefix"))
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| {
        let hint =
            "in a container, its runtime may forbid it: --security-opt systempaths=unconfined";
        Error::Step { what: format!("write {path} ({hint})"), source }
    })
}
