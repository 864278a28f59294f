"""When which worker did what, as an SVG drawing: a band for each worker, a lane for each thing it did at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 1140
LEFT = 150  # of the labels
LANE = 20
GAP = 12
TOP = 24  # of the axis
# A drawing of more lanes than this has thinner ones.
MANY = 60
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_LETTER = 6.6  # of the labels' font


@dataclass(frozen=True, slots=True)
class Bar:
    """``name`` is written on it where there is room, ``words`` show when it is pointed at; both plain text.

    Times are seconds since any one moment.  ``parts``: (class for its colour, when it ends), one after the other.
    """

    name: str
    words: str
    start: float
    end: float
    parts: tuple[tuple[str, float], ...]


def timeline(bands: Mapping[str, Sequence[Bar]], *, label: str, plain: frozenset[str] = frozenset()) -> str:
    """The drawing; empty when there is nothing in it.

    ``bands`` by worker, whose first word is shown, with a number; the names in ``plain`` without.
    """
    bars = [bar for each in bands.values() for bar in each]
    if not bars:
        return ""
    first, last = min(bar.start for bar in bars), max(bar.end for bar in bars)
    length = max(last - first, 0.001)
    scale = (WIDTH - LEFT - 10) / length
    lanes = {worker: _lanes(each) for worker, each in bands.items()}
    height_of_lane = LANE if sum(map(len, lanes.values())) <= MANY else 6
    behind: list[str] = []
    drawn: list[str] = []
    y = TOP + 8
    for number, (worker, rows) in enumerate(lanes.items(), start=1):
        height = len(rows) * height_of_lane
        behind.append(
            f'<rect class="lane" x="{LEFT}" y="{y - 3}" width="{WIDTH - LEFT}" height="{height + 6}" rx="4"/>'
            f'<text x="0" y="{y + min(height, LANE) / 2 + 4:.0f}"><title>{escape(worker)}</title>'
            f"{escape(_label(worker, None if worker in plain else number))}</text>"
        )
        for row in rows:
            drawn.extend(_drawn(bar, first, scale, y, height_of_lane) for bar in row)
            y += height_of_lane
        y += GAP
    axis = _axis(length, scale, y - GAP)
    head = f'<svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{escape(label)}" font-size="12">'
    return f"{head}{''.join(behind)}{axis}{''.join(drawn)}</svg>"


def _lanes(bars: Sequence[Bar]) -> list[list[Bar]]:
    """Bars that do not overlap share a lane."""
    lanes: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda each: each.start):
        free = next((lane for lane in lanes if lane[-1].end <= bar.start), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    return lanes


def _label(worker: str, number: int | None) -> str:
    text = worker if number is None else f"{number} · {worker.split()[0]}"
    most = int(LEFT / _LETTER) - 1
    return text if len(text) <= most else text[: most - 1] + "…"


def _drawn(bar: Bar, first: float, scale: float, y: float, height: float) -> str:
    x, width = LEFT + (bar.start - first) * scale, max(1.5, (bar.end - bar.start) * scale - 1)
    right = x + width
    pieces = []
    left = x
    for number, (kind, ends) in enumerate(bar.parts, start=1):
        # The last part takes what is left: a bar is as long as it took, whatever was told of its parts.
        until = right if number == len(bar.parts) else min(right, max(left, LEFT + (ends - first) * scale))
        if until - left > 0.05:
            pieces.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{y + 1:.1f}" width="{until - left:.1f}" '
                f'height="{height - 2:.1f}" rx="{min(3.0, (until - left) / 2):.1f}" style="fill:var(--c)"/>'
            )
        left = until
    label = ""
    if height >= LANE and width > len(bar.name) * _LETTER + 8:
        label = f'<text x="{x + 5:.1f}" y="{y + height / 2 + 4:.1f}" style="fill:#fff">{escape(bar.name)}</text>'
    return f"<g><title>{escape(bar.words)}</title>{''.join(pieces)}{label}</g>"


def _axis(length: float, scale: float, bottom: float) -> str:
    step = next((each for each in _STEPS if length / each <= 10), length / 8)
    parts = []
    for number in range(int(length / step) + 1):
        x = LEFT + number * step * scale
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom:.0f}"/>'
            f'<text class="soft" x="{x:.1f}" y="14" text-anchor="{"middle" if number else "start"}">'
            f"{_clock(number * step)}</text>"
        )
    return "".join(parts)


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
