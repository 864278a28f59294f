"""When which worker ran which job, as an SVG drawing: a band for each worker, a lane for each job it had at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from poncho_wq.batch.journal import Attempt, JobRecord
from poncho_wq.batch.model import State

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
class _Bar:
    job: JobRecord
    start: float
    end: float
    state: State
    words: str


def gantt(jobs: Sequence[JobRecord], attempts: Sequence[Attempt], *, now: float) -> str:
    """The drawing; empty when nothing has run yet.  What runs is drawn until ``now``."""
    workers = _bars(jobs, attempts, now)
    if not workers:
        return ""
    bars = [bar for each in workers.values() for bar in each]
    first, last = min(bar.start for bar in bars), max(bar.end for bar in bars)
    length = max(last - first, 0.001)
    scale = (WIDTH - LEFT - 10) / length
    lanes = {worker: _lanes(each) for worker, each in workers.items()}
    height_of_lane = LANE if sum(map(len, lanes.values())) <= MANY else 6
    bands: list[str] = []
    drawn: list[str] = []
    y = TOP + 8
    for number, (worker, rows) in enumerate(lanes.items(), start=1):
        height = len(rows) * height_of_lane
        bands.append(
            f'<rect class="lane" x="{LEFT}" y="{y - 3}" width="{WIDTH - LEFT}" height="{height + 6}" rx="4"/>'
            f'<text x="0" y="{y + min(height, LANE) / 2 + 4:.0f}"><title>{escape(worker)}</title>'
            f"{escape(_label(worker, number))}</text>"
        )
        for row in rows:
            drawn.extend(_drawn(bar, first, scale, y, height_of_lane) for bar in row)
            y += height_of_lane
        y += GAP
    axis = _axis(length, scale, y - GAP)
    head = f'<svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="jobs by worker" font-size="12">'
    return f"{head}{''.join(bands)}{axis}{''.join(drawn)}</svg>"


def _bars(jobs: Sequence[JobRecord], attempts: Sequence[Attempt], now: float) -> Mapping[str, list[_Bar]]:
    """By worker, in the order in which they began."""
    by_id = {job.id: job for job in jobs}
    found: dict[str, list[_Bar]] = {}
    for attempt in attempts:
        job = by_id[attempt.job]
        latest = attempt.number == job.attempt
        if attempt.started is None and not (latest and job.state is State.RUNNING):
            continue
        start = attempt.started if attempt.started is not None else job.started
        if start is None:
            continue
        state = attempt.state or State.RUNNING
        words = f"{job.name}, attempt {attempt.number}: {state.value}" + (
            f" ({attempt.reason})" if attempt.reason else ""
        )
        worker = f"{attempt.host} {attempt.worker or ''}".strip() if attempt.host else "running"
        found.setdefault(worker, []).append(_Bar(job, start, max(start, attempt.ended or now), state, words))
    for each in found.values():
        each.sort(key=lambda bar: bar.start)
    return dict(sorted(found.items(), key=lambda item: item[1][0].start))


def _lanes(bars: Sequence[_Bar]) -> list[list[_Bar]]:
    """Bars that do not overlap share a lane."""
    lanes: list[list[_Bar]] = []
    for bar in bars:
        free = next((lane for lane in lanes if lane[-1].end <= bar.start), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    return lanes


def _label(worker: str, number: int) -> str:
    host = worker.split()[0]
    text = f"{number} · {host}" if worker != "running" else "running now"
    most = int(LEFT / _LETTER) - 1
    return text if len(text) <= most else text[: most - 1] + "…"


def _drawn(bar: _Bar, first: float, scale: float, y: float, height: float) -> str:
    x, width = LEFT + (bar.start - first) * scale, max(1.5, (bar.end - bar.start) * scale - 1)
    label = ""
    if height >= LANE and width > len(bar.job.name) * _LETTER + 8:
        label = f'<text x="{x + 5:.1f}" y="{y + height / 2 + 4:.1f}" style="fill:#fff">{escape(bar.job.name)}</text>'
    words = f"{bar.words}, {bar.end - bar.start:.1f} s"
    return (
        f'<g class="{bar.state.value}"><rect x="{x:.1f}" y="{y + 1:.1f}" width="{width:.1f}" height="{height - 2:.1f}" '
        f'rx="{min(3.0, width / 2):.1f}" style="fill:var(--c)"><title>{escape(words)}</title></rect>{label}</g>'
    )


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
