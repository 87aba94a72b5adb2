"""What the machine was doing: whose processor time went where, and how much of it was somebody else's.

Foreign is what user processes outside the sites' namespaces took; the kernel's own threads are not counted,
because they work for the runs as well. Stolen is what the hypervisor kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Optional

from .topology import NETNS, PREFIX

TICKS = os.sysconf("SC_CLK_TCK")
KERNEL_THREAD = 0x200000  # PF_KTHREAD, include/linux/sched.h
QUIET_CORES = 0.10
QUIET_STEAL = 0.20


def stat(process: int | str) -> Optional[list[str]]:
    """Fields of /proc/PID/stat from the state on: proc(5) counts it as the third."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return None


def seconds_of(processes: Iterable[int]) -> float:
    """Processor seconds these processes have used."""
    found = (stat(process) for process in processes)
    return sum((int(fields[11]) + int(fields[12])) / TICKS for fields in found if fields)


def resident(processes: Iterable[int]) -> int:
    """Octets of memory these processes hold."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.M)
            total += int(found[1]) * 1024 if found else 0
    return total


@dataclass(frozen=True)
class Reading:
    """The clocks at one moment."""

    at: float
    busy: float
    stolen: float
    foreign: dict[str, float]


def read() -> Reading:
    fields = [int(word) / TICKS for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return Reading(time.monotonic(), user + nice + system + irq + softirq, steal, _foreign())


def _foreign() -> dict[str, float]:
    ours = set()
    with contextlib.suppress(OSError):
        ours = {os.stat(NETNS / name).st_ino for name in os.listdir(NETNS) if name.startswith(PREFIX)}
    used = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        fields = stat(name)
        if not fields or int(fields[6]) & KERNEL_THREAD:
            continue
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}/ns/net").st_ino in ours:
                continue
        # With its children that have ended: a build is many short processes.
        used[name] = sum(int(field) for field in fields[11:15]) / TICKS
    return used


@dataclass(frozen=True)
class Between:
    """What happened between two readings, in cores: one is a processor, all the time."""

    seconds: float
    busy: float
    stolen: float
    foreign: float

    @property
    def noisy(self) -> bool:
        return self.foreign >= QUIET_CORES or self.stolen >= QUIET_STEAL


def between(first: Reading, second: Reading) -> Between:
    seconds = max(second.at - first.at, 1e-3)
    # A process that came in between may be the end of one that was counted in its parent; never more than a core.
    foreign = sum(min(max(used - first.foreign.get(name, 0.0), 0.0), seconds) for name, used in second.foreign.items())
    return Between(seconds, (second.busy - first.busy) / seconds, (second.stolen - first.stolen) / seconds,
                   foreign / seconds)


def wait_until_quiet(patience: float) -> bool:
    """Waits until nobody else works on the machine; whether that came to pass."""
    end = time.monotonic() + patience
    while True:
        before = read()
        time.sleep(0.4)
        seen = between(before, read())
        if not seen.noisy and seen.busy < 0.3:
            return True
        if time.monotonic() > end:
            return False


def describe() -> dict[str, object]:
    """The machine, as a reader of its figures must know it."""
    with contextlib.suppress(OSError):
        model = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
        release = re.search(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release").read_text(), re.M)
        memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
        return {
            "processor": model[1] if model else os.uname().machine, "processors": os.cpu_count(),
            "memory_gb": round(int(memory[1]) / 1e6) if memory else None,
            "system": release[1] if release else "Linux", "kernel": os.uname().release,
        }
    return {"processors": os.cpu_count(), "kernel": os.uname().release}
