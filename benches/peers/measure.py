"""Who is measured when: every repeat of a cell visits each peer in turn, and a disturbed run is run again."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Callable

from . import machine
from .cells import Cell
from .loads import Bench
from .progress import Progress
from .topology import Failure


@dataclass(frozen=True)
class Plan:
    """How often, how long, and how patiently."""

    repeats: int
    seconds: float
    # Seconds to wait, before each run, for others to leave the machine alone.
    patience: float = 20
    # How often a disturbed run is repeated; the last one stays, marked.
    again: int = 2

    def repeats_of(self, cell: Cell) -> int:
        return min(self.repeats, 3) if cell.afresh and cell.path else self.repeats

    def expected(self, cell: Cell) -> float:
        """Seconds one run will take, to begin with."""
        return (0 if cell.afresh else self.seconds) + cell.extra


Note = Callable[[dict], None]


def total(plan: Plan, cells: list[Cell], benches: list[Bench]) -> float:
    """Expected seconds of the whole."""
    return sum(plan.expected(cell) * plan.repeats_of(cell)
               for cell in cells for bench in benches if serves(bench, cell)) or 1.0


def serves(bench: Bench, cell: Cell) -> bool:
    return cell.path is None or cell.path in bench.peer.paths


def measure(plan: Plan, cells: list[Cell], benches: list[Bench], progress: Progress, note: Note) -> None:
    """Runs everything; each sample goes to `note` as soon as it is there."""
    failed: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        able = [bench for bench in benches if serves(bench, cell)]
        for repeat in range(plan.repeats_of(cell)):
            # Another one begins each time, so that nobody always comes first after a pause.
            shift = repeat % len(able) if able else 0
            for bench in able[shift:] + able[:shift]:
                name = bench.peer.name
                progress.now(f"{cell.name}  {name}  {repeat + 1}/{plan.repeats_of(cell)}")
                # What fails twice fails again, each time at the price of its timeout.
                if failed[cell.name, name] < 2:
                    sample = run(plan, cell, bench)
                    note({"cell": cell.name, "peer": name, "repeat": repeat, **sample})
                    if "error" in sample:
                        progress.say(f"{cell.name}  {name}: {sample['error']}")
                        failed[cell.name, name] += 1
                progress.step(plan.expected(cell))
        if cell.afresh:
            for bench in able:
                revive(bench, progress)


def run(plan: Plan, cell: Cell, bench: Bench) -> dict:
    """One run, and what it cost; again if others disturbed it, as often as the plan allows."""
    sample: dict = {}
    for attempt in range(1 + plan.again):
        sample = once(plan, cell, bench)
        if "error" in sample or not sample["noisy"]:
            break
        sample["disturbed"] = attempt + 1
    return sample


def once(plan: Plan, cell: Cell, bench: Bench) -> dict:
    peer = bench.peer
    try:
        if cell.afresh and cell.path:
            bench.end()
            bench.begin()
        machine.wait_until_quiet(plan.patience)
        peer.wake()
        used, first = machine.seconds_of(peer.forwarder), machine.read()
        sample = cell.load(bench, plan.seconds)
        second, used = machine.read(), machine.seconds_of(peer.forwarder) - used
    except Failure as why:
        return {"error": str(why)[:300]}
    finally:
        peer.rest()
    seen = machine.between(first, second)
    sample.update(foreign=seen.foreign, steal=seen.stolen, noisy=seen.noisy, at=time.time())
    sample.update({} if cell.afresh else costs(sample, used, bool(peer.forwarder), seen))
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in sample.items()}


def costs(sample: dict, used: float, forwards: bool, seen: machine.Between) -> dict:
    """Processor time per GB or per datagram: the forwarder's, where there is one; everybody's but the foreign."""
    out: dict = {}
    if sample.get("octets"):
        gigabytes = sample["octets"] / 1e9
        # What others took cannot be told apart from ours to the last tick: only of a quiet run.
        if not seen.noisy:
            out["machine_per_gb"] = (seen.busy - seen.foreign) * seen.seconds / gigabytes
        if forwards:
            out["cpu_per_gb"] = used / gigabytes
    if sample.get("packets") and forwards:
        out["cpu_per_datagram"] = used / sample["packets"] * 1e6
    return out


def revive(bench: Bench, progress: Progress) -> None:
    """Back to the state in which the other cells expect a peer."""
    try:
        bench.end()
        bench.begin()
    except Failure as why:
        progress.say(f"{bench.peer.name} did not come back: {why}")
