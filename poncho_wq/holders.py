"""Who holds a lock, and since when, for those who wait for it: a note beside the lock file.

The lock is the kernel's and tells nothing; the note is only words.  Story: A takes the lock and writes the note, B
waits and reads it.  A is killed: its note stays, until C, who has the lock next, writes its own.  Between those two B
may be told of A.  Nobody decides anything by a note, and one that cannot be written is not missed.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from poncho_wq.version import VERSION

# A note is about 100 bytes, whoever wrote it.
_LONGEST = 4096


@contextlib.contextmanager
def signed(lock: Path) -> Iterator[None]:
    """For whoever holds ``lock``, for the block: say so."""
    note = _note(lock)
    facts = {"user": _user(), "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "by": VERSION}
    with contextlib.suppress(OSError):
        # In place: whoever holds the lock is alone, and who reads half of it knows no less than before.
        note.write_text(json.dumps(facts), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def holder(lock: Path) -> str:
    """``anna on node7 (process 4711), since 14:02:11``; what a note does not tell is left out."""
    try:
        with _note(lock).open("rb") as file:
            facts = json.loads(file.read(_LONGEST))
        since = time.strftime("%H:%M:%S", time.localtime(float(facts["since"])))
        text = f"{facts['user']} on {facts['host']} (process {int(facts['pid'])}), since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "somebody else"
    # It is shown on terminals, and a shared cache has notes of others.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _note(lock: Path) -> Path:
    return lock.with_name(lock.name + ".who")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        return f"user {os.getuid()}"
