"""How environments, workers and tasks are called for people."""

from __future__ import annotations

import re

from poncho_wq.report.run import Run, Task


def environment_name(run: Run, identity: str) -> str:
    """What it was asked for, and enough of the identity to tell two apart."""
    packages = [re.split(r"[\s=<>!~;\[@]", each, maxsplit=1)[0] for each in _packages(run, identity)]
    packages = [each.rpartition("::")[2] for each in packages]
    shown = ", ".join(packages[:3]) + (f", +{len(packages) - 3}" if len(packages) > 3 else "")
    return f"{identity[:8]} {shown or 'no packages'}"


def _packages(run: Run, identity: str) -> list[str]:
    found = run.environments.get(identity, {}).get("packages") or []
    return [each for each in found if isinstance(each, str)]


def worker_name(run: Run, worker: str) -> str:
    """Its address where the engine names it by a random word; two workers never have one at a time."""
    address = run.log.addresses.get(worker, worker)
    return address.removesuffix(":0")


def task_name(task: Task) -> str:
    """``fit #7``."""
    return f"{task.name} #{task.number}" if task.number is not None else task.name
