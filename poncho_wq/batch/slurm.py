"""Slurm's words for what a job takes → ``Resources``.

The keys are those of distribute's ``slurm`` section, the forms those of sbatch(1): memory ``100M``, ``4G`` (megabytes
without a letter), time ``MINUTES``, ``MINUTES:SECONDS``, ``HOURS:MINUTES:SECONDS``, ``DAYS-HOURS[:MINUTES[:SECONDS]]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from poncho_wq.batch.model import Resources

USED = ("cpus_per_task", "mem_per_cpu", "ntasks", "time", "nodes")
IGNORED = ("job_name", "output", "hint", "partition", "account", "mail_user", "mail_type")
KNOWN = (*USED, *IGNORED)

_MEMORY = re.compile(r"([0-9]+)([KMGT]?)B?", re.IGNORECASE)
_MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}
_TIME = re.compile(r"(?:(?P<days>[0-9]+)-)?(?P<rest>[0-9]+(?::[0-9]+){0,2})")


def resources_of(slurm: Mapping[str, str]) -> tuple[Resources, list[tuple[str, str]]]:
    """The resources, and what is wrong: (key, message) each."""
    wrong: list[tuple[str, str]] = []

    def number(key: str) -> int:
        text = slurm.get(key, "1")
        if text.isdecimal() and int(text) > 0:
            return int(text)
        wrong.append((key, f"expected a number from 1, got {text!r}"))
        return 1

    if number("nodes") > 1:
        wrong.append(("nodes", f"nodes={slurm['nodes']}: a job runs on one worker"))
    cores = number("cpus_per_task") * number("ntasks")
    memory = walltime = None
    if "mem_per_cpu" in slurm:
        match = _MEMORY.fullmatch(slurm["mem_per_cpu"].strip())
        if match is None or int(match[1]) == 0:
            wrong.append(("mem_per_cpu", f"expected an amount such as 500M or 4G, got {slurm['mem_per_cpu']!r}"))
        else:
            memory = max(1, round(int(match[1]) * _MEGABYTES[match[2].upper()] * cores))
    if "time" in slurm:
        walltime = seconds(slurm["time"])
        if not walltime:
            wrong.append(("time", f"expected a time such as 30, 2:00:00 or 1-12, got {slurm['time']!r}"))
    return Resources(cores=cores, memory=memory, walltime=walltime or None), wrong


def seconds(text: str) -> float | None:
    """A time as sbatch takes it; None when it is none."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, secs = [*parts, 0, 0][:3]
        return float(((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + secs)
    if len(parts) == 3:
        return float((parts[0] * 60 + parts[1]) * 60 + parts[2])
    return float(parts[0] * 60 + (parts[1] if len(parts) == 2 else 0))
