"""The few statistics a table needs: medians, their spread, and ratios between peers that took turns.

A machine's speed drifts by the hour, so a ratio is made of neighbours: each repeat of a peer by the same
repeat of the subject, and then the median of these.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence


@dataclass(frozen=True)
class Summary:
    """The middle of some values and how far they spread: quartiles of five or more, else the extremes."""

    median: float
    low: float
    high: float
    count: int


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, between two of them if it must."""
    at = (len(ordered) - 1) * share
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def summary(values: Sequence[float]) -> Optional[Summary]:
    """Nothing of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    spread = (0.25, 0.75) if len(ordered) >= 5 else (0.0, 1.0)
    return Summary(statistics.median(ordered), *(quantile(ordered, share) for share in spread), len(ordered))


def ratios(peer: Mapping[int, float], subject: Mapping[int, float]) -> list[float]:
    """Each repeat's value by the subject's of the same repeat; repeats that only one of them has are left out."""
    return [peer[turn] / subject[turn] for turn in sorted(peer.keys() & subject.keys()) if subject[turn] > 0]
