"""When which worker ran which job, as an SVG drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poncho_wq.batch.journal import Attempt, JobRecord
from poncho_wq.batch.model import State
from poncho_wq.drawing.timeline import Bar, timeline

# The band of jobs whose worker is not known yet.
_NOW = "running now"


def gantt(jobs: Sequence[JobRecord], attempts: Sequence[Attempt], *, now: float) -> str:
    """The drawing; empty when nothing has run yet.  What runs is drawn until ``now``."""
    return timeline(_bars(jobs, attempts, now), label="jobs by worker", plain=frozenset({_NOW}))


def _bars(jobs: Sequence[JobRecord], attempts: Sequence[Attempt], now: float) -> Mapping[str, list[Bar]]:
    """By worker, in the order in which they began."""
    by_id = {job.id: job for job in jobs}
    found: dict[str, list[Bar]] = {}
    for attempt in attempts:
        job = by_id[attempt.job]
        latest = attempt.number == job.attempt
        if attempt.started is None and not (latest and job.state is State.RUNNING):
            continue
        start = attempt.started if attempt.started is not None else job.started
        if start is None:
            continue
        end = max(start, attempt.ended or now)
        state = attempt.state or State.RUNNING
        words = f"{job.name}, attempt {attempt.number}: {state.value}" + (
            f" ({attempt.reason})" if attempt.reason else ""
        )
        worker = f"{attempt.host} {attempt.worker or ''}".strip() if attempt.host else _NOW
        bar = Bar(job.name, f"{words}, {end - start:.1f} s", start, end, ((state.value, end),))
        found.setdefault(worker, []).append(bar)
    return dict(sorted(found.items(), key=lambda item: min(bar.start for bar in item[1])))
