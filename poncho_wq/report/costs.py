"""The sums: what each environment cost each worker, the slowest tasks, and what a changed pin would send again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from poncho_wq.report.log import Transfer
from poncho_wq.report.run import Run, Task

SLOWEST = 10


@dataclass(kw_only=True, slots=True)
class Cost:
    """One environment on one worker.  Sizes are bytes, the rest seconds, summed over ``tasks``.

    ``sent`` by the manager, ``fetched`` from other workers.  ``unpackings``: how often it was unpacked there, in
    ``unpacking``; ``waited`` for other tasks that did; ``warm`` tasks found it ready, ``interpreters`` of those a warm
    interpreter.  ``starting`` is Python's own start and loading the function, ``importing`` what imports took,
    ``running`` the rest of the calls.
    """

    environment: str
    worker: str
    tasks: int = 0
    failed: int = 0
    sent: int = 0
    fetched: int = 0
    unpackings: int = 0
    unpacking: float = 0.0
    waited: float = 0.0
    warm: int = 0
    interpreters: int = 0
    starting: float = 0.0
    importing: float = 0.0
    running: float = 0.0

    def add(self, other: Cost) -> None:
        """Count another's in."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS = ("tasks", "failed", "sent", "fetched", "unpackings", "unpacking", "waited", "warm", "interpreters",
           "starting", "importing", "running")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Resend:
    """What another version of ``package`` would send to a worker that has the environment: ``layer``, where only what
    changes is sent, or else ``whole``; bytes.
    """

    package: str
    layer: int
    whole: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """``costs`` by environment and worker; ``totals`` the same by environment; ``counted``: the engine's log does not
    tell what was sent, so that each worker's first task in an environment stands for sending it.
    """

    run: Run
    costs: Sequence[Cost]
    totals: Sequence[Cost]
    slowest: Sequence[Task]
    resend: Mapping[str, Sequence[Resend]]
    layered: bool
    counted: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": {**self.run.facts, "tasks": len(self.run.tasks), "seconds": self.seconds},
            "sent_is_counted": self.counted,
            "environments": [
                {
                    "identity": total.environment,
                    **{key: self.run.environments.get(total.environment, {}).get(key)
                       for key in ("packages", "python", "size", "unpacked", "built")},
                    "total": _numbers(total),
                    "workers": [
                        {"worker": cost.worker, "address": self.run.log.addresses.get(cost.worker), **_numbers(cost)}
                        for cost in self.costs if cost.environment == total.environment
                    ],
                    "resend": [asdict(each) for each in self.resend.get(total.environment, ())],
                }
                for total in self.totals
            ],
            "slowest": [
                {
                    "task": task.number, "name": task.name, "worker": task.worker, "environment": task.environment,
                    "seconds": task.seconds, "environment_seconds": task.providing, **times_of(task),
                    "failed": task.failed,
                }
                for task in self.slowest
            ],
        }  # fmt: skip

    @property
    def seconds(self) -> float:
        """From the first submission to the last end of a task."""
        ends = [task.span[1] for task in self.run.tasks if task.span is not None]
        return max(0.0, max(ends) - min(task.submitted for task in self.run.tasks)) if ends else 0.0


