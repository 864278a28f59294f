"""What jobs and workflows do with the journal and the service: hand over, look, wait, end, run again.

The journal is read where it is; only what concerns a running job goes through the service.  See ``service`` for the
story of how one comes to be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poncho_wq.batch.journal import BatchRecord, JobRecord, Journal
from poncho_wq.batch.model import DELETED, State
from poncho_wq.batch.notify import senders_for
from poncho_wq.batch.prominence import uploads
from poncho_wq.batch.prominence.door import LOG, Closed, ask
from poncho_wq.batch.prominence.service import FRONT_END
from poncho_wq.batch.prominence.settings import differences, settings
from poncho_wq.batch.prominence.translation import text_of, translate
from poncho_wq.batch.spool import RECEIPT, Spool
from poncho_wq.batch.tasks import keep_inputs
from poncho_wq.errors import EngineError
from poncho_wq.scratch import held

START_LOCK = "service.start"
# Seconds: for a service to open, between knocks of one who waits, for a request to be carried out.
OPENING = 120.0
KNOCK_EVERY = 2.0
REQUEST = 60.0

# Services that this process has started: whoever starts a process has to know when it ends.
_started: list[subprocess.Popen[bytes]] = []


@contextmanager
def journal() -> Iterator[Journal]:
    """The journal of the user's spool.  Raises ``EngineError``."""
    with Journal(Spool(settings().spool)) as opened:
        yield opened


def create(document: Mapping[str, Any], kind: str) -> tuple[int, dict[str, int]]:
    """Hand over a job or a workflow; paths in it are relative to the current directory.

    Returns the batch's id and the jobs' by their names.  Raises ``BatchError`` with all that is wrong,
    ``EngineError`` for what nothing here can run, or what is not configured, ``FetchError`` for an artifact.
    """
    given = settings()
    spool = Spool(given.spool).make()
    batch = translate(document, directory=Path.cwd(), upload=uploads.place).batch
    senders_for(batch)
    facts = knock(spool)
    if other := differences(given, facts):
        warnings.warn(
            f"the service that runs (process {facts['pid']}) was started with other settings, and keeps them; "
            f"not used: {', '.join(other)}. It ends when it has nothing to do, or at once by: kill {facts['pid']}",
            stacklevel=3,
        )
    if facts["is_all_here"]:
        for job in batch.jobs:
            for feature in job.features:
                if feature not in facts["features"]:
                    raise EngineError(
                        f"job {job.name}: no worker has {feature}, which its container image needs",
                        advice="install it here, start workers elsewhere that offer it (--feature "
                        f"{feature}; PONCHO_PROMINENCE_PORT or _NAME), or use a Poncho environment as the image",
                    )
    batch = keep_inputs(batch, spool)
    with Journal(spool) as opened:
        number = opened.add(batch, front_end=FRONT_END, source=text_of(document), folder=f"{kind}-{{id}}")
        jobs = {job.name: job.id for job in opened.jobs(number)}
    knock(spool)
    return number, jobs


def knock(spool: Spool) -> dict[str, Any]:
    """See to it that there is a service, and return what it says of itself.  Raises ``EngineError``."""
    try:
        return ask(spool, {"do": "knock"})[0]
    except Closed:
        pass
    with held(spool.own / START_LOCK, timeout=OPENING):
        try:
            return ask(spool, {"do": "knock"})[0]
        except Closed:
            return _start(spool)


def _start(spool: Spool) -> dict[str, Any]:
    with (spool.own / LOG).open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "poncho_wq.batch.prominence.service", str(spool.save)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=spool.own, start_new_session=True,
            env={**os.environ, "PONCHO_PROMINENCE_SPOOL": str(spool.save)},
        )  # fmt: skip
    _started[:] = [each for each in _started if each.poll() is None] + [process]
    until = time.monotonic() + OPENING
    pause = 0.02
    while time.monotonic() < until:
        try:
            return ask(spool, {"do": "knock"})[0]
        except Closed:
            if process.poll() is not None:
                break
        time.sleep(pause)
        pause = min(0.5, pause * 1.5)
    said = (spool.own / LOG).read_bytes()[begin:].decode(errors="replace").strip()
    raise EngineError(f"the service could not start: {said or 'it says nothing'}", advice=f"its log: {spool.own / LOG}")


