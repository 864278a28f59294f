"""A batch as one HTML page that needs nothing else: when which worker ran what, what environments cost, what failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from poncho_wq.batch.gantt import gantt
from poncho_wq.batch.journal import Attempt, BatchRecord, JobRecord, Journal
from poncho_wq.batch.model import State
from poncho_wq.drawing.page import document, section, span, tiles

# Of each failed job's standard error, what the page shows.
TAIL_LINES = 12

_STYLE = """
:root { --completed: #2f9e6e; --failed: #d1433f; --killed: #b4466f; --running: #2f74c0; --submitted: #6aa6d8;
  --idle: #a9b4c0; --waiting: #c8d0d8; --skipped: #d39b2a; --deleted: #8a63b3; }
.state { white-space: nowrap; } .state::before { content: ""; display: inline-block; width: 9px; height: 9px;
  border-radius: 50%; background: var(--c); margin-right: 7px; }
.failure { margin-bottom: 14px; } .failure:last-child { margin-bottom: 0; }
.failure header { display: flex; gap: 14px; align-items: baseline; } .failure header span { color: var(--soft); }
""" + "".join(f".{state.value} {{ --c: var(--{state.value}); }}\n" for state in State)


def page(journal: Journal, record: BatchRecord, *, now: float | None = None) -> str:
    """The whole page.  Reads the journal, writes nothing."""
    now = time.time() if now is None else now
    jobs = journal.jobs(record.id)
    attempts = journal.attempts(record.id)
    title = escape(record.title)
    parts = [
        f"<h1>{title} <small>batch {record.id}</small></h1>",
        f'<p class="when">{_when(journal, record, jobs, now)}</p>',
        _tiles(jobs),
        section("Jobs by worker", gantt(jobs, attempts, now=record.ended or now)),
        section("Failures", _failures(jobs)),
        section("Environments", _environments(record, attempts)),
        section("", _table(jobs)),
    ]
    return document(record.title, parts, style=_STYLE)


def _when(journal: Journal, record: BatchRecord, jobs: Sequence[JobRecord], now: float) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
    words = [f"handed in {began}"]
    if record.ended is not None:
        words.append(f"over after {span(record.ended - record.created)}")
    elif journal.is_leased(record.id):
        words.append(f"running for {span(now - record.created)}")
    else:
        words.append("not over, and no manager runs it")
    manager = journal.manager(record.id)
    if manager is not None:
        words.append(f"manager on {escape(manager.host)}, {manager.engine}")
    busy = sum(max(0.0, (job.ended or now) - job.started) for job in jobs if job.started is not None)
    words.append(f"{span(busy)} of work in all")
    return " · ".join(words)


def _tiles(jobs: Sequence[JobRecord]) -> str:
    counts = {state: sum(job.state is state for job in jobs) for state in State}
    order = (State.COMPLETED, State.FAILED, State.KILLED, State.DELETED, State.SKIPPED, State.RUNNING, State.SUBMITTED,
             State.IDLE, State.WAITING)  # fmt: skip
    shown = [state for state in order if counts[state]]
    row = tiles((s.value, str(counts[s]), s.value) for s in shown)
    bars = "".join(f'<i class="{s.value}" style="flex:{counts[s]}" title="{counts[s]} {s.value}"></i>' for s in shown)
    return f'<div class="tiles">{row}</div><div class="bar">{bars}</div>'


def _failures(jobs: Sequence[JobRecord]) -> str:
    bad = [job for job in jobs if job.state.final and job.state not in (State.COMPLETED, State.SKIPPED)]
    found = []
    for job in bad[:50]:
        lines = (job.stderr_tail or "").rstrip().splitlines()[-TAIL_LINES:]
        said = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
        where = f"attempt {job.attempt}" + (f" on {escape(job.host)}" if job.host else "")
        found.append(
            f'<div class="failure"><header><b>{escape(job.name)}</b>{_state(job)}'
            f"<span>{where if job.attempt else 'never submitted'}</span></header>{said}</div>"
        )
    if len(bad) > 50:
        found.append(f"<p>… and {len(bad) - 50} more</p>")
    return "".join(found)


def _state(job: JobRecord) -> str:
    return f'<span class="state {job.state.value}">{escape(job.words)}</span>'


def _environments(record: BatchRecord, attempts: Sequence[Attempt]) -> str:
    rows = ""
    for each in record.environment.get("environments", ()):
        how = f"built in {span(each['seconds'])}" if each["built"] else "from the cache"
        rows += (
            f"<tr><td><code>{escape(each['identity'][:16])}</code></td><td>{escape(each['python'] or '–')}</td>"
            f'<td class="n">{each["size"] / 1e6:.1f} MB</td><td>{how}</td>'
            f"<td>{_unpacked(attempts, each['identity'])}</td></tr>"
        )
    if not rows:
        return ""
    head = (
        '<tr><th>Identity</th><th>Python</th><th class="n">Tarball</th><th>On the manager</th><th>On workers</th></tr>'
    )
    return f"<table>{head}{rows}</table>"


def _unpacked(attempts: Sequence[Attempt], identity: str) -> str:
    """What providing it cost the tasks, where the wrapper told."""
    told = [attempt.facts["environment"] for attempt in attempts if attempt.facts.get("environment")]
    told = [each for each in told if each["identity"] == identity]
    if not told:
        return "–"
    unpacked = [each["unpacking"] for each in told if each["unpacked"]]
    times = "once" if len(unpacked) == 1 else f"{len(unpacked)} times"
    cost = f" in {span(sum(unpacked))}" if unpacked else ""
    waited = sum(each["waited"] for each in told)
    return f"unpacked {times}{cost} for {len(told)} jobs" + (f", which waited {span(waited)}" if waited >= 0.05 else "")


def _table(jobs: Sequence[JobRecord]) -> str:
    rows = []
    for job in jobs:
        took = "" if job.started is None or job.ended is None else span(job.ended - job.started)
        queued = "" if job.idle is None or job.started is None else span(job.started - job.idle)
        rows.append(
            f"<tr><td>{escape(job.name)}</td><td>{_state(job)}</td><td class=n>{queued}</td><td class=n>{took}</td>"
            f"<td class=n>{job.attempt or ''}</td><td>{escape(job.host or '')}</td></tr>"
        )
    head = (
        "<tr><th>Job</th><th>State</th><th class=n>Queued</th><th class=n>Ran</th><th class=n>Attempts</th>"
        "<th>Worker's host</th></tr>"
    )
    opened = " open" if len(jobs) <= 40 else ""
    return f"<details{opened}><summary>All {len(jobs)} jobs</summary><table>{head}{''.join(rows)}</table></details>"
