"""The report for a terminal, a pipe or a notebook: plain text in lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from poncho_wq.drawing.page import amount, span
from poncho_wq.report.costs import Cost, Report, times_of
from poncho_wq.report.run import Task
from poncho_wq.report.words import environment_name, task_name, worker_name

WIDTH = 80
# Of a cluster's thousand workers, those that were sent the most.
WORKERS = 20
PINS = 5


def as_text(report: Report) -> str:
    """All of it, with a last newline.  Names of users are shown without control characters."""
    return "".join(f"{_plain(line)[:WIDTH].rstrip()}\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    run = report.run
    done = sum(task.span is not None for task in run.tasks)
    failed = sum(task.failed for task in run.tasks)
    workers = len({cost.worker for cost in report.costs})
    of = f"{run.facts.get('program')} on {run.facts.get('host')}"
    yield f"{of}: {done} of {len(run.tasks)} tasks done, {failed} failed"
    yield f"{workers} workers, {span(report.seconds)}, engine {run.facts.get('engine') or 'not known'}"
    if not report.costs:
        yield "No task has come back yet: there is nothing to report."
        return
    for total in report.totals:
        yield ""
        yield from _environment(report, total)
    yield ""
    yield f"Slowest tasks{'':<21}{'total':>9}{'environ.':>10}{'start':>8}{'import':>8}{'run':>9}"
    for task in report.slowest:
        yield _task(task)
    if report.counted:
        yield ""
        yield "This engine's log does not say what was sent: bytes are counted, once for"
        yield "each worker that ran a task in an environment."


def _environment(report: Report, total: Cost) -> Iterator[str]:
    run = report.run
    facts = run.environments.get(total.environment, {})
    how = "built in this run" if facts.get("built") else "from the cache"
    yield f"Environment {environment_name(run, total.environment)}"
    yield f"  Python {facts.get('python') or '–'}, {amount(facts.get('size') or 0)}, {how}"
    heads = f"{'sent':>8}{'unpack':>8}{'wait':>7}{'warm':>6}{'start':>7}{'import':>8}{'run':>7}"
    yield f"  {'worker':<19}{'tasks':>6}{heads}"
    costs = sorted((cost for cost in report.costs if cost.environment == total.environment),
                   key=lambda each: (-each.sent - each.fetched, -each.tasks, each.worker))  # fmt: skip
    for cost in costs[:WORKERS]:
        yield _row(worker_name(run, cost.worker), cost)
    if len(costs) > WORKERS:
        yield f"  … and {len(costs) - WORKERS} more"
    if len(costs) > 1:
        yield _row("all", total)
    resend = report.resend.get(total.environment, ())
    if resend:
        yield "  " + _resend_heading(report, resend[0].whole)
        for each in resend[:PINS]:
            yield f"    {each.package:<40}{amount(each.layer):>9}"
        if len(resend) > PINS:
            rest = resend[PINS:]
            yield f"    … {len(rest)} smaller ones{'':<{26 - len(str(len(rest)))}}≤ {amount(rest[0].layer):>7}"


def _resend_heading(report: Report, whole: int) -> str:
    if report.layered:
        return "Another version of a package sends again, to each worker:"
    return f"Another version of any package sends all {amount(whole)} again; what differs is:"


def _row(name: str, cost: Cost) -> str:
    unpack = f"{span(cost.unpacking)}" if cost.unpackings else "–"
    sent = amount(cost.sent + cost.fetched) if cost.sent + cost.fetched else "–"
    return (
        f"  {name[:18]:<19}{cost.tasks:>6}{sent:>8}{_short(unpack):>8}{_short(span(cost.waited)):>7}{cost.warm:>6}"
        f"{_short(span(cost.starting)):>7}{_short(span(cost.importing)):>8}{_short(span(cost.running)):>7}"
    )


def _task(task: Task) -> str:
    times = times_of(task)
    return (
        f"  {task_name(task)[:31]:<32}{_short(span(task.seconds)):>9}{_short(span(task.providing)):>10}"
        f"{_short(span(times['start'])):>8}{_short(span(times['import'])):>8}{_short(span(times['run'])):>9}"
    )


def _short(text: str) -> str:
    """``3 min 20 s`` as ``3m20s``: columns are narrow."""
    parts: Sequence[str] = text.replace(" min", "m").replace(" h", "h").split(" ")
    return "".join(parts) if "m" in text or "h" in text else text


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
