"""The same as a picture: for each cell the ratios to the subject, on a logarithmic axis, with whiskers.

Right is always better: where less is better the ratio is turned over. Colours are Okabe and Ito's, which
the colour-blind tell apart, and each peer has a shape and its name besides. The ground is left out, and the
text has a grey that is read on white and on black.
"""

from __future__ import annotations

import math
from html import escape

from .report import Row, figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#999999", "#7B5EA7", "#B5A300")
SHAPES = ("circle", "square", "diamond", "up", "down", "cross")
TEXT, FAINT = "#808080", "#80808055"
LEFT, WIDTH, RIGHT, LANE, GAP, TOP = 160, 620, 220, 13, 12, 90
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def marker(shape: str, x: float, y: float, colour: str, size: float = 4.2) -> str:
    """A filled shape about a point."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
    points = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "up": ((0, -1.2), (1.2, 1), (-1.2, 1)), "down": ((0, 1.2), (1.2, -1), (-1.2, -1)),
        "cross": ((-1.2, -0.5), (-0.5, -0.5), (-0.5, -1.2), (0.5, -1.2), (0.5, -0.5), (1.2, -0.5),
                  (1.2, 0.5), (0.5, 0.5), (0.5, 1.2), (-0.5, 1.2), (-0.5, 0.5), (-1.2, 0.5)),
    }[shape]
    path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in points)
    return f'<polygon points="{path}" fill="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", size: float = 11, weight: str = "normal") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{TEXT}">{escape(words)}</text>')


def line(x1: float, y1: float, x2: float, y2: float, colour: str = FAINT, width: float = 1) -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')


def weight(name: str) -> str:
    """Ours are to be found at a glance."""
    return "bold" if name.startswith("pontoon") else "normal"


def goodness(row: Row, name: str) -> tuple[float, float, float] | None:
    """Median, worst and best of a ratio, so turned that more is better."""
    entry = row.entries.get(name)
    if not entry or not entry.ratio or entry.ratio.low <= 0:
        return None
    ratio = entry.ratio
    if row.more_is_better:
        return ratio.median, ratio.low, ratio.high
    return 1 / ratio.median, 1 / ratio.high, 1 / ratio.low


def scale(values: list[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values, and one, between ticks."""
    low, high = min([*values, 0.5]), max([*values, 2.0])
    return (max((tick for tick in TICKS if tick <= low), default=TICKS[0]),
            min((tick for tick in TICKS if tick >= high), default=TICKS[-1]))


def chart(rows: list[Row], peers: list[str], subject: str) -> str:
    """An SVG document."""
    others = [name for name in peers if name != subject and any(name in row.entries for row in rows)]
    drawn = [(row, {name: good for name in others if (good := goodness(row, name))}) for row in rows]
    drawn = [(row, goods) for row, goods in drawn if goods]
    low, high = scale([value for _, goods in drawn for good in goods.values() for value in good])

    def at(ratio: float) -> float:
        share = (math.log(min(max(ratio, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
        return LEFT + share * WIDTH

    height = TOP + sum(LANE * len(goods) + GAP for _, goods in drawn) + 30
    out = [text(10, 20, f"Side by side: times as good as {subject}", size=15, weight="bold")]
    x, y = 10.0, 38.0
    for name in others:
        wide = 14 + 7 * len(name) + 18
        if x + wide > LEFT + WIDTH + RIGHT:
            x, y = 10.0, y + 16
        out += [_marker_of(others, name, x + 5, y), text(x + 14, y + 4, name, weight=weight(name))]
        x += wide
    for tick in (tick for tick in TICKS if low <= tick <= high):
        out += [line(at(tick), TOP - 8, at(tick), height - 22, TEXT if tick == 1 else FAINT, 1.4 if tick == 1 else 1),
                text(at(tick), TOP - 13, f"{tick:g}×", "middle"), text(at(tick), height - 8, f"{tick:g}×", "middle")]
    y = float(TOP)
    for row, goods in drawn:
        tall = LANE * len(goods)
        own = goodness(row, subject)
        if own:
            out.append(f'<rect x="{at(own[1]):.1f}" y="{y:.1f}" width="{max(at(own[2]) - at(own[1]), 0.5):.1f}" '
                       f'height="{tall:.1f}" fill="{FAINT}"/>')
            out.append(text(LEFT - 10, y + tall / 2 + 12, f"{subject}: {figure(row.entries[subject].absolute.median)} "
                            f"{row.unit}", "end", 9.5))
        out.append(text(LEFT - 10, y + tall / 2 + (0 if own else 4), row.label, "end", weight="bold"))
        for lane, (name, (median, worst, best)) in enumerate(goods.items()):
            middle = y + LANE * (lane + 0.5)
            entry = row.entries[name]
            colour = COLOURS[others.index(name) % len(COLOURS)]
            out += [line(at(worst), middle, at(best), middle, colour, 1.6),
                    line(at(worst), middle - 3, at(worst), middle + 3, colour, 1.6),
                    line(at(best), middle - 3, at(best), middle + 3, colour, 1.6),
                    _marker_of(others, name, at(median), middle),
                    text(LEFT + WIDTH + 10, middle + 3.5, f"{median:.2f}×  {name} {figure(entry.absolute.median)}"
                         f"{' ~' if entry.noisy else ''}", size=9.5, weight=weight(name))]
        y += tall + GAP
        out.append(line(LEFT, y - GAP / 2, LEFT + WIDTH, y - GAP / 2))
    width = LEFT + WIDTH + RIGHT
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
            f'height="{height:.0f}" font-family="system-ui, sans-serif" role="img" '
            f'aria-label="Ratios of each peer to {escape(subject)}, by cell">\n' + "\n".join(out) + "\n</svg>\n")


def _marker_of(others: list[str], name: str, x: float, y: float) -> str:
    place = others.index(name)
    return marker(SHAPES[place % len(SHAPES)], x, y, COLOURS[place % len(COLOURS)])
