"""Two plots as SVG: how numbers are spread, one row a kind, and bars made of parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 1140
LEFT = 230  # of the labels
_LETTER = 6.6


@dataclass(frozen=True, slots=True)
class Row:
    """``kind`` is the class for its colour, ``label`` plain text."""

    kind: str
    label: str
    values: tuple[float, ...]


def spread(rows: Sequence[Row], *, label: str, unit: str) -> str:
    """A dot for each value on a logarithmic axis, a row for each kind, and a mark at its median; empty without values.

    Values are positive; what is below a thousandth is drawn there.
    """
    rows = [row for row in rows if row.values]
    if not rows:
        return ""
    least = min(max(0.001, value) for row in rows for value in row.values)
    most = max(max(0.001, value) for row in rows for value in row.values)
    first, last = math.floor(math.log10(least) - 1e-9), math.ceil(math.log10(most) + 1e-9)
    last = max(last, first + 1)

    def at(value: float) -> float:
        return LEFT + 10 + (math.log10(max(0.001, value)) - first) / (last - first) * (WIDTH - LEFT - 50)

    height = 54
    drawn = []
    bottom = 26 + height * len(rows)
    for power in range(first, last + 1):
        x = at(10.0**power)
        drawn.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{bottom}"/>'
            f'<text class="soft" x="{x:.1f}" y="14" text-anchor="middle">{10.0**power:g} {escape(unit)}</text>'
        )
    for number, row in enumerate(rows):
        middle = 26 + height * number + height / 2
        ordered = sorted(row.values)
        median = ordered[len(ordered) // 2]
        dots = "".join(
            f'<circle cx="{at(value):.1f}" cy="{middle + _jitter(index) * 14:.1f}" r="3.5" '
            'style="fill:var(--c)" fill-opacity="0.55"/>'
            for index, value in enumerate(_thinned(ordered))
        )
        drawn.append(
            f'<g class="{row.kind}"><text x="0" y="{middle - 3:.1f}">{escape(_cut(row.label))}</text>'
            f'<text class="soft" x="0" y="{middle + 13:.1f}">{len(ordered)} · median {median:.3g} {escape(unit)}</text>'
            f'{dots}<line x1="{at(median):.1f}" x2="{at(median):.1f}" y1="{middle - 20:.1f}" y2="{middle + 20:.1f}" '
            'style="stroke:var(--ink)" stroke-width="2"/></g>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 4}" role="img" aria-label="{escape(label)}" font-size="12">'
        f"{''.join(drawn)}</svg>"
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """A bar: its parts are (class for its colour, value, what is written when it is pointed at)."""

    label: str
    parts: tuple[tuple[str, float, str], ...]
    end: str


def stacks(rows: Sequence[Stack], *, label: str) -> str:
    """Bars to one scale, with ``end`` written behind each; empty when all are nothing."""
    most = max((sum(part[1] for part in row.parts) for row in rows), default=0.0)
    if most <= 0:
        return ""
    scale = (WIDTH - LEFT - 150) / most
    drawn = []
    y = 4
    for row in rows:
        x = float(LEFT)
        pieces = []
        for kind, value, words in row.parts:
            width = value * scale
            if width > 0:
                pieces.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(width, 1.0):.1f}" height="18" '
                    f'style="fill:var(--c)"><title>{escape(words)}</title></rect>'
                )
            x += width
        drawn.append(
            f'<text x="0" y="{y + 13}">{escape(_cut(row.label))}</text>{"".join(pieces)}'
            f'<text class="soft" x="{x + 8:.1f}" y="{y + 13}">{escape(row.end)}</text>'
        )
        y += 26
    return (
        f'<svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{escape(label)}" font-size="12">{"".join(drawn)}</svg>'
    )


def _cut(text: str) -> str:
    most = int(LEFT / _LETTER) - 2
    return text if len(text) <= most else text[: most - 1] + "…"


def _jitter(index: int) -> float:
    """-1 to 1, the same for the same index, so that dots do not hide one another: multiples of the golden ratio."""
    return 2 * ((index * 0.6180339887498949) % 1) - 1


def _thinned(ordered: Sequence[float], most: int = 2000) -> Sequence[float]:
    """At most ``most`` of them, evenly over their ranks, with the first and the last."""
    if len(ordered) <= most:
        return ordered
    step = (len(ordered) - 1) / (most - 1)
    return [ordered[round(number * step)] for number in range(most)]
