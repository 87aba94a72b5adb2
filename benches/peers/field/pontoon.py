"""pontoon: one daemon in the host's namespace, both containers attached by the paths of their namespaces."""

from __future__ import annotations

import os
from typing import Optional

from ..topology import C1, C2, OUT_GATEWAY, SUBNET, call, wait_for
from .peer import BESIDE, C2C, EGRESS, LOOPBACK, PUBLISHED, Peer

# The station of the raw uplink, on the host's interface towards `out`.
STATION, UPLINK = "198.51.100.5", "eth0"


class Pontoon(Peer):
    """The switch, as a build of it does the work."""

    about = "pontoon, socket uplink, published ports with the client's own address"
    paths = frozenset({C2C, EGRESS, PUBLISHED, LOOPBACK, BESIDE})
    # Further words of `attach`.
    attach: tuple[str, ...] = ()

    def __init__(self, name: str, binary: str, daemon: tuple[str, ...] = (), spec: str = "") -> None:
        self.name, self.binary = name, binary
        # Flags of the daemon, and what is written behind each published TCP port.
        self.daemon_flags, self.spec = daemon, spec
        if spec:
            self.paths = frozenset({PUBLISHED, LOOPBACK})  # the other paths are what they are without
        self.restless = any(flag.startswith("--busy-poll") for flag in daemon)
        super().__init__()

    def missing(self) -> Optional[str]:
        if not os.access(self.binary, os.X_OK):
            return f"{self.binary} cannot be executed"
        flags = [flag.split("=")[0] for flag in self.daemon_flags if flag.startswith("--")]
        for command, words in ((("daemon",), flags), (("publish", "add"), [self.spec])):
            said = call([self.binary, *command, "--help"])
            absent = [word for word in words if word not in said]
            if absent:
                return f"this build's {' '.join(command)} knows no {' '.join(absent)}"
        return None

    def version(self) -> str:
        said = [call([self.binary, "--version"]).strip(), *self.daemon_flags]
        return " ".join([*said, f"PORT{self.spec}"] if self.spec else said)

    def ask(self, *words: object, timeout: float = 30) -> str:
        return self.site.run("host", self.binary, *words, timeout=timeout, env={"PONTOON_SOCKET": self.socket})

    @property
    def socket(self) -> str:
        return str(self.site.state / "pontoon.sock")

    def serve(self) -> None:
        """The daemon, once it answers."""
        self.site.start("host", self.binary, "daemon", "--foreground", *self.daemon_flags,
                        env={"PONTOON_SOCKET": self.socket})
        wait_for("pontoon's socket", lambda: os.path.exists(self.socket))

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        self.serve()
        self.create()
        for role, address in (("c1", C1), ("c2", C2)):
            self.ask("attach", self.site.path(role), "--network", "bench", "--name", role, "--ip", address, *self.attach)

    def create(self) -> None:
        self.ask("network", "create", "--subnet", SUBNET, "bench")

    def publish(self, transport: str, port: int) -> None:
        self.ask("publish", "add", "c1", f"{port}:{port}/{transport}{self.spec if transport == 'tcp' else ''}")


class Veth(Pontoon):
    """The same by veth pairs."""

    about = "pontoon, containers attached by veth pairs instead of TAPs"
    attach = ("--veth",)


class Raw(Pontoon):
    """A station of its own on the host's interface, and packets translated instead of flows relayed."""

    about = "pontoon, raw uplink: an address of its own on the host's segment"
    paths = frozenset({EGRESS, PUBLISHED, BESIDE})
    host = STATION

    def create(self) -> None:
        uplink = f"raw:{UPLINK},address={STATION}/24,gateway={OUT_GATEWAY}"
        self.ask("network", "create", "--subnet", SUBNET, "--uplink", uplink, "bench")
        wait_for("the station's address", lambda: '"valid"' in self.ask("network", "inspect", "bench"), seconds=15)
