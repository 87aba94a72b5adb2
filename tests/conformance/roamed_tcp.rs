//! Connections of a host that has another address now: what they were by the old one is over, and said to be.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::{Family, Lab, accept, connect, listen};
use crate::published::published;
use crate::roam::move_host;
use crate::{Verdict, ensure, probes};

probes! {
    Sockets {
        "PRODUCT 13" ANY a_connection_by_an_address_the_host_has_left_is_reset;
    }
}

/// The kernel would try for a quarter of an hour; a masquerading one has the container told by the far side,
/// to which the connection is another's now.
fn a_connection_by_an_address_the_host_has_left_is_reset(lab: &Lab, family: Family) -> Verdict {
    let container = published(lab, family);
    let listener = listen(&lab.outside, family.outside(2), 8000);
    let to = SocketAddr::new(family.outside(2), 8000);
    let out = || {
        let near = connect(&container.netns, container.at(family, 0), to);
        let near = near.map_err(|error| format!("connect: {error}"))?;
        Ok::<_, String>((near, accept(&listener)?))
    };
    let (mut writer, far) = out()?;
    let server = listen(&container.netns, container.addr(family), 80);
    let host = SocketAddr::new(lab.external(family), 8080);
    let client = connect(&lab.outside, SocketAddr::new(family.outside(2), 0), host)
        .map_err(|error| format!("client: {error}"))?;
    let (mut served, _) = accept(&server)?;
    let new = move_host(lab, family);
    let (mut near, (mut other, from)) = out()?;
    ensure!(from.ip() == new, "a new one is from {from}");
    near.write_all(b"!")
        .and_then(|()| other.read_exact(&mut [0]))
        .map_err(|e| format!("new: {e}"))?;
    // Each says something now and then, or waits to be told.
    let start = Instant::now();
    for stream in [&mut writer, &mut served] {
        stream.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
        let ended = loop {
            ensure!(start.elapsed() < Duration::from_secs(60), "nothing is said for a minute");
            if let Err(error) = stream.write_all(b"anybody there?") {
                break error.kind();
            }
            match stream.read(&mut [0]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => break error.kind(),
                Ok(_) => return Err("an orderly end".to_owned()),
            }
        };
        let resets = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        ensure!(resets.contains(&ended), "it ends by {ended:?}");
    }
    drop((far, client));
    Ok(())
}
