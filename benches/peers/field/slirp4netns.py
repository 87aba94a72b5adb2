"""slirp4netns: libslirp behind a TAP. Ports are published over its API socket.

The default MTU is 1500; `slirp4netns-65520` is what rootless container engines ask it for.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from ..topology import Failure, call, wait_for
from .peer import EGRESS, LOOPBACK, PUBLISHED, Peer, needed


class Slirp4netns(Peer):
    """One process for one namespace."""

    name = "slirp4netns"
    about = "slirp4netns, MTU 1500"
    paths = frozenset({EGRESS, PUBLISHED, LOOPBACK})
    programs = ("slirp4netns",)
    c1 = "192.0.2.100"  # the address it gives in the subnet
    mtu = 1500

    def version(self) -> str:
        return call([needed("slirp4netns"), "--version"]).splitlines()[0]

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        api = self.api
        self.site.start("host", needed("slirp4netns"), "--configure", f"--mtu={self.mtu}", "--cidr=192.0.2.0/24",
                        "--netns-type=path", f"--api-socket={api}", self.site.path("c1"), "eth0")
        wait_for("slirp4netns's API socket", api.exists)
        wait_for("slirp4netns's default route", lambda: "default" in self.site.ip("c1", "route"))

    @property
    def api(self) -> Path:
        return self.site.state / "api"

    def publish(self, transport: str, port: int) -> None:
        ask = {"execute": "add_hostfwd", "arguments": {
            "proto": transport, "host_addr": "0.0.0.0", "host_port": port, "guest_addr": self.c1, "guest_port": port}}
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(5)
            door.connect(str(self.api))
            door.sendall(json.dumps(ask).encode())
            door.shutdown(socket.SHUT_WR)
            said = door.recv(4096).decode()
        if '"return"' not in said:
            raise Failure(f"slirp4netns: add_hostfwd {transport} {port}: {said.strip()}")


class Slirp4netns65520(Slirp4netns):
    """With the MTU that rootless engines use."""

    name = "slirp4netns-65520"
    about = "slirp4netns, MTU 65520, as rootless container engines start it"
    mtu = 65520