def make_report(run: Run, *, slowest: int = SLOWEST) -> Report:
    """The sums over ``run``."""
    counted = not run.log.has_transfers and run.facts.get("engine") == "work_queue"
    costs: dict[tuple[str, str], Cost] = {}

    def cost(environment: str, worker: str) -> Cost:
        key = environment, worker
        if key not in costs:
            costs[key] = Cost(environment=environment, worker=worker)
        return costs[key]

    for task in sorted(run.tasks, key=lambda each: each.span or (float("inf"), 0.0)):
        if task.worker is not None:
            _count(cost(task.environment, task.worker), task)
    if counted:
        # In the order in which tasks began: a part that two environments share went to a worker with the first.
        has: set[tuple[str, str]] = set()
        for each in costs.values():
            for name, size in run.environments.get(each.environment, {}).get("inputs", {}).items():
                if (each.worker, name) not in has:
                    has.add((each.worker, name))
                    each.sent += size
    order: dict[str, list[str]] = {}
    for environment, worker in costs:
        order.setdefault(worker, []).append(environment)
    for transfer in run.log.transfers:
        owner = _environment_of(transfer, run, order)
        if owner is None:
            continue
        # A worker may have been sent what none of its tasks came to use.
        found = cost(owner, transfer.worker)
        if transfer.source == "unpacked":
            found.unpackings += 1
            found.unpacking += transfer.seconds
            found.warm = max(0, found.warm - 1)
        elif transfer.source == "peer":
            found.fetched += transfer.size
        else:
            found.sent += transfer.size
    totals: dict[str, Cost] = {}
    for each in costs.values():
        totals.setdefault(each.environment, Cost(environment=each.environment, worker="all")).add(each)
    ran = [task for task in run.tasks if task.span is not None]
    layered = any(_is_layered(each, run.facts.get("engine")) for each in run.environments.values())
    return Report(
        run=run,
        costs=sorted(costs.values(), key=lambda each: (each.environment, each.worker)),
        totals=sorted(totals.values(), key=lambda each: -each.tasks),
        slowest=sorted(ran, key=lambda each: -each.seconds)[:slowest],
        resend={identity: _resend(facts) for identity, facts in run.environments.items()},
        layered=layered,
        counted=counted,
    )


def _count(cost: Cost, task: Task) -> None:
    cost.tasks += 1
    cost.failed += task.failed
    found = task.told.environment
    if found is not None:
        cost.unpackings += found.unpacked
        cost.unpacking += found.unpacking if found.unpacked else 0.0
        cost.waited += found.waited
        cost.warm += not found.unpacked
    cost.interpreters += task.in_warm_interpreter
    cost.warm += task.in_warm_interpreter
    times = times_of(task)
    cost.starting += times["start"]
    cost.importing += times["import"]
    cost.running += times["run"]


def times_of(task: Task) -> dict[str, float]:
    """Where the time of the command itself went: ``start``, ``import`` and ``run``; all of it was running where nobody
    told more."""
    times = task.told.times
    if times is None:
        return {"start": 0.0, "import": 0.0, "run": max(0.0, task.seconds - task.providing)}
    # A child of a warm interpreter starts no Python; what passed since the file was made is the server's.
    load = max(0.0, times.load + times.call - times.imports)
    run = min(times.call, load)
    return {"start": times.start + load - run, "import": times.imports, "run": run}


def _environment_of(transfer: Transfer, run: Run, order: Mapping[str, Sequence[str]]) -> str | None:
    """Whose file it is: Work Queue tells the name that we gave it, TaskVine only the size of what it has named.

    A part of several environments counts for that which the worker had a task of first; ``order`` tells.
    """
    environments = run.environments
    vine = run.facts.get("engine") == "taskvine"
    if vine and transfer.source == "unpacked":
        # A file system's own blocks and the links that TaskVine adds make it a little more than the manifest says.
        by_size = {key: abs((facts.get("unpacked") or 0) - transfer.size) for key, facts in environments.items()}
        return min(by_size, key=lambda key: by_size[key], default=None)
    owners = set()
    for key, facts in environments.items():
        inputs = facts.get("inputs") or {}
        if (transfer.size in inputs.values()) if vine else (transfer.name in inputs):
            owners.add(key)
    return next((key for key in order.get(transfer.worker, ()) if key in owners), min(owners, default=None))


def _is_layered(facts: Mapping[str, Any], engine: object) -> bool:
    """Whether of another environment only the layers that differ are sent to a worker that has this one."""
    # TaskVine has it in parts then.  Work Queue needs to know what is in the one file.
    return len(facts.get("inputs", {})) > 1 or (engine != "taskvine" and bool(facts.get("layers")))


def _resend(facts: Mapping[str, Any]) -> Sequence[Resend]:
    """For each package that was locked; the largest first."""
    layers = {layer["name"]: int(layer["size"]) for layer in facts.get("layers", ())}
    # What lists the packages changes with any of them.
    always = layers.get("runtime", 0)
    found = [
        Resend(package=pin["package"], layer=always + sum(layers.get(each, 0) for each in pin["layers"]),
               whole=int(facts.get("size") or 0))
        for pin in facts.get("pins", ())
    ]  # fmt: skip
    return sorted(found, key=lambda each: (-each.layer, each.package))


def _numbers(cost: Cost) -> dict[str, Any]:
    return {name: getattr(cost, name) for name in _COUNTS}
