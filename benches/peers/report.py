"""Samples to words: a Markdown table, and the JSON both the table and the chart are made of.

A dash is what a peer does not do or could not do here, and the notes say which; a zero would be a figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Optional

from .cells import CELLS, DERIVED, Cell
from .stats import Summary, ratios, summary

NOISY = "~"


@dataclass(frozen=True)
class Entry:
    """One peer in one row."""

    peer: str
    absolute: Summary
    # To the subject; the subject's own is one, with the spread of its own repeats about their median.
    ratio: Optional[Summary]
    noisy: bool


@dataclass(frozen=True)
class Row:
    """One cell, or a further figure of it."""

    label: str
    about: str
    unit: str
    more_is_better: bool
    entries: dict[str, Entry]


def figure(value: float) -> str:
    """Three digits that matter."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.0f} k" if size >= 100_000 else f"{value / 1000:.1f} k"
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def row(results: dict, cell: Cell, key: str = "value", unit: Optional[str] = None,
        more_is_better: Optional[bool] = None) -> Row:
    """All peers' figures in one cell, against the subject."""
    found: dict[str, dict[int, float]] = {}
    noisy: set[str] = set()
    for sample in results["samples"]:
        if sample["cell"] == cell.name and isinstance(sample.get(key), (int, float)):
            found.setdefault(sample["peer"], {})[sample["repeat"]] = sample[key]
            if sample.get("noisy"):
                noisy.add(sample["peer"])
    subject = results["subject"]
    own = found.get(subject, {})
    entries = {}
    for name in results["peers"]:
        absolute = summary(list(found.get(name, {}).values()))
        if not absolute:
            continue
        against = ([value / absolute.median for value in own.values()] if absolute.median else []) \
            if name == subject else ratios(found[name], own)
        entries[name] = Entry(name, absolute, summary(against), name in noisy)
    better = cell.more_is_better if more_is_better is None else more_is_better
    return Row(cell.name, cell.about, unit or cell.unit, better, entries)


def rows(results: dict) -> list[Row]:
    return [each for each in (row(results, cell) for cell in CELLS) if each.entries]


def entry_text(entry: Optional[Entry], subject: str) -> str:
    """`median [low–high] **×ratio** [low–high]`, or a dash."""
    if not entry:
        return "–"
    text = (NOISY if entry.noisy else "") + figure(entry.absolute.median)
    if entry.absolute.count > 1:
        text += f" [{figure(entry.absolute.low)}–{figure(entry.absolute.high)}]"
    if entry.ratio and entry.peer != subject:
        text += f" **×{figure(entry.ratio.median)}**"
        if entry.ratio.count > 1:
            text += f" [{figure(entry.ratio.low)}–{figure(entry.ratio.high)}]"
    return text


def table(title: str, found: Iterable[Row], peers: list[str], subject: str) -> list[str]:
    """A Markdown table; nothing if it would have no row."""
    found = list(found)
    if not found:
        return []
    shown = [name for name in peers if any(name in each.entries for each in found)]
    lines = ["", f"### {title}", "", f"| cell | unit | {' | '.join(shown)} |", "|---|---|" + "---|" * len(shown)]
    for each in found:
        arrow = "↑" if each.more_is_better else "↓"
        cells = " | ".join(entry_text(each.entries.get(name), subject) for name in shown)
        lines.append(f"| {each.label}: {each.about} | {each.unit} {arrow} | {cells} |")
    return lines


def markdown(results: dict) -> str:
    """The whole report."""
    peers, subject, machine, plan = (results[key] for key in ("peers", "subject", "machine", "plan"))
    lines = ["# Side by side", "", "Machine: " + ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in machine.items() if value is not None) + ".", "",
        f"Medians of {plan['repeats']} repeats of {plan['seconds']:g} s, the peers taking turns; in brackets quartiles "
        "(of fewer than five repeats: least and most). ↑ more is better, ↓ less is. **×** is the ratio to "
        f"{subject}, each repeat by the subject's of the same turn. {NOISY} marks what others on the machine disturbed."]
    lines += table("Results", rows(results), peers, subject)
    for derived in DERIVED:
        found = (row(results, cell, derived.key, derived.unit, derived.more_is_better) for cell in CELLS)
        lines += table(derived.title, (each for each in found if each.entries), peers, subject)
    lines += ["", "### Notes", "", *(f"- {note}" for note in notes(results)), ""]
    return "\n".join(lines)


def notes(results: dict) -> list[str]:
    """What the peers are, why a dash is a dash, and what was not quiet."""
    out = [f"**{name}**: {about}" for name, about in results["about"].items()]
    out += [f"**{name}** was left out: {why}." for name, why in results["left_out"].items()]
    out.append("A dash without a note is a path that the peer does not have.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for sample in results["samples"]:
        why = sample.get("error") or (sample.get("errors") and f"errors beside the figure: {sample['errors']}")
        if why:
            named = reasons.setdefault((sample["peer"], why), [])
            if sample["cell"] not in named:
                named.append(sample["cell"])
    out += [f"**{peer}**, {', '.join(cells)}: {why}." for (peer, why), cells in reasons.items()]
    disturbed = sum(1 for sample in results["samples"] if sample.get("noisy"))
    if disturbed:
        out.append(f"{disturbed} of {len(results['samples'])} runs were disturbed to the last (more than a tenth of a "
                   "core used by others, or a fifth stolen).")
    return out
