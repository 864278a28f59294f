"""A user's manager in the soak: ``python -m tests.engines.soak_manager DIRECTORY``.  It may be killed at any moment.

DIRECTORY/plan.json says what to do; every result is one line of DIRECTORY/results, with what it should have been, and
what is there already is not done again.  While it runs it edits the code that its tasks ship, and changes a pin.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from poncho_wq.engines.opened import open_engine

EDIT_EVERY = 250  # submissions
MEMORY_EVERY = 20  # results
HELPER = "VERSION = {version}\n\n\ndef square(number):\n    return number * number + VERSION\n"


def work(number: int) -> tuple[int, str, str]:
    """In an environment that can tell whether it is whole, with a helper that is edited meanwhile."""
    import os
    import time

    import soak_helper
    import which_environment

    with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
        print("warm" if b"\0--serve\0" in file.read() else "fresh")
    time.sleep(number % 7 / 100)
    return soak_helper.square(number), which_environment.NAME, which_environment.digest_of_all()


def pinned(number: int) -> tuple[int, str, str]:
    """In an environment that is built from a specification, whose pin changes meanwhile."""
    import soak_helper
    import soaked

    return soak_helper.square(number), soaked.VERSION, ""


class Manager:
    """One life of the manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._plan = json.loads((directory / "plan.json").read_text())
        self._results = (directory / "results").open("a", buffering=1)
        self._asked = (directory / "asked").open("a", buffering=1)
        self._done = {json.loads(line)["task"] for line in (directory / "results").read_text().splitlines()}
        self._expected: dict[int, tuple[int, str, str]] = {}
        self._submitted = 0
        self._version = time.time_ns() // 1000
        self._edit()

    def run(self) -> None:
        todo = [number for number in range(self._plan["tasks"]) if number not in self._done]
        todo.reverse()
        with open_engine(self._plan["engine"], port=self._plan["port"], directory=self._directory / "own") as engine:
            (self._directory / "port").write_text(str(engine.queue.port))
            waiting: dict[int, int] = {}
            while todo or waiting:
                if (self._directory / "enough").exists():
                    todo.clear()
                while todo and len(waiting) < 4 * self._plan["workers"]:
                    number = todo.pop()
                    self._asked.write(f"{number}\n")
                    waiting[engine.submit(self._task(engine, number))] = number
                task = engine.wait(1)
                if task is not None:
                    self._keep(waiting.pop(task.id), task)

    def _task(self, engine: Any, number: int) -> Any:
        if self._submitted and self._submitted % EDIT_EVERY == 0:
            self._edit()
        self._submitted += 1
        environments = self._plan["environments"]
        which = number % (len(environments) + 1)
        if which == len(environments):
            # The pin changes twice in the course of all tasks, whoever is manager then.
            pin = f"{1 + 3 * number // self._plan['tasks']}.0"
            task = engine.PonchoTask(pinned, number, environment={"pip": [f"soaked=={pin}"]}, **self._place("node"))
            self._expected[number] = (number * number + self._version, pin, "")
        else:
            tarball, name, digest = environments[which]
            where = "node" if which == len(environments) - 1 else "worker"
            task = engine.PonchoTask(work, number, environment=tarball, **self._place(where))
            self._expected[number] = (number * number + self._version, name, digest)
            if number % 2 and where == "worker" and self._plan["engine"] == "work_queue":
                # Whoever wants to know what a task cost has it run fresh.
                task.specify_warm(True)
                return task
        task.collect_environment_stats()
        return task

    def _place(self, where: str) -> dict[str, str]:
        """TaskVine unpacks environments itself, in the one place that it knows."""
        return {} if self._plan["engine"] == "taskvine" else {"unpack_to": where}

    def _keep(self, number: int, task: Any) -> None:
        stats = task.environment_stats
        line = {
            "task": number, "got": task.output if isinstance(task.output, tuple) else repr(task.output),
            "expected": self._expected.pop(number), "unpacked": bool(stats and stats.unpacked),
            "evicted": stats.evicted if stats else 0, "warm": "warm\n" in (task.std_output or ""),
        }  # fmt: skip
        self._results.write(json.dumps(line) + "\n")
        self._done.add(number)
        if len(self._done) % MEMORY_EVERY == 0:
            with (self._directory / "memory").open("a") as file:
                file.write(f"{os.getpid()} {len(self._done)} {resident()}\n")

    def _edit(self) -> None:
        """Another version of the code beside the program, at once: the next task takes it."""
        self._version += 1
        helper = self._directory / "code" / "soak_helper.py"
        partial = helper.with_suffix(".new")
        partial.write_text(HELPER.format(version=self._version))
        partial.replace(helper)
        importlib.invalidate_caches()
        with (self._directory / "edits").open("a") as file:
            file.write(f"{self._version}\n")


def resident() -> int:
    """KiB of memory that this process has."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1], "code")))
    Manager(Path(sys.argv[1])).run()
