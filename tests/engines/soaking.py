"""What the soaks share: environments that tell whether they are whole, processes to kill, and what is left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
from pathlib import Path

import poncho_wq
from poncho_wq.engines.workers import LocalWorkers
from poncho_wq.wrapper import wrapper_path
from tests.engines.conftest import PYTHON, make_environment

# By the wrapper, and as TaskVine does it.
_EXTRACTS = re.compile(rb"\btar\0-?x")

# Counts what is there: a half-made environment would give another digest, or none.
MODULE = """
import hashlib, pathlib
NAME = {name!r}
def digest_of_all():
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("part*.txt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
"""


def an_environment(directory: Path, number: int, *, parts: int = 600) -> tuple[Path, str]:
    """A tarball that takes a while to unpack, and the digest of its parts."""
    chance = random.Random(number)
    where = f"lib/{PYTHON}/site-packages"
    texts = {f"part{part:04}.txt": chance.randbytes(2000).hex() for part in range(parts)}
    extra = {f"{where}/{name}": text for name, text in texts.items()}
    extra[f"{where}/which_environment.py"] = MODULE.format(name=f"environment {number}")
    # what TaskVine calls on a worker, and what that looks for
    extra["bin/run_in_env"] = Path(poncho_wq.__file__).with_name("prefix_files").joinpath("run_in_env").read_text()
    extra["bin/poncho_package_run"] = wrapper_path().read_text()
    extra["poncho/spec.json"] = "{}"
    path = make_environment(directory / f"environment-{number}.tar.gz", extra=extra)
    return path, hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode()).hexdigest()


def below(directory: Path) -> list[str]:
    """Processes that work below a directory, or were started from there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                at = os.readlink(entry / "cwd")
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if at.startswith(f"{directory}/") or f"{directory}/" in words:
                    found.append(f"{entry.name}: {words}")
    return found


def is_unpacking(worker: subprocess.Popen[bytes]) -> bool:
    """Whether an environment is being made in the workspace of a worker, or by one of its tasks in the node's cache."""
    argv = worker.args
    assert isinstance(argv, list)
    if list(Path(argv[argv.index("-s") + 1]).glob("*/.poncho-new.*")):
        return True
    words = [(Path("/proc") / str(pid) / "cmdline") for pid in descendants(worker.pid)]
    with contextlib.suppress(OSError):
        return any(_EXTRACTS.search(each.read_bytes()) for each in words)
    return False


def descendants(pid: int) -> list[int]:
    """A process's children and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for child in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def kill_one(workers: LocalWorkers, chance: random.Random) -> bool:
    """Kill a worker with all that it runs, and start another; whether it was in the middle of unpacking."""
    # A worker that has just begun unpacks: half of the kills are meant for such a one.
    victim = workers.processes[-1] if chance.random() < 0.5 else chance.choice(workers.processes)
    was_unpacking = is_unpacking(victim)
    for pid in [victim.pid, *descendants(victim.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    victim.wait()
    workers.processes.remove(victim)
    # what a worker leaves that is killed is its site's to remove, here as there
    workers.start_one()
    return was_unpacking
