"""The kernel's own way: veth pairs on a Linux bridge, and the rules Docker would write.

br_netfilter is on, as Docker has it, so frames between containers pass iptables too; `kernel-plain` is the
bridge without it, the fastest the kernel does with a bridge. Without a userland proxy 127.0.0.1 is DNAT too.
"""

from __future__ import annotations

import subprocess

from ..topology import C1, C2, GATEWAY, SUBNET, call
from .peer import BESIDE, C2C, EGRESS, LOOPBACK, PUBLISHED, Peer

# Where a packet to a published port is looked up, and what the FORWARD chain lets through.
RULES = """*nat
:PUBLISHED -
-A PREROUTING -m addrtype --dst-type LOCAL -j PUBLISHED
-A OUTPUT {loopback} -m addrtype --dst-type LOCAL -j PUBLISHED
-A POSTROUTING -s {subnet} ! -o br0 -j MASQUERADE
-A POSTROUTING -o br0 -m addrtype --src-type LOCAL -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
:USER -
:KNOWN -
:PUBLISHED -
-A FORWARD -j USER
-A FORWARD -j KNOWN
-A FORWARD -o br0 -j PUBLISHED
-A FORWARD -i br0 -j ACCEPT
-A KNOWN -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PUBLISHED ! -i br0 -o br0 -j DROP
COMMIT
"""


class Kernel(Peer):
    """veth, bridge, iptables, br_netfilter."""

    name = "kernel"
    about = "Linux bridge and iptables as Docker sets them up, br_netfilter on"
    paths = frozenset({C2C, EGRESS, PUBLISHED, LOOPBACK, BESIDE})
    programs = ("iptables", "iptables-restore")
    bridge_netfilter = 1
    loopback = ""

    def version(self) -> str:
        return call(["uname", "-r"]).strip()

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        site = self.site
        site.ip("host", "link", "add", "br0", "type", "bridge")
        site.ip("host", "address", "add", f"{GATEWAY}/24", "dev", "br0")
        site.ip("host", "link", "set", "dev", "br0", "up")
        for role, address in (("c1", C1), ("c2", C2)):
            call(["ip", "link", "add", f"v{role}", "netns", site.netns("host"), "type", "veth",
                  "peer", "name", "eth0", "netns", site.netns(role)])
            site.ip("host", "link", "set", "dev", f"v{role}", "master", "br0", "up")
            site.ip(role, "address", "add", f"{address}/24", "dev", "eth0")
            site.ip(role, "link", "set", "dev", "eth0", "up")
            site.ip(role, "route", "add", "default", "via", GATEWAY)
        site.run("host", "iptables-restore", stdin=RULES.format(subnet=SUBNET, loopback=self.loopback))
        subprocess.run(["modprobe", "-q", "br_netfilter"], stderr=subprocess.DEVNULL, check=False)
        site.run("host", "sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={self.bridge_netfilter}",
                 "net.ipv4.conf.all.route_localnet=1")

    def publish(self, transport: str, port: int) -> None:
        to = ["-p", transport, "--dport", port]
        self.site.run("host", "iptables", "-t", "nat", "-A", "PUBLISHED", *to, "-j", "DNAT",
                      "--to-destination", f"{C1}:{port}")
        self.site.run("host", "iptables", "-I", "PUBLISHED", "1", "-d", C1, "!", "-i", "br0", "-o", "br0", *to,
                      "-j", "ACCEPT")


class KernelPlain(Kernel):
    """The bridge alone."""

    name = "kernel-plain"
    about = "Linux bridge, br_netfilter off"
    paths = frozenset({C2C})
    bridge_netfilter = 0
