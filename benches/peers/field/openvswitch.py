"""Open vSwitch's userspace data path (datapath_type=netdev) with TAP ports moved into the containers.

It has a database and sockets of its own, so that an Open vSwitch of the machine's is not touched.
"""

from __future__ import annotations

import os
import re

from ..topology import C1, C2, Failure, call, wait_for
from .peer import C2C, Peer, needed

SCHEMAS = ("/usr/share/openvswitch/vswitch.ovsschema", "/usr/local/share/openvswitch/vswitch.ovsschema")


class OpenVSwitch(Peer):
    """ovsdb-server and ovs-vswitchd."""

    name = "ovs"
    about = "Open vSwitch, userspace data path"
    paths = frozenset({C2C})
    programs = ("ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovsdb-tool")
    tso = False

    def version(self) -> str:
        return call([needed("ovs-vswitchd"), "--version"]).splitlines()[0]

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        site, state = self.site, self.site.state
        schema = next((path for path in SCHEMAS if os.path.exists(path)), None)
        if not schema:
            raise Failure("vswitch.ovsschema is nowhere to be found")
        env = {f"OVS_{what}DIR": str(state) for what in ("RUN", "LOG", "DB")}
        door = state / "db.sock"
        call([needed("ovsdb-tool"), "create", str(state / "conf.db"), schema])
        site.start("host", needed("ovsdb-server"), state / "conf.db", f"--remote=punix:{door}",
                   f"--unixctl={state}/db.ctl", env=env)
        wait_for("ovsdb-server", door.exists)
        ask = (needed("ovs-vsctl"), f"--db=unix:{door}", "--timeout=10")
        site.run("host", *ask, "--no-wait", "init")
        site.run("host", *ask, "--no-wait", "set", "Open_vSwitch", ".",
                 f"other_config:userspace-tso-enable={str(self.tso).lower()}")
        site.start("host", needed("ovs-vswitchd"), f"unix:{door}", f"--unixctl={state}/vs.ctl", env=env)
        site.run("host", *ask, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev",
                 *sum((["--", "add-port", "br0", tap, "--", "set", "interface", tap, "type=tap"]
                       for tap in ("t1", "t2")), []))
        wait_for("Open vSwitch's TAPs", lambda: "t2" in site.ip("host", "-br", "link"))
        if self.tso and not re.search(r"userspace_tso\|INFO\|.*enabled", site.log.read_text(errors="replace")):
            raise Failure("this Open vSwitch did not enable userspace TSO")
        for tap, role, address in (("t1", "c1", C1), ("t2", "c2", C2)):
            site.give(tap, role, address)


class OpenVSwitchTso(OpenVSwitch):
    """The same with virtio-net headers on the TAPs."""

    name = "ovs-tso"
    about = "Open vSwitch, userspace data path with userspace TSO (experimental there)"
    tso = True
