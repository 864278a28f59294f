"""``python -m poncho_wq.batch.prominence.service SPOOL``: runs what is handed over in a spool, until there is no more.

Story.  Client C puts a batch in the journal; from here on it is not lost.  It knocks at the door: nobody.  C takes
``service.start``, knocks again, starts S and waits until S opens.  D, who came at the same time, waits for
``service.start``, knocks and is heard: one service.  S holds ``service.lock`` for as long as it lives, whoever has
started it.  S has had nothing to do for a while and is about to end: it marks itself closing, in the same breath as it
looks at when it was last knocked at, and from then on tells whoever knocks that it is closed.  E is told so: its batch
came too late for S; E starts a new one, which waits for S's lock.  S is killed (-9): its lock and its door are
gone; whoever waits for a job knocks every few seconds, starts another one, and that adopts what S ran, as
``journal`` tells.

The engine, the journal and the manager belong to the main thread alone; the door's threads only reach running jobs.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from poncho_wq.batch.journal import Journal
from poncho_wq.batch.manager import Change, Manager
from poncho_wq.batch.notify import notifier, senders_for
from poncho_wq.batch.preparing import prepare
from poncho_wq.batch.prominence import job_channel
from poncho_wq.batch.prominence.door import Closed, Door
from poncho_wq.batch.prominence.relay import Relay
from poncho_wq.batch.prominence.settings import Settings, facts_of, settings
from poncho_wq.batch.spool import Spool
from poncho_wq.batch.tasks import Companion
from poncho_wq.engines.opened import Engine, open_engine
from poncho_wq.errors import EngineError, LockTimeout, PonchoError
from poncho_wq.scratch import held

FRONT_END = "prominence service"
LOCK = "service.lock"
# Seconds: of a turn, between tries to adopt a batch that cannot be, for the service before to let go.
TURN = 0.5
AGAIN = 5.0
HANDOVER = 60.0
FIRST_KNOCK = 10.0
# PROMINENCE forgets jobs after so long.
KEEP_SECONDS = 90 * 24 * 3600


class Service:
    """See the module."""

    def __init__(self, spool: Spool, given: Settings) -> None:
        self._spool = spool
        self._settings = given
        self._guard = threading.Lock()
        # Whoever has started it is about to knock.
        self._knocked = time.monotonic() + FIRST_KNOCK
        self._closing = False
        self._ended = False
        self._preparing: dict[int, threading.Thread] = {}
        self._ready: set[int] = set()
        self._later: dict[int, float] = {}

    def run(self) -> None:
        """Until there has been nothing to do for long, or SIGTERM.  Raises ``LockTimeout`` when another one runs."""
        given = self._settings
        signal.signal(signal.SIGTERM, lambda number, frame: self._end())
        with ExitStack() as stack:
            stack.enter_context(held(self._spool.own / LOCK, timeout=HANDOVER))
            journal = stack.enter_context(Journal(self._spool))
            self._remove_old(journal)
            engine = stack.enter_context(
                open_engine(
                    given.engine, port=given.port, name=given.name, workers=given.workers, cores=given.cores,
                    features=given.features,
                )
            )  # fmt: skip
            relay = stack.enter_context(Relay(given.address))
            manager = stack.enter_context(
                Manager(
                    engine, journal, stall_limit=given.stall, companion=Companion(path=Path(job_channel.__file__)),
                    companion_facts=relay.facts, on_change=lambda change: _forget(relay, change),
                    notify=lambda notification, change: self._notify(journal, notification, change),
                )
            )  # fmt: skip
            port = getattr(engine.queue, "port", None)
            _say(f"runs {given.engine}" + (f" on port {port}" if port else ""))
            with Door(self._spool, lambda request: self._serve(request, relay, engine)):
                while not self._ended and not self._is_idle(journal, manager):
                    self._adopt_new(journal, manager)
                    self._turn(manager)
            _say("ends")

    def _end(self) -> None:
        self._ended = True

    def _turn(self, manager: Manager) -> None:
        started = time.monotonic()
        if manager.idle:
            time.sleep(TURN / 5)
            return
        manager.turn(TURN)
        # An engine that has nothing to wait for does not wait.
        if time.monotonic() - started < 0.02:
            time.sleep(0.05)

    def _is_idle(self, journal: Journal, manager: Manager) -> bool:
        if not manager.idle or self._preparing:
            return False
        with self._guard:
            if time.monotonic() - self._knocked < self._settings.idle:
                return False
            # Whoever put a batch in before this knocked, or will, and be told that we are closed.
            self._closing = not self._ours(journal)
            return self._closing

    def _ours(self, journal: Journal) -> list[int]:
        return [number for number in journal.unfinished() if journal.batch(number).front_end == FRONT_END]

    def _adopt_new(self, journal: Journal, manager: Manager) -> None:
        """Batches that are new: their environments first, in a thread, since that may take minutes; then they run."""
        known = set(manager.batches)
        for number in self._ours(journal):
            if number in known or self._later.get(number, 0) > time.monotonic():
                continue
            thread = self._preparing.get(number)
            if thread is None and number not in self._ready:
                batch = journal.document(number)
                thread = threading.Thread(target=_prepare, args=(batch,), daemon=True, name=f"prepare {number}")
                self._preparing[number] = thread
                thread.start()
                thread.join(TURN)
            if thread is not None and thread.is_alive():
                continue
            self._preparing.pop(number, None)
            self._ready.add(number)
            try:
                manager.adopt(number, on_wait=lambda job: _say(f"waits for the end of {job}, left by a service before"))
            except EngineError as error:
                _say(f"batch {number}: {error.message}")
                self._later[number] = time.monotonic() + AGAIN

    def _serve(self, request: Mapping[str, Any], relay: Relay, engine: Engine) -> tuple[dict[str, Any], bytes]:
        """In a thread of the door."""
        with self._guard:
            if self._closing or self._ended:
                raise Closed("the service is about to end")
            self._knocked = time.monotonic()
        if request.get("do") == "knock":
            return {**facts_of(self._settings), "port": getattr(engine.queue, "port", None)}, b""
        if request.get("do") == "job":
            job, wanted = request.get("job"), request.get("request")
            if not isinstance(job, int) or not isinstance(wanted, dict):
                raise EngineError("the service is asked of no job: is it of another version?")
            facts, data = relay.ask(job, wanted)
            return {key: value for key, value in facts.items() if key != "id"}, data
        raise EngineError(f"the service does not know {request.get('do')!r}: is it of another version?")

    def _notify(self, journal: Journal, notification: Any, change: Change) -> None:
        try:
            batch = journal.document(change.batch.id)
            notifier(senders_for(batch), journal.counts, _say)(notification, change)
        except PonchoError as error:
            _say(f"no message could be sent: {error.message}")

    def _remove_old(self, journal: Journal) -> None:
        for record in journal.batches():
            if record.ended is not None and not record.removed and time.time() - record.ended > KEEP_SECONDS:
                journal.remove(record.id)


def _prepare(batch: Any) -> None:
    """Build what the batch needs.  What cannot be built is told by each job that needs it."""
    try:
        prepare(batch)
    except PonchoError as error:
        _say(f"batch {batch.name}: {error.message}")


def _forget(relay: Relay, change: Change) -> None:
    if change.job is not None and change.job.state.final:
        relay.forget(change.job.id)


def _say(text: str) -> None:
    """To the service's log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """The service of one spool; the exit status is for its log alone."""
    try:
        Service(Spool(argv[0]).make(), settings()).run()
    except LockTimeout:
        _say("another service runs in this spool")
    except PonchoError as error:
        _say(str(error))
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
