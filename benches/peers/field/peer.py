"""What a peer is to the harness: a data plane in a site's namespaces.

A peer says which paths it serves, what it needs, and how it is started. Whatever process is found in the
site's namespaces once it is up is its forwarder, and is charged for time and memory.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Optional

from ..topology import C1, C2, HOST, Failure, Site

# Where other packages keep programs that are not on the path.
ALSO_IN = ("/usr/sbin", "/sbin", "/usr/libexec/docker", "/usr/lib/docker")

# Paths: container to container, container to outside, outside to a published port, the host's own loopback to it,
# and container to outside beside another container that takes what it can.
C2C, EGRESS, PUBLISHED, LOOPBACK, BESIDE = "c2c", "egress", "pub", "loop", "beside"


def program(name: str) -> Optional[str]:
    """A program's path, if the machine has it."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(ALSO_IN))


def needed(name: str) -> str:
    found = program(name)
    if not found:
        raise Failure(f"{name} is not installed")
    return found


class Peer:
    """One data plane under test."""

    name: str = ""
    about: str = ""
    paths: frozenset[str] = frozenset()
    programs: tuple[str, ...] = ()
    # Takes a processor even when idle, and is stopped while others have their turn.
    restless: bool = False

    # Addresses: of the containers, and where ports are published.
    c1, c2, host = C1, C2, HOST

    def __init__(self, site: Optional[Site] = None) -> None:
        self.site = site or Site(self.name)
        self.forwarder: list[int] = []

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        """Brings the data plane into a site that was just built, with these ports published where it must
        know them from the start."""
        raise NotImplementedError

    def publish(self, transport: str, port: int) -> None:
        """Publishes a port of c1's by the same number of the host's."""

    def version(self) -> str:
        """One line, or nothing."""
        return ""

    def missing(self) -> Optional[str]:
        """Why the peer cannot run here, if it cannot."""
        absent = [name for name in self.programs if not program(name)]
        return f"{', '.join(absent)} not installed" if absent else None

    def begin(self, tcp: tuple[int, ...], udp: tuple[int, ...], publish: bool = True) -> None:
        self.site.build()
        self.start(tcp, udp, publish)

    def start(self, tcp: tuple[int, ...], udp: tuple[int, ...], publish: bool = True) -> None:
        there_before = self.site.members()
        try:
            self.up(tcp, udp)
            if publish and PUBLISHED in self.paths:
                for transport, ports in (("tcp", tcp), ("udp", udp)):
                    for port in ports:
                        self.publish(transport, port)
        except Failure as why:
            said = self.site.last_words()
            raise Failure(f"{why}; its log ends: {said}" if said else str(why)) from None
        came = sorted(self.site.members() - there_before)
        self.forwarder = [process for process in came if comm(process) not in ("sleep", "")]

    def end(self) -> None:
        self.forwarder = []
        self.site.destroy()

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, name: signal.Signals) -> None:
        for process in self.forwarder if self.restless else ():
            try:
                os.kill(process, name)
            except ProcessLookupError:
                pass


def comm(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
