"""Four namespaces for each peer, and the processes in them.

    out 198.51.100.2 <-- veth --> host 198.51.100.1 <-- the peer --> c1, c2

`out` has the host's gateway as a second address, because some peers take the gateway's address for the
host's loopback. Only documentation addresses, and no way out: nothing here meets the machine's own network.
Whatever lives in a site's namespaces is ended with the site; it is found by its namespace, not by its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

PREFIX = "ptb-"
ROLES = ("out", "host", "c1", "c2")
STATE = Path("/run/ptb")
NETNS = Path("/run/netns")

OUT, OUT_GATEWAY, HOST = "198.51.100.2", "198.51.100.254", "198.51.100.1"
SUBNET, GATEWAY, C1, C2 = "192.0.2.0/24", "192.0.2.1", "192.0.2.10", "192.0.2.20"

# One congestion control for both sides of every connection, ports enough for many short connections, and
# no minute's wait for a port that was used.
SYSCTLS = (
    "net.ipv4.tcp_congestion_control=cubic",
    "net.ipv4.ip_local_port_range=12000 65535",
    "net.ipv4.tcp_tw_reuse=1",
    "net.ipv4.ping_group_range=0 2147483647",
    "net.core.somaxconn=4096",
)
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


class Failure(Exception):
    """A step that did not work, in words for the notes of a report."""


def call(argv: Sequence[str], timeout: float = 30, stdin: Optional[str] = None,
         env: Optional[dict[str, str]] = None) -> str:
    """Standard output of a command that must succeed."""
    shown = " ".join(argv[3:] if argv[0] == "nsenter" else argv)[:80]
    try:
        done = subprocess.run(argv, input=stdin if stdin is not None else "", text=True, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
    except subprocess.TimeoutExpired:
        raise Failure(f"{shown}: not done after {timeout:.0f} s") from None
    except OSError as error:
        raise Failure(f"{argv[0]}: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failure(f"{shown}: status {done.returncode}: {said[-1] if said else 'said nothing'}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 8) -> None:
    """Polls a condition; its name is what the failure says."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.003)


class Site:
    """A host, what is outside it, and two containers, all of one peer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = STATE / name

    def netns(self, role: str) -> str:
        return f"{PREFIX}{self.name}-{role}"

    def path(self, role: str) -> str:
        return str(NETNS / self.netns(role))

    def inside(self, role: str, *command: object) -> list[str]:
        return ["nsenter", f"--net={self.path(role)}", "--", *map(str, command)]

    def run(self, role: str, *command: object, timeout: float = 30, stdin: Optional[str] = None,
            env: Optional[dict[str, str]] = None) -> str:
        return call(self.inside(role, *command), timeout, stdin, env)

    def ip(self, role: str, *words: object) -> str:
        return call(["ip", "-n", self.netns(role), *map(str, words)])

    def start(self, role: str, *command: object, env: Optional[dict[str, str]] = None) -> subprocess.Popen:
        """A process of the site's, in a session of its own, that writes to the site's log."""
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.inside(role, *command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    env={**os.environ, **(env or {})}, start_new_session=True)

    @property
    def log(self) -> Path:
        return self.state / "log"

    def last_words(self) -> str:
        """The end of the log, for a failure's reason."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return lines[-1][-160:] if lines else ""
        return ""

    def listens(self, role: str, port: int, transport: str = "tcp") -> bool:
        return bool(self.run(role, "ss", "-Hln", f"--{transport}", f"sport = {port}").strip())

    def build(self) -> None:
        self.destroy()
        self.state.mkdir(parents=True, exist_ok=True)
        for folder in (STATE, self.state):  # a peer may run as another user
            folder.chmod(0o755)
        for role in ROLES:
            call(["ip", "netns", "add", self.netns(role)])
            self.tune(role)
        call(["ip", "link", "add", "eth0", "netns", self.netns("host"), "type", "veth",
              "peer", "name", "eth0", "netns", self.netns("out")])
        for role, address in (("out", OUT), ("out", OUT_GATEWAY), ("host", HOST)):
            self.ip(role, "address", "add", f"{address}/24", "dev", "eth0")
        for role in ("out", "host"):
            self.ip(role, "link", "set", "dev", "eth0", "up")
        self.ip("host", "route", "add", "default", "via", OUT_GATEWAY)
        self.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def tune(self, role: str) -> None:
        self.ip(role, "link", "set", "dev", "lo", "up")
        self.run(role, "sysctl", "-qw", *SYSCTLS)

    def give(self, device: str, role: str, address: str) -> None:
        """Moves a device of the host's into a container, as its eth0."""
        self.ip("host", "link", "set", "dev", device, "netns", self.netns(role), "name", "eth0")
        self.ip(role, "address", "add", f"{address}/24", "dev", "eth0")
        self.ip(role, "link", "set", "dev", "eth0", "mtu", 1500, "up")

    def members(self) -> set[int]:
        """Every process in one of the namespaces."""
        spaces = set()
        for path in self.present():
            with contextlib.suppress(OSError):
                spaces.add(path.stat().st_ino)
        return set(living_in(spaces))

    def present(self) -> list[Path]:
        """Its namespaces that there are, also those beyond the usual four."""
        found = NETNS.iterdir() if NETNS.is_dir() else ()
        return [path for path in found if owner(path.name) == self.name]

    def destroy(self) -> None:
        """Ends what lives in the namespaces, then the namespaces; whatever is gone already is no matter."""
        for name in (signal.SIGTERM, signal.SIGKILL):
            members = self.members()
            for process in members:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGCONT)
                    os.kill(process, name)
            end = time.monotonic() + (1 if name == signal.SIGTERM else 5)
            while self.members() and time.monotonic() < end:
                time.sleep(0.01)
        for path in self.present():
            subprocess.run(["ip", "netns", "delete", path.name], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.state, ignore_errors=True)


def living_in(spaces: set[int]) -> Iterator[int]:
    """Processes whose network namespace is one of these inodes."""
    if not spaces:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino in spaces and int(entry) != os.getpid():
                    yield int(entry)


def owner(netns: str) -> Optional[str]:
    """The site a namespace belongs to, if it is one of ours."""
    return netns[len(PREFIX):].rpartition("-")[0] if netns.startswith(PREFIX) else None


def leftovers() -> list[str]:
    """Names of sites that an earlier harness could not take down."""
    found = NETNS.iterdir() if NETNS.is_dir() else ()
    return sorted({name for path in found if (name := owner(path.name))})


@contextlib.contextmanager
def cubic_allowed() -> Iterator[None]:
    """A namespace may choose only a congestion control that the machine allows to everybody: for as long as
    the harness runs, cubic is one."""
    before = ALLOWED.read_text().split()
    if "cubic" in before:
        yield
        return
    subprocess.run(["modprobe", "-q", "tcp_cubic"], check=False)
    ALLOWED.write_text(" ".join([*before, "cubic"]))
    try:
        yield
    finally:
        ALLOWED.write_text(" ".join(before))
