"""pasta, with its defaults: a container has the host's addresses, and an MTU of 65,520."""

from __future__ import annotations

from ..topology import HOST, Failure, call, wait_for
from .peer import EGRESS, LOOPBACK, PUBLISHED, Peer, needed


class Pasta(Peer):
    """One process for one namespace."""

    name = "pasta"
    about = "passt's pasta with its defaults; a container has the host's address"
    paths = frozenset({EGRESS, PUBLISHED, LOOPBACK})
    programs = ("pasta",)
    c1 = HOST

    def version(self) -> str:
        said = call([needed("pasta"), "--version"]).splitlines()
        return said[0] if said else ""

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        ports = {"-t": ",".join(map(str, tcp)), "-u": ",".join(map(str, udp))}
        command = [needed("pasta"), "--quiet", "--foreground", "--config-net", "--runas", "0",
                   "--netns", self.site.path("c1"), *sum(([k, v] for k, v in ports.items()), []),
                   "-T", "none", "-U", "none"]
        started = self.site.start("host", *command)

        def routed() -> bool:
            if started.poll() is not None:
                raise Failure(f"pasta ended with status {started.returncode}")
            return "default" in self.site.ip("c1", "route")

        wait_for("pasta's default route in its container", routed)
