"""The soak: many workers that die at any moment, a manager that dies once, code and pins that change meanwhile.

``python -m tests.engines.soak --tasks 20000`` (``make soak``) prints the figures for each engine that is installed, and
ends with status 1 when a result is wrong, lost or there twice, when anything is left over, or when the manager's memory
grew; also when there is no engine, or not the one that was asked for with ``--engine``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cloudpickle

from poncho_wq.engines.binding import find_work_queue
from poncho_wq.engines.vine_manager import find_taskvine
from poncho_wq.engines.workers import TASKVINE, WORK_QUEUE, LocalWorkers
from poncho_wq.errors import EngineNotInstalled
from tests.conftest import ROOT
from tests.engines.soaking import an_environment, below, kill_one
from tests.wheelhouse import write_wheel

NAMES = {"work_queue": "Work Queue", "taskvine": "TaskVine"}
WORKERS = {"work_queue": WORK_QUEUE, "taskvine": TASKVINE}
TARBALLS = 4  # and one environment that is built from a specification
PATIENCE = 600  # seconds without a result, after which the rest is lost
GROWTH = 48 * 1024  # KiB that a manager may grow by after its first fifth


@dataclass
class Figures:
    """How it went."""

    tasks: int
    workers: int
    engine: str = "work_queue"
    kills: int = 0
    while_unpacking: int = 0
    restarts: int = 0
    edits: int = 0
    pins: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    twice: int = 0
    unpacked: int = 0
    evicted: int = 0
    warm: int = 0
    left: list[str] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def grown(self) -> bool:
        return any(last - first > GROWTH for first, last in self.memory)

    @property
    def good(self) -> bool:
        return not (self.wrong or self.lost or self.twice or self.left or self.grown)

    def __str__(self) -> str:
        memory = ", ".join(f"{first // 1024} to {last // 1024} MB" for first, last in self.memory)
        return (
            f"{NAMES[self.engine]}: tasks {self.tasks} in {self.seconds:.0f} s on {self.workers} workers; "
            f"workers killed {self.kills} ({self.while_unpacking} while unpacking), manager restarted {self.restarts}, "
            f"code edited {self.edits}, pins changed {self.pins}; environments unpacked {self.unpacked}, "
            f"evicted {self.evicted}; run in warm interpreters {self.warm}; "
            f"wrong {len(self.wrong)}, lost {self.lost}, twice {self.twice}, left over {len(self.left)}; "
            f"memory of the manager {memory}"
        )


class Soak:
    """One run, in a directory of its own."""

    def __init__(
        self, directory: Path, *, tasks: int, workers: int, seed: int, pauses: str = "0.5,1,2,4",
        minutes: float = 24 * 60, engine: str = "work_queue",
    ) -> None:  # fmt: skip
        self._directory = directory
        now = time.monotonic()
        self._half, self._until = now + minutes * 30, now + minutes * 60
        self._chance = random.Random(seed)
        self._pauses = [float(each) for each in pauses.split(",")]
        self.figures = Figures(tasks=tasks, workers=workers, engine=engine)
        for name in ("code", "own", "workers", "tmp", "manager-tmp", "cache", "wheels", "tarballs"):
            (directory / name).mkdir()
        for number in (1, 2, 3):
            version = f"{number}.0"
            write_wheel(directory / "wheels", "soaked", version, {"soaked.py": f'VERSION = "{version}"\n'})
        # TaskVine's environments have it, and no index is asked
        write_wheel(
            directory / "wheels", "cloudpickle", cloudpickle.__version__,
            {f"cloudpickle/{file.name}": file.read_text() for file in Path(cloudpickle.__file__).parent.glob("*.py")},
        )  # fmt: skip
        made = [an_environment(directory / "tarballs", number, parts=200) for number in range(TARBALLS)]
        plan = {
            "tasks": tasks, "workers": workers, "port": 0, "engine": engine,
            "environments": [(str(path), f"environment {n}", digest) for n, (path, digest) in enumerate(made)],
        }  # fmt: skip
        self._plan = plan
        self._write_plan()

    def _write_plan(self) -> None:
        (self._directory / "plan.json").write_text(json.dumps(self._plan))

    def run(self) -> Figures:
        started = time.monotonic()
        manager = self._start_manager()
        try:
            environ = {
                "PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": str(self._directory / "tmp"),
                # not room for all that share it, so that there is something to evict
                "PONCHO_NODE_CACHE": str(self._directory / "node"), "PONCHO_NODE_CACHE_SIZE": "200M",
            }  # fmt: skip
            self._plan["port"] = port = self._port(manager)
            self._write_plan()
            with LocalWorkers(
                port, count=self.figures.workers, directory=self._directory / "workers", environ=environ,
                options=("--disk", "4000", "--memory", "2000"), program=WORKERS[self.figures.engine],
            ) as workers:  # fmt: skip
                manager = self._disturb(manager, workers)
        finally:
            manager.kill()
            manager.wait()
        self.figures.seconds = time.monotonic() - started
        self._count()
        self._look_for_leavings()
        return self.figures

    def _start_manager(self) -> subprocess.Popen[bytes]:
        (self._directory / "port").unlink(missing_ok=True)
        environ = {
            # where the engine's binding may be, which the tests take out of their own environment
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TMPDIR": str(self._directory / "manager-tmp"), "PONCHO_CACHE_DIR": str(self._directory / "cache"),
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._directory / "wheels"),
        }  # fmt: skip
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.engines.soak_manager", str(self._directory)], cwd=ROOT, env=environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _port(self, manager: subprocess.Popen[bytes]) -> int:
        until = time.monotonic() + 120
        while time.monotonic() < until and manager.poll() is None:
            text = (self._directory / "port").read_text() if (self._directory / "port").exists() else ""
            if text:
                return int(text)
            time.sleep(0.1)
        raise AssertionError(f"the manager did not start: {(self._directory / 'log').read_text()[-2000:]}")

    def _results(self) -> int:
        file = self._directory / "results"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def _disturb(self, manager: subprocess.Popen[bytes], workers: LocalWorkers) -> subprocess.Popen[bytes]:
        """Kill workers until the manager has all results, and once, half of the way or time, the manager itself."""
        figures = self.figures
        next_kill = time.monotonic() + 1
        last, seen, said = time.monotonic(), 0, 0
        while manager.poll() is None:
            time.sleep(0.1)
            done = self._results()
            if done > seen:
                last, seen = time.monotonic(), done
            if done >= said + max(1, figures.tasks // 20):
                said = done
                print(f"  {done} of {figures.tasks}, {figures.kills} workers killed", flush=True)
            if time.monotonic() >= self._until:
                (self._directory / "enough").touch()
            assert time.monotonic() - last < PATIENCE, f"no result any more after {done}: {self._log()}"
            workers.replace_dead()
            half = done >= figures.tasks // 2 or time.monotonic() >= self._half
            if half and not figures.restarts:
                manager.send_signal(signal.SIGKILL)
                manager.wait()
                figures.restarts += 1
                manager = self._start_manager()
                self._port(manager)
            if time.monotonic() >= next_kill:
                figures.while_unpacking += kill_one(workers, self._chance)
                figures.kills += 1
                next_kill = time.monotonic() + self._chance.choice(self._pauses)
        assert manager.returncode == 0, self._log()
        return manager

    def _log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-3000:]

    def _count(self) -> None:
        figures = self.figures
        lines = [json.loads(line) for line in (self._directory / "results").read_text().splitlines()]
        found = {line["task"] for line in lines}
        # What was asked of the manager: all, unless the time was over before.
        asked = set(map(int, (self._directory / "asked").read_text().split()))
        figures.tasks = len(asked)
        figures.lost = len(asked - found)
        figures.twice = len(lines) - len(found)
        figures.wrong = [f"{line['task']}: {line['got']}" for line in lines if line["got"] != line["expected"]]
        figures.pins = len({line["expected"][1] for line in lines if not line["expected"][2]}) - 1
        figures.unpacked = sum(line["unpacked"] for line in lines)
        figures.evicted = sum(line["evicted"] for line in lines)
        figures.warm = sum(line["warm"] for line in lines)
        figures.edits = len((self._directory / "edits").read_text().splitlines())
        lives: dict[str, list[int]] = {}
        for line in (self._directory / "memory").read_text().splitlines():
            pid, _, size = line.split()
            lives.setdefault(pid, []).append(int(size))
        figures.memory = [(sizes[len(sizes) // 5], sizes[-1]) for sizes in lives.values()]

    def _look_for_leavings(self) -> None:
        """Processes, directories and files that should not be there any more."""
        left = self.figures.left
        left += below(self._directory)
        for name in ("workers", "tmp", "manager-tmp"):
            # Work Queue's Python makes a directory when it is imported; killed, it removes it no more than any other.
            left += [str(path) for path in (self._directory / name).iterdir() if "wq-py-staging" not in path.name]
        left += [str(path) for path in (self._directory / "cache").glob("v1/tmp/*") if path.name != ".lock"]
        node = self._directory / "node"
        for path in node.iterdir() if node.exists() else ():
            # what a death left goes with the next that unpacks; all else is an environment, or the lock of one
            if len(path.name) != 64 and not path.name.startswith((".poncho-lock", ".poncho-new.", ".poncho-old.")):
                left.append(str(path))


def absent(engine: str) -> str | None:
    """What of an engine is not installed; None when all of it is."""
    if shutil.which(WORKERS[engine]) is None:
        return f"no {WORKERS[engine]} on PATH"
    try:
        (find_taskvine if engine == "taskvine" else find_work_queue)()
    except EngineNotInstalled as error:
        return error.message
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the soak and print its figures.")
    parser.add_argument("--engine", choices=NAMES, action="append", help="default: each that is installed")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pauses", default="0.5,1,2,4", help="seconds between two kills, of which one is drawn")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="after these no more tasks are begun")
    given = parser.parse_args()
    done = []
    for engine in given.engine or NAMES:
        if missing := absent(engine):
            print(f"soak: {NAMES[engine]} is absent ({missing})", flush=True)
            done += [False] if given.engine else []
            continue
        print(f"soak: {NAMES[engine]}, {given.tasks} tasks, {given.workers} workers, seed {given.seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="soak-") as name:
            soak = Soak(
                Path(name).resolve(), tasks=given.tasks, workers=given.workers, seed=given.seed,
                pauses=given.pauses, minutes=given.minutes, engine=engine,
            )  # fmt: skip
            figures = soak.run()
        print(figures)
        for line in (*figures.wrong[:20], *figures.left[:20]):
            print(f"  {line}")
        done.append(figures.good)
    return 0 if done and all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
