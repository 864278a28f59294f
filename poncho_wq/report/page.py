"""The report as one HTML page that needs nothing else: a timeline by worker, how starts are spread, bytes, tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from html import escape

from poncho_wq.drawing.page import amount, document, legend, section, span, table, tiles
from poncho_wq.drawing.plots import Row, Stack, spread, stacks
from poncho_wq.drawing.timeline import Bar, timeline
from poncho_wq.report.costs import Cost, Report, times_of
from poncho_wq.report.run import Task
from poncho_wq.report.words import environment_name, task_name, worker_name

_STYLE = """
:root { --cold: #d9822b; --start: #8a63b3; --import: #b4466f; --run: #2f74c0; --warm: #2f9e6e; --failed: #d1433f;
  --plain: #5d6b7c; }
""" + "".join(
    f".{kind} {{ --c: var(--{kind}); }}\n" for kind in ("cold", "start", "import", "run", "warm", "failed", "plain")
)
_PARTS = (
    ("cold", "environment: unpacking, waiting"),
    ("start", "Python's start, loading the function"),
    ("import", "imports"),
    ("run", "running"),
)
# A page of a hundred thousand bars shows nothing and takes a browser a minute.
MOST_BARS = 5000
MOST_WORKERS = 60
MOST_PINS = 12


def as_page(report: Report) -> str:
    """The whole page."""
    run = report.run
    program = str(run.facts.get("program"))
    parts = [
        f"<h1>{escape(program)} <small>what its environments cost</small></h1>",
        f'<p class="when">{escape(" · ".join(_when(report)))}</p>',
        f'<div class="tiles">{tiles(_tiles(report))}</div>',
        section("When which worker did what", _timeline(report), note=_left_out(report)),
        section("From the start of a task to its function", _spread(report),
                note="Cold: the task unpacked its environment, or waited for it. Warm: it found it ready."),
        section("Sent to workers", _bytes(report), note=_how_counted(report)),
        section("Environments and workers", _environments(report)),
        section("The slowest tasks", _slowest(report)),
        section("What a changed pin would send again", _resend(report), note=_resend_note(report)),
    ]  # fmt: skip
    return document(f"{program}: environments", parts, style=_STYLE)


def _when(report: Report) -> Iterator[str]:
    facts = report.run.facts
    yield time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(facts.get("began") or 0)))
    yield f"manager on {facts.get('host')}"
    yield f"engine {facts.get('engine') or 'not known'}"
    yield f"{span(report.seconds)} from the first submission to the last result"


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    tasks = report.run.tasks
    failed = sum(task.failed for task in tasks)
    yield "run", str(sum(task.span is not None for task in tasks)), f"of {len(tasks)} tasks done"
    if failed:
        yield "failed", str(failed), "failed"
    yield "plain", str(len({cost.worker for cost in report.costs})), "workers"
    total = Cost(environment="", worker="")
    for each in report.totals:
        total.add(each)
    yield "cold", amount(total.sent + total.fetched), "of environments sent"
    yield "cold", span(total.unpacking + total.waited), f"unpacking ({total.unpackings}×) and waiting"
    told = total.warm + total.unpackings
    if told:
        yield "warm", f"{total.warm / told:.0%}", "found it ready"
    yield "start", span(total.starting), "starting Python"
    yield "import", span(total.importing), "importing"
    yield "run", span(total.running), "running"


def _timeline(report: Report) -> str:
    bands: dict[str, list[Bar]] = {}
    for task in _drawn(report):
        bands.setdefault(worker_name(report.run, task.worker or "?"), []).append(_bar(report, task))
    first = {worker: min(bar.start for bar in bars) for worker, bars in bands.items()}
    shown = dict(sorted(bands.items(), key=lambda item: first[item[0]])[:MOST_WORKERS])
    drawn = timeline(shown, label="tasks by worker")
    return legend(_PARTS) + drawn if drawn else ""


def _drawn(report: Report) -> list[Task]:
    """The longest, where they are too many."""
    ran = [task for task in report.run.tasks if task.span is not None]
    return sorted(ran, key=lambda task: -task.seconds)[:MOST_BARS]


def _left_out(report: Report) -> str:
    ran = sum(task.span is not None for task in report.run.tasks)
    workers = len({task.worker for task in _drawn(report)})
    words = [f"the {MOST_BARS} longest of {ran} tasks"] if ran > MOST_BARS else []
    words += [f"the first {MOST_WORKERS} of {workers} workers"] if workers > MOST_WORKERS else []
    return f"Shown are {' on '.join(words)}." if words else ""


def _bar(report: Report, task: Task) -> Bar:
    assert task.span is not None
    start, end = task.span
    times = times_of(task)
    ready = start + task.providing
    loaded = ready + times["start"]
    imported = loaded + times["import"]
    # Where nobody told of the parts, it ran.
    words = (
        f"{task_name(task)} in {environment_name(report.run, task.environment)}: {task.seconds:.2f} s, of which "
        f"environment {task.providing:.2f}, start {times['start']:.2f}, import {times['import']:.2f}, "
        f"run {times['run']:.2f}" + (", failed" if task.failed else "")
    )
    last = "failed" if task.failed else "run"
    parts = (("cold", ready), ("start", loaded), ("import", imported), (last, end))
    return Bar(task.name, words, start, end, parts)


def _spread(report: Report) -> str:
    kinds: Mapping[str, list[float]] = {"cold": [], "warm": [], "start": []}
    for task in report.run.tasks:
        if task.span is None:
            continue
        if task.in_warm_interpreter:
            kinds["start"].append(max(0.001, times_of(task)["start"]))
        elif task.told.environment is not None or task.providing:
            found = task.told.environment
            waited = task.unpacked or (found is not None and found.waited > 0) or task.providing >= 0.5
            seconds = task.providing + times_of(task)["start"] + times_of(task)["import"]
            kinds["cold" if waited else "warm"].append(seconds)
    names = {"cold": "cold environment", "warm": "warm environment", "start": "warm interpreter"}
    rows = [Row(kind, names[kind], tuple(values)) for kind, values in kinds.items()]
    return spread(rows, label="seconds until functions ran", unit="s")


def _bytes(report: Report) -> str:
    rows = []
    for total in report.totals:
        name = environment_name(report.run, total.environment)
        workers = sum(1 for cost in report.costs if cost.environment == total.environment and cost.sent + cost.fetched)
        size = report.run.environments.get(total.environment, {}).get("size") or 0
        rows.append(
            Stack(
                name,
                (("cold", float(total.sent), f"{amount(total.sent)} from the manager"),
                 ("warm", float(total.fetched), f"{amount(total.fetched)} from other workers")),
                f"{amount(total.sent + total.fetched)} to {workers} of them; one weighs {amount(size)}",
            )
        )  # fmt: skip
    drawn = stacks(rows, label="bytes sent for each environment")
    return legend([("cold", "from the manager"), ("warm", "from other workers")]) + drawn if drawn else ""


def _how_counted(report: Report) -> str:
    if report.counted:
        return (
            "Counted: this engine's log does not tell what was sent. A worker is sent each part of an environment once."
        )
    return ""


def _environments(report: Report) -> str:
    heads = ("Worker", "Tasks", "Failed", "Sent", "Unpacked", "Unpacking", "Waiting", "Warm", "Start", "Import", "Run")
    parts = []
    for total in report.totals:
        facts = report.run.environments.get(total.environment, {})
        costs = [cost for cost in report.costs if cost.environment == total.environment]
        costs.sort(key=lambda each: (-each.sent - each.fetched, -each.tasks, each.worker))
        rows = [_cells(worker_name(report.run, cost.worker), cost) for cost in costs]
        how = "built in this run" if facts.get("built") else "from the cache"
        packages = ", ".join(map(str, facts.get("packages") or ())) or "no packages"
        opened = " open" if len(rows) <= 12 else ""
        parts.append(
            f"<details{opened}><summary>{escape(environment_name(report.run, total.environment))}</summary>"
            f"<p><code>{escape(packages)}</code><br>Python {escape(str(facts.get('python') or '–'))}, "
            f"{amount(facts.get('size') or 0)} as a tarball, {amount(facts.get('unpacked') or 0)} unpacked, {how}</p>"
            f"{table(heads, [*rows, _cells('all workers', total)], numbers=range(1, len(heads)), sums=1)}</details>"
        )
    return "".join(parts)


def _cells(name: str, cost: Cost) -> tuple[str, ...]:
    return (
        name, str(cost.tasks), str(cost.failed or ""), amount(cost.sent + cost.fetched), f"{cost.unpackings}×",
        span(cost.unpacking), span(cost.waited), str(cost.warm), span(cost.starting), span(cost.importing),
        span(cost.running),
    )  # fmt: skip


def _slowest(report: Report) -> str:
    heads = ("Task", "Worker", "Environment", "Total", "Environment", "Start", "Import", "Run")
    rows = []
    for task in report.slowest:
        times = times_of(task)
        rows.append(
            (
                task_name(task) + (" (failed)" if task.failed else ""), worker_name(report.run, task.worker or "?"),
                environment_name(report.run, task.environment), span(task.seconds), span(task.providing),
                span(times["start"]), span(times["import"]), span(times["run"]),
            )
        )  # fmt: skip
    return table(heads, rows, numbers=range(3, 8)) if rows else ""


def _resend(report: Report) -> str:
    rows = []
    for total in report.totals:
        name = environment_name(report.run, total.environment)
        found = report.resend.get(total.environment, ())
        rows += [(each.package, name, amount(each.layer), amount(each.whole)) for each in found[:MOST_PINS]]
        if len(found) > MOST_PINS:
            rows.append((f"{len(found) - MOST_PINS} smaller ones", name, f"≤ {amount(found[MOST_PINS].layer)}",
                         amount(found[MOST_PINS].whole)))  # fmt: skip
    return table(("Another version of", "in", "changes", "of"), rows, numbers=(2, 3)) if rows else ""


def _resend_note(report: Report) -> str:
    if report.layered:
        return "Only what changes is sent to a worker that has the rest."
    return "Sent as one file, all of it goes to every worker again; as layers, only what changes would."
