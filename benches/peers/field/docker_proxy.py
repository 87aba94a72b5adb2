"""docker-proxy: what serves 127.0.0.1 where Docker runs with its defaults, here for every address.

It stands before the kernel's bridge, whose rules publish nothing; it hides the client's address.
"""

from __future__ import annotations

from ..topology import C1, call, wait_for
from .kernel import Kernel
from .peer import LOOPBACK, PUBLISHED, needed


class DockerProxy(Kernel):
    """One process for each published port."""

    name = "docker-proxy"
    about = "Docker's userland proxy, alone"
    paths = frozenset({PUBLISHED, LOOPBACK})
    programs = ("docker-proxy", "iptables", "iptables-restore")
    loopback = "! -d 127.0.0.0/8"

    def version(self) -> str:
        return call([needed("docker-proxy"), "-version"]).strip()

    def publish(self, transport: str, port: int) -> None:
        # It reports its start on descriptor 3, as to the daemon that it believes has started it.
        self.site.start("host", "sh", "-c", 'exec "$0" "$@" 3>/dev/null', needed("docker-proxy"),
                        "-proto", transport, "-host-ip", "0.0.0.0", "-host-port", port,
                        "-container-ip", C1, "-container-port", port)
        wait_for(f"docker-proxy on {transport} {port}", lambda: self.site.listens("host", port, transport))
