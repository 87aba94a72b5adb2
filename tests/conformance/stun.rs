//! What STUN finds out about the NAT: RFC 5780, by coturn's server and client.

use crate::lab::{Family, Lab};
use crate::net::{Running, clients};
use crate::{Verdict, ensure, probes};

probes! {
    Both {
        "U1" ANY stun_finds_an_endpoint_independent_mapping;
    }
}

fn stun_finds_an_endpoint_independent_mapping(lab: &Lab, family: Family) -> Verdict {
    if !clients(&["turnserver", "turnutils_natdiscovery"]) {
        return Ok(());
    }
    let (first, second) = (family.outside(2).to_string(), family.outside(3).to_string());
    let config = lab.scene.file("turnserver.conf");
    std::fs::write(&config, "# All of it is on the command line.\n").unwrap();
    let mut command = lab.scene.as_root("turnserver");
    command.arg("-c").arg(&config).args(["-L", &first, "-L", &second, "-E", &first]);
    command.args(["--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--no-auth"]);
    command.args(["--log-file", "stdout", "--pidfile"]);
    command.arg(lab.scene.file("turnserver.pid")).arg("--db").arg(lab.scene.file("turn.db"));
    let server = Running::start(&lab.outside, command);
    let container = lab.container(&format!("c{family:?}"));
    let ask = |option: &str| {
        lab.scene.run_in(&container.netns, "turnutils_natdiscovery", [option, first.as_str()])
    };
    // Its sockets are there before it says anything that can be waited for.
    let mut found = ask("-m");
    let end = std::time::Instant::now() + 3 * crate::patience();
    while std::time::Instant::now() < end {
        if found.stdout.contains("apping") || found.stderr.contains("apping") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        found = ask("-m");
    }
    let text = found.stdout.clone() + &found.stderr;
    ensure!(
        text.contains("NAT with Endpoint Independent Mapping!"),
        "mapping: {text}; the server: {:.3000}",
        server.written()
    );
    let text = ask("-f").stdout;
    ensure!(text.contains("Address Dependent Filtering!"), "filtering: {text}");
    Ok(())
}
