"""What is measured: one cell is one load over one path, with a unit and a direction that is better."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Callable, Optional

from .field import BESIDE, C2C, EGRESS, LOOPBACK, PUBLISHED
from .loads import MANY_FLOWS, Bench

Load = Callable[[Bench, float], dict]


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    name: str
    path: Optional[str]
    unit: str
    more_is_better: bool
    about: str
    load: Load
    # Starts the peer afresh, because the load leaves something behind or is the start itself; repeated less.
    afresh: bool = False
    # Seconds it takes beside the measuring itself, for the progress bar.
    extra: float = 1.5


@dataclass(frozen=True)
class Derived:
    """A further figure of the same runs, in a table of its own."""

    key: str
    title: str
    unit: str
    more_is_better: bool


DERIVED = (
    Derived("cpu_per_gb", "Processor time of the forwarder, seconds per GB carried", "s/GB", False),
    Derived("machine_per_gb", "Processor time of the whole machine, both ends included, seconds per GB carried", "s/GB",
            False),
    Derived("cpu_per_datagram", "Processor time of the forwarder for each datagram delivered", "µs", False),
    Derived("p99", "Round trips, 99th percentile", "µs", False),
    Derived("p99_ms", "HTTP, 99th percentile", "ms", False),
    Derived("answered", "Of the idle flows, how many answer when asked", "flows", True),
    Derived("per_flow", "Octets of the forwarder's memory for each idle flow", "octets", False),
    Derived("idle_cores", "Cores the forwarder takes while all its flows are idle", "cores", False),
    Derived("resident_mb", "Memory of the forwarder at rest", "MB", False),
)


def _tcp(path: str, name: str, about: str, streams: int, reverse: bool = False) -> Cell:
    return Cell(f"{path}.{name}{streams}", path, "Gbit/s", True, f"{about}, {streams} stream{'s' * (streams > 1)}",
                lambda bench, secs: bench.tcp(path, secs, streams, reverse))


def _datagrams(path: str, name: str, about: str, size: int, flows: int = 1, senders: int = 1) -> Cell:
    return Cell(f"{path}.{name}", path, "kpps", True, f"UDP of {size} octets delivered, {about}",
                lambda bench, secs: bench.datagrams(path, secs, size, flows, senders), extra=2)


def _ping(path: str, transport: str) -> Cell:
    return Cell(f"{path}.rtt-{transport}", path, "µs", False, f"{transport.upper()} round trip of 64 octets, median",
                lambda bench, secs: bench.ping(path, secs, transport), extra=1)


def _http(path: str, name: str, about: str, close: bool) -> Cell:
    return Cell(f"{path}.{name}", path, "1/s", True, about, lambda bench, secs: bench.http(path, secs, close))


def _idle(path: str, transport: str, count: int = 10_000) -> Cell:
    return Cell(f"{path}.idle-{transport}", path, "MB", False,
                f"forwarder's memory with {count:,} idle {transport.upper()} flows",
                lambda bench, secs: bench.idle_flows(path, secs, transport, count), afresh=True, extra=30)


CELLS = (
    *(_tcp(C2C, "tcp", "container to container", n) for n in (1, 8)),
    _datagrams(C2C, "udp64", "one flow", 64),
    _datagrams(C2C, "udp64x2", "two senders", 64, senders=2),
    _datagrams(C2C, "udp64-flows", f"each of another of {MANY_FLOWS} flows", 64, flows=MANY_FLOWS),
    _datagrams(C2C, "udp1400", "one flow", 1400),
    _ping(C2C, "tcp"), _ping(C2C, "udp"),
    *(_tcp(EGRESS, "up", "upload to the outside", n) for n in (1, 8)),
    *(_tcp(EGRESS, "down", "download from the outside", n, reverse=True) for n in (1, 8)),
    _datagrams(EGRESS, "udp64", "one flow to the outside", 64),
    _datagrams(EGRESS, "udp1400", "one flow to the outside", 1400),
    _ping(EGRESS, "tcp"), _ping(EGRESS, "udp"),
    Cell("egress.connects", EGRESS, "1/s", True, "new connections to the outside, the newest 1,000 held",
         lambda bench, secs: bench.connects(EGRESS, secs, 1000)),
    _tcp(PUBLISHED, "in", "into a published port", 1),
    _tcp(PUBLISHED, "out", "out of a published port", 1, reverse=True),
    _http(PUBLISHED, "connects", "HTTP over a published port, a connection each", True),
    _http(PUBLISHED, "requests", "HTTP over a published port, 50 connections kept", False),
    _ping(PUBLISHED, "tcp"), _ping(PUBLISHED, "udp"),
    _tcp(LOOPBACK, "in", "into a published port by 127.0.0.1", 1),
    _tcp(LOOPBACK, "out", "out of a published port by 127.0.0.1", 1, reverse=True),
    _http(LOOPBACK, "connects", "HTTP by 127.0.0.1, a connection each", True),
    _http(LOOPBACK, "requests", "HTTP by 127.0.0.1, 50 connections kept", False),
    _ping(LOOPBACK, "tcp"), _ping(LOOPBACK, "udp"),
    Cell("beside.share", BESIDE, "%", True, "of an upload's rate alone, beside another container's 8 uploads",
         lambda bench, secs: bench.share(secs, 8), extra=3.5),
    Cell("beside.rtt", BESIDE, "µs", False, "TCP round trip to the outside, beside another container's flood of datagrams",
         lambda bench, secs: bench.ping_beside(secs), extra=2),
    Cell("start", None, "ms", False, "from the first command to a connection that works",
         lambda bench, secs: bench.start(None, secs), afresh=True, extra=4),
    _idle(EGRESS, "tcp"), _idle(EGRESS, "udp"), _idle(PUBLISHED, "tcp"), _idle(PUBLISHED, "udp"),
)


def chosen(patterns: str) -> list[Cell]:
    """Cells whose names match one of the comma-separated globs, in the order of the table."""
    globs = [word.strip() for word in patterns.split(",") if word.strip()]
    for glob in globs:
        if not any(fnmatch.fnmatch(cell.name, glob) for cell in CELLS):
            raise ValueError(f"no cell is called {glob!r}; --list shows them")
    return [cell for cell in CELLS if any(fnmatch.fnmatch(cell.name, glob) for glob in globs)]
