"""What a worker's machine must have: a POSIX sh script that needs nothing but a shell, here or on any other machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from poncho_wq.doctor.finding import LEVELS, Finding, problem

_SCRIPT = Path(__file__).resolve().parent / "check_worker"


def worker_script() -> str:
    """The text of the script.  It prints a line a finding and exits with 1 when there is a problem."""
    return _SCRIPT.read_text()


def here() -> Iterator[Finding]:
    """The script's findings on this machine: the manager's own workers run here as well."""
    try:
        done = subprocess.run(
            ["sh", str(_SCRIPT), "--tsv"], capture_output=True, text=True, errors="replace", timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield problem(
            "node", f"sh cannot run a script: {error}", "put the directory of sh on PATH: export PATH=/usr/bin:/bin"
        )
        return
    yield from parse(done.stdout)


def parse(text: str) -> Iterator[Finding]:
    """The lines of ``--tsv``: level, check, text, mend, with tabs between."""
    for line in text.splitlines():
        words = line.split("\t")
        if len(words) == 4 and words[0] in LEVELS:
            level = next(each for each in LEVELS if each == words[0])
            yield Finding(check=words[1], level=level, text=words[2], mend=words[3] or None)