def wait(is_done: Callable[[], bool], timeout: float) -> None:
    """Until ``is_done()``, or for ``timeout`` seconds (0: any).  Starts the service again if it has been killed."""
    until = time.monotonic() + timeout
    knocked, pause = float("-inf"), 0.02
    spool = Spool(settings().spool)
    while not is_done():
        now = time.monotonic()
        if timeout > 0 and now >= until:
            return
        if now - knocked >= KNOCK_EVERY:
            knock(spool)
            knocked = time.monotonic()
        time.sleep(min(pause, until - now) if timeout > 0 else pause)
        pause = min(0.5, pause * 1.3)


def job(number: int) -> JobRecord:
    """Raises ``EngineError`` when there is none of that number."""
    with journal() as opened:
        return opened.job(number)


def batch(number: int) -> tuple[BatchRecord, list[JobRecord]]:
    """A batch and its jobs.  Raises ``EngineError`` when there is none of that number."""
    with journal() as opened:
        return opened.batch(number), opened.jobs(number)


def delete(number: int, jobs: list[int] | None = None) -> bool:
    """End jobs (None: all) of a batch; whether any was ended that was not over."""
    with journal() as opened:
        wanted = [each.id for each in opened.jobs(number) if (jobs is None or each.id in jobs) and not each.state.final]
        if not wanted:
            return False
        opened.kill(number, wanted)

        def is_over() -> bool:
            return all(opened.job(each).state.final for each in wanted)

        wait(is_over, REQUEST)
        return any(opened.job(each).reason == DELETED for each in wanted)


def remove(number: int) -> bool:
    """Take a batch that is over out of the listings; whether it was."""
    with journal() as opened:
        if opened.batch(number).removed or not all(each.state.final for each in opened.jobs(number)):
            return False
        opened.remove(number)
        return True


def rerun(number: int) -> int:
    """A new batch in which what completed in this one is completed already, with its results.  Returns its id."""
    spool = Spool(settings().spool)
    with journal() as opened:
        record, jobs = opened.batch(number), opened.jobs(number)
        if not all(each.state.final for each in jobs):
            raise EngineError(f"workflow {number} is still running", advice="wait for it, or delete it, first")
        if all(each.state is State.COMPLETED for each in jobs):
            raise EngineError(f"workflow {number} is completed: there is nothing to run again")
        with opened.together():
            new = opened.add(opened.document(number), front_end=FRONT_END, source=record.source, folder="workflow-{id}")
            folder = opened.batch(new).folder
            for old, fresh in zip(jobs, opened.jobs(new), strict=True):
                if old.state is State.COMPLETED:
                    _link(spool.results(record.folder, old.name), spool.results(folder, old.name))
                    kept = ("exit_code", "signal", "reason", "host", "worker", "submitted", "started", "ended", "tries")
                    opened.set_job(fresh.id, state=State.COMPLETED, **{name: getattr(old, name) for name in kept})
    knock(spool)
    return new


def _link(old: Path, new: Path) -> None:
    """The same files in another directory; they are never written to again."""
    for place, _, files in os.walk(old):
        there = new / Path(place).relative_to(old)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            if not (there / name).exists():
                os.link(Path(place, name), there / name)


def in_job(number: int, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Ask a running job.  Raises ``EngineError`` when it does not run, or says that it cannot."""
    record = job(number)
    if record.state is not State.RUNNING:
        raise EngineError(f"job {number} is {record.state.value}: only a running job can be asked")
    return ask(Spool(settings().spool), {"do": "job", "job": number, "request": request})


def output(number: int, name: str) -> bytes:
    """The standard output or error so far (``stdout``, ``stderr``), of the last try of a job."""
    record = job(number)
    if record.state is State.RUNNING:
        try:
            return in_job(number, {"do": "read", "what": name})[1]
        except EngineError:
            # Over in the meantime, perhaps.
            if not job(number).state.final:
                raise
    if not job(number).state.final:
        return b""
    file = _results(number) / f"{name}.txt"
    return file.read_bytes() if file.is_file() else b""


def result(number: int, name: str) -> bytes:
    """An output file of a job that is over.  Raises ``EngineError`` when there is none of that name."""
    place = _results(number)
    file = place / name
    if name in (RECEIPT, "") or not file.is_file() or not file.resolve().is_relative_to(place.resolve()):
        found = sorted(
            str(each.relative_to(place)) for each in place.rglob("*") if each.is_file() and each.name != RECEIPT
        )
        raise EngineError(f"job {number} has no output {name}", advice=f"it has: {', '.join(found) or 'none'}")
    return file.read_bytes()


def _results(number: int) -> Path:
    with journal() as opened:
        record = opened.job(number)
        return opened.spool.results(opened.batch(record.batch).folder, record.name)
