//! Servers in a namespace, each waiting to be asked before the test goes on.

use std::path::Path;

use netns::Netns;

use super::{Running, Scene};

/// A DNS server for one name, over UDP and TCP, that logs who asked: no more of RFC 1035 than `dig`
/// needs.
const DNS: &str = r#"
import socket, struct, sys, threading
host, addr4, addr6 = sys.argv[1:4]
def answer(query):
    at = 12
    while query[at]: at += 1 + query[at]
    question = query[12:at + 5]
    kind = struct.unpack('>H', query[at + 1:at + 3])[0]
    data = {1: lambda: socket.inet_pton(socket.AF_INET, addr4),
            28: lambda: socket.inet_pton(socket.AF_INET6, addr6),
            16: lambda: b''.join(bytes([250]) + b'x' * 250 for _ in range(4))}[kind]()
    head = query[:2] + struct.pack('>HHHHH', 0x8580, 1, 1, 0, 0)
    return head + question + struct.pack('>HHHIH', 0xc00c, kind, 1, 60, len(data)) + data
def over_udp(sock):
    while True:
        query, client = sock.recvfrom(4096)
        print('udp query from', client[0], flush=True)
        sock.sendto(answer(query), client)
def over_tcp(sock):
    while True:
        peer, client = sock.accept()
        print('tcp query from', client[0], flush=True)
        length = struct.unpack('>H', peer.recv(2, socket.MSG_WAITALL))[0]
        reply = answer(peer.recv(length, socket.MSG_WAITALL))
        peer.sendall(struct.pack('>H', len(reply)) + reply)
        peer.close()
family = socket.AF_INET6 if ':' in host else socket.AF_INET
udp = socket.socket(family, socket.SOCK_DGRAM); udp.bind((host, 53))
tcp = socket.socket(family, socket.SOCK_STREAM); tcp.bind((host, 53)); tcp.listen()
print('serving', flush=True)
threading.Thread(target=over_udp, args=(udp,), daemon=True).start()
over_tcp(tcp)
"#;

impl Scene {
    /// Python's web server on every address of `netns`, both families.
    #[track_caller]
    pub(crate) fn web_server(&self, netns: &Netns, port: u16, folder: &Path) -> Running {
        let mut command = self.as_root("python3");
        let port = port.to_string();
        command.args(["-m", "http.server", &port, "--bind", "::", "--directory"]).arg(folder);
        let server = Running::start(netns, command);
        server.says("Serving HTTP on");
        server
    }

    /// A DNS server at `addr`, to which every name is the world.
    #[track_caller]
    pub(crate) fn dns_server(&self, netns: &Netns, addr: &str) -> Running {
        let mut command = self.as_root("python3");
        command.args(["-c", DNS, addr, super::WORLD, super::WORLD6]);
        let server = Running::start(netns, command);
        server.says("serving");
        server
    }

    /// The same as the command of `pontoon run` with these options.
    #[track_caller]
    pub(crate) fn dns_server_inside(&self, options: &[&str], addr: &str) -> Running {
        let mut command = self.pontoon(["run"]);
        command.args(options).args(["--", "python3", "-c", DNS, addr, super::WORLD, super::WORLD6]);
        let server = Running::start(&self.host, command);
        server.says("serving");
        server
    }

    /// `many.py` for everybody to run.
    pub(crate) fn many(&self) -> String {
        let file = self.file("many.py");
        std::fs::write(&file, include_str!("many.py")).unwrap();
        file.to_str().unwrap().to_owned()
    }
}
