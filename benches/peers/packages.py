"""Peers and load generators from the distribution, where they are missing.

Nothing that is installed is started: Debian's maintainer scripts ask policy-rc.d, and for as long as the
harness installs that says no. docker-proxy alone is taken out of its package and put aside, because the
package is all of Docker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Optional

from .field.peer import program

# Program -> its package, by package manager. None: not to be had there.
PACKAGES: dict[str, dict[str, Optional[str]]] = {
    "apt-get": {
        "ip": "iproute2", "nsenter": "util-linux", "sysctl": "procps", "cc": "gcc",
        "iperf3": "iperf3", "nginx": "nginx-light", "wrk": "wrk",
        "iptables": "iptables", "iptables-restore": "iptables", "pasta": "passt", "slirp4netns": "slirp4netns",
        "rootlesskit": "rootlesskit", "newuidmap": "uidmap", "setpriv": "util-linux", "useradd": "passwd",
        "ovsdb-server": "openvswitch-switch", "ovs-vswitchd": "openvswitch-switch", "ovs-vsctl": "openvswitch-switch",
        "ovsdb-tool": "openvswitch-switch", "docker-proxy": "docker.io",
    },
    "dnf": {
        "ip": "iproute", "nsenter": "util-linux", "sysctl": "procps-ng", "cc": "gcc",
        "iperf3": "iperf3", "nginx": "nginx-core", "wrk": "wrk",
        "iptables": "iptables-nft", "iptables-restore": "iptables-nft", "pasta": "passt", "slirp4netns": "slirp4netns",
        "rootlesskit": "rootlesskit", "newuidmap": "shadow-utils", "setpriv": "util-linux", "useradd": "shadow-utils",
        "ovsdb-server": "openvswitch", "ovs-vswitchd": "openvswitch", "ovs-vsctl": "openvswitch",
        "ovsdb-tool": "openvswitch", "docker-proxy": "moby-engine",
    },
}
# Packages of which one program is wanted and nothing else.
TAKEN_APART = {"docker.io", "moby-engine"}
POLICY = Path("/usr/sbin/policy-rc.d")


def manager() -> Optional[str]:
    return next((name for name in PACKAGES if shutil.which(name)), None)


def wanted(programs: set[str], managed_by: str) -> dict[str, list[str]]:
    """Package -> the programs for which it would be installed, of those that are missing."""
    out: dict[str, list[str]] = {}
    for name in sorted(programs):
        package = PACKAGES[managed_by].get(name)
        if package and not program(name):
            out.setdefault(package, []).append(name)
    return out


def agree(packages: dict[str, list[str]], yes: bool) -> bool:
    """Says what is missing, and asks, if there is somebody to ask."""
    print("missing:", *(f"  {', '.join(names)} (package {package})" for package, names in packages.items()),
          sep="\n", file=sys.stderr)
    if yes:
        return True
    if not sys.stdin.isatty():
        print("not installed: nobody to ask; --yes says yes", file=sys.stderr)
        return False
    return input("install them? [y/N] ").strip().lower() in ("y", "yes")


def install(packages: dict[str, list[str]], managed_by: str, aside: Path) -> None:
    """Each by itself, so that one that cannot be had costs only itself."""
    with no_services():
        if managed_by == "apt-get":
            quietly(["apt-get", "update", "-q"])
        for package, programs in packages.items():
            print(f"installing {package}", file=sys.stderr)
            if package in TAKEN_APART:
                done = take_out(package, programs, managed_by, aside)
            else:
                add = ["--no-install-recommends"] if managed_by == "apt-get" else ["--setopt=install_weak_deps=False"]
                done = quietly([managed_by, "install", "-y", *add, package])
            if not done:
                print(f"  {package} could not be installed; what needs it is left out", file=sys.stderr)


def take_out(package: str, programs: list[str], managed_by: str, aside: Path) -> bool:
    """Downloads a package and keeps its programs in a folder of the harness's."""
    with tempfile.TemporaryDirectory() as folder:
        if managed_by == "apt-get":
            # apt's own user may not write here; it says so and goes on as root.
            got = quietly(["apt-get", "download", package], folder) and all(
                quietly(["dpkg-deb", "-x", str(file), folder]) for file in Path(folder).glob("*.deb"))
        else:
            got = quietly(["dnf", "download", package], folder) and quietly(
                ["sh", "-c", "for f in *.rpm; do rpm2cpio $f | cpio -id --quiet; done"], folder)
        aside.mkdir(parents=True, exist_ok=True)
        for name in programs if got else ():
            for file in Path(folder).rglob(name):
                if file.is_file() and os.access(file, os.X_OK):
                    shutil.copy2(file, aside / name)
        return got and all((aside / name).exists() for name in programs)


def quietly(command: list[str], folder: Optional[str] = None) -> bool:
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode:
        print("  " + "\n  ".join(done.stderr.strip().splitlines()[-2:]), file=sys.stderr)
    return done.returncode == 0


@contextlib.contextmanager
def no_services() -> Iterator[None]:
    if POLICY.exists() or not shutil.which("apt-get"):
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
