"""rootlesskit with its builtin port driver, as rootless Docker and podman publish ports.

It is run by a user without privilege, whom the harness lends it: rootlesskit refuses to be root. The
container is rootlesskit's own child. The way out is slirp4netns's, which is measured under its own name.
"""

from __future__ import annotations

import pwd
import subprocess

from ..topology import Failure, call, wait_for
from .peer import LOOPBACK, PUBLISHED, Peer, needed

USER = "ptb-rootless"


class Rootlesskit(Peer):
    """A parent, a child, and a relay between them."""

    name = "rootlesskit"
    about = "rootlesskit, builtin port driver (hides the client's address)"
    paths = frozenset({PUBLISHED, LOOPBACK})
    programs = ("rootlesskit", "slirp4netns", "newuidmap", "setpriv", "useradd")
    c1 = "192.0.2.100"

    def version(self) -> str:
        return call([needed("rootlesskit"), "--version"]).strip()

    def up(self, tcp: tuple[int, ...], udp: tuple[int, ...]) -> None:
        lend_user()
        site = self.site
        home = site.state / "home"
        subprocess.run(["install", "-d", "-o", USER, "-m", "700", home], check=True)
        site.log.touch()
        ports = sum((["-p", f"0.0.0.0:{port}:{port}/{transport}"]
                     for transport, each in (("tcp", tcp), ("udp", udp)) for port in each), [])
        site.start("host", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups",
                   needed("rootlesskit"), f"--state-dir={home}/state", "--net=slirp4netns", "--cidr=192.0.2.0/24",
                   "--copy-up=/etc", "--port-driver=builtin", *ports, "sleep", "infinity",
                   env={"XDG_RUNTIME_DIR": str(home), "HOME": str(home)})
        child = home / "state" / "child_pid"
        wait_for("rootlesskit's child", lambda: child.exists() and child.read_text().strip() != "")
        call(["ip", "netns", "delete", site.netns("c1")])
        call(["ip", "netns", "attach", site.netns("c1"), child.read_text().strip()])
        site.tune("c1")
        wait_for("rootlesskit's default route", lambda: "default" in site.ip("c1", "route"))

    def end(self) -> None:
        super().end()
        take_user_back()


def lend_user() -> None:
    """A user with subordinate ids, who goes with the peer."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        call(["useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", USER])
    for path in ("/etc/subuid", "/etc/subgid"):
        with open(path) as table:
            if not any(line.startswith(f"{USER}:") for line in table):
                raise Failure(f"{path} has no range for {USER}")


def take_user_back() -> None:
    """Removes the user, if it is there."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return
    subprocess.run(["userdel", USER], stderr=subprocess.DEVNULL, check=False)
