"""The transaction log of Work Queue, TaskVine or the embedded engine → which worker ran what, when, and was sent what.

Each line is ``MICROSECONDS PID SUBJECT WORDS…``; the head of a log says which there are (work_queue.c:
``work_queue_specify_transactions_log``, vine_txn_log.c).  What matters here:

    WORKER ID ADDRESS CONNECTION             Work Queue; TaskVine has the address last
    TASK N RUNNING WORKER …                  Work Queue names the worker by its address, TaskVine by its id
    TASK N WAITING_RETRIEVAL WORKER          the task has ended on the worker
    TASK N DONE RESULT STATUS
    TRANSFER INPUT N FLAG MEGABYTES SECONDS NAME      today's Work Queue, before RUNNING; Debian's of 2023 has none
    WORKER ID TRANSFER INPUT NAME BYTES MICROSECONDS START   TaskVine: from the manager
    WORKER ID CACHE_UPDATE NAME BYTES MICROSECONDS START     TaskVine: from wherever, or unpacked there (``task-…``)

A log may end in the middle of a line: its manager may still run, or have been killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_MEGABYTE = 1 << 20


@dataclass(slots=True)
class Attempt:
    """One task on one worker, from when its files were sent.  ``began``: the command, where the engine tells.

    Times are seconds since the Epoch, None for what has not come.
    """

    task: int
    worker: str
    started: float
    ended: float | None = None
    began: float | None = None
    result: str | None = None
    status: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """A file that came to a worker: ``source`` is "manager" or "peer", or "unpacked" for what was made there."""

    worker: str
    name: str
    size: int
    seconds: float
    at: float
    source: str


@dataclass(slots=True)
class Log:
    """All of it.  ``has_transfers``: this engine's logs tell what was sent, be it nothing."""

    attempts: list[Attempt] = field(default_factory=list)
    submitted: dict[int, float] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    has_transfers: bool = False
    first: float | None = None
    last: float | None = None


def read_log(lines: Iterable[str]) -> Log:
    """What the lines tell; those that are cut off or of an unknown kind say nothing."""
    reader = _Reader()
    for line in lines:
        if line.startswith("#"):
            reader.log.has_transfers |= " TRANSFER " in line
        elif line.endswith("\n"):
            words = line.split()
            if len(words) >= 4 and words[0].isdigit():
                try:
                    reader.read(int(words[0]) / 1e6, words[2:])
                except (ValueError, IndexError, KeyError):
                    continue
    return reader.log


class _Reader:
    def __init__(self) -> None:
        self.log = Log()
        self.running: dict[int, Attempt] = {}
        self.latest: dict[int, Attempt] = {}
        self.by_address: dict[str, str] = {}
        self.sent: set[tuple[str, str]] = set()
        self.unassigned: dict[int, list[tuple[str, int, float, float]]] = {}

    def read(self, at: float, words: list[str]) -> None:
        log = self.log
        log.first = at if log.first is None else log.first
        log.last = at
        if words[0] == "TASK":
            self.task(at, int(words[1]), words[2], words[3:])
        elif words[0] == "WORKER":
            self.worker(at, words[1], words[2:])
        elif words[:2] == ["TRANSFER", "INPUT"]:
            # To whom is not said before the task runs.  What a worker has already is listed with no bytes.
            size, seconds = round(float(words[4]) * _MEGABYTE), float(words[5])
            if size:
                self.unassigned.setdefault(int(words[2]), []).append((words[6], size, seconds, at))

    def task(self, at: float, number: int, state: str, rest: list[str]) -> None:
        if state in ("WAITING", "READY"):
            self.log.submitted.setdefault(number, at)
            self.running.pop(number, None)
        elif state == "RUNNING":
            worker = self.by_address.get(rest[0], rest[0])
            # TaskVine says so when all has been sent; the sending began before.
            attempt = Attempt(number, worker, _seconds(_facts(rest[2:]), "time_commit_start") or at)
            for name, size, seconds, when in self.unassigned.pop(number, ()):
                self.log.transfers.append(
                    Transfer(worker=worker, name=name, size=size, seconds=seconds, at=when, source="manager")
                )
            if number not in self.running:
                self.log.attempts.append(attempt)
                self.running[number] = self.latest[number] = attempt
        elif state == "WAITING_RETRIEVAL" and number in self.running:
            self.running.pop(number).ended = at
        elif state in ("DONE", "RETRIEVED") and number in self.latest:
            attempt = self.latest[number]
            attempt.result, attempt.status = rest[0], int(rest[1])
            attempt.ended = at if attempt.ended is None else attempt.ended
            facts = _facts(rest[2:])
            # TaskVine's: when the command itself began and ended on the worker.
            attempt.began = _seconds(facts, "time_worker_start") or attempt.began

    def worker(self, at: float, worker: str, rest: list[str]) -> None:
        if "CONNECTION" in rest:
            address = rest[1] if rest[0] == "CONNECTION" else rest[0]
            self.by_address[address] = worker
            self.log.addresses[worker] = address
        elif rest[:2] == ["TRANSFER", "INPUT"]:
            self.sent.add((worker, rest[2]))
            self.log.transfers.append(_transfer(worker, rest[2:], at, "manager"))
        elif rest[0] == "CACHE_UPDATE" and (worker, rest[1]) not in self.sent:
            source = "unpacked" if rest[1].startswith("task-") else "peer"
            self.log.transfers.append(_transfer(worker, rest[1:], at, source))


def _transfer(worker: str, words: list[str], at: float, source: str) -> Transfer:
    return Transfer(worker=worker, name=words[0], size=int(words[1]), seconds=int(words[2]) / 1e6, at=at, source=source)


def _facts(words: list[str]) -> dict[str, Any]:
    """The JSON object at the end of a line; empty when there is none."""
    text = " ".join(words)
    try:
        found = json.loads(text[text.rindex("{", 0, text.index("[")) :] if "[" in text else text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(facts: dict[str, Any], key: str) -> float | None:
    try:
        return float(facts[key][0])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
