//! What a container's own firewall refuses, by ICMP: the client outside is told, and does not wait.

use std::io::Read as _;
use std::net::SocketAddr;

use crate::lab::{Family, Lab, accept, connect, listen};
use crate::net::clients;
use crate::published::published;
use crate::{Subject, Verdict, ensure, probes};

probes! {
    Both {
        "S" ANY a_client_is_told_what_the_container_refuses_by_icmp;
    }
}

/// RFC 1122 4.2.3.9. Where the host's kernel has accepted by then, the connection is reset at once.
fn a_client_is_told_what_the_container_refuses_by_icmp(lab: &Lab, family: Family) -> Verdict {
    if !clients(&["nft"]) {
        return Ok(());
    }
    let container = published(lab, family);
    let listener = listen(&container.netns, container.addr(family), 80);
    let nft = |words: &str| {
        lab.scene.run_in(&container.netns, "nft", words.split(' ')).succeeded();
    };
    nft("add table inet wall");
    nft("add chain inet wall in { type filter hook input priority 0 ; }");
    let to = SocketAddr::new(lab.external(family), 8080);
    let from = SocketAddr::new(family.outside(2), 0);
    for what in ["port-unreachable", "host-unreachable", "admin-prohibited"] {
        nft(&format!("add rule inet wall in tcp dport 80 reject with icmpx type {what}"));
        let error = match connect(&lab.outside, from, to) {
            Ok(mut stream) if lab.subject != Subject::Raw => stream.read(&mut [0]).err(),
            connected => connected.err(),
        };
        // What errno each is, where it is heard of as such: `icmp_err_convert`.
        let code = error.as_ref().and_then(std::io::Error::raw_os_error);
        let due = [
            nix::libc::ECONNRESET,
            nix::libc::ECONNREFUSED,
            nix::libc::EHOSTUNREACH,
            nix::libc::EACCES,
        ];
        ensure!(
            code.is_some_and(|code| due.contains(&code)),
            "{what}: the client is told {error:?}"
        );
        nft("flush chain inet wall in");
    }
    // Nothing of that is remembered.
    let _stream = connect(&lab.outside, from, to).map_err(|error| format!("connect: {error}"))?;
    accept(&listener).map(drop)
}
