"""Builds that failed, remembered for ten minutes: a thousand tasks that want the same do not each try it again.

``v1/failures/HASH.json`` holds the error as data, never as a pickle: a file in a cache is nothing to run.  Whoever asks
again for the hash in the same circumstances gets that error, with its type, text and facts and a note of when it
happened.  The circumstances are what may make the difference and is no part of the hash (``--offline``, the user's
settings for indexes and proxies, which hold credentials): of them only a digest is kept, where only the user can read.

Remembered is what would most likely happen again.  Not: an interrupted build, a full disk or another end of the
machine's means, somebody else's lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq import errors
from poncho_wq.errors import BuildError, FetchError, PackError, PonchoError, SolveError

# In seconds.
REMEMBERED = 600.0

_KINDS: tuple[type[PonchoError], ...] = (SolveError, BuildError, FetchError, PackError)
_OF_THE_MOMENT = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.ENOMEM))
# Longer logs are cut at the front.
_LONGEST_LOG = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A remembered failure.  ``when`` is seconds since 1970; ``token`` tells it from any other."""

    token: str
    when: float
    kind: str
    text: str
    facts: dict[str, Any]

    def error(self) -> PonchoError:
        """The error, as it was, with a note on when that was; ``failed_at`` holds that in seconds since 1970."""
        error: PonchoError = getattr(errors, self.kind).__new__(getattr(errors, self.kind), self.text)
        error.__dict__.update(self.facts)
        happened = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.when))
        until = time.strftime("%H:%M:%S", time.localtime(self.when + REMEMBERED))
        note = (
            f"this happened at {happened} and is not tried again before {until}; "
            "to try at once: poncho_package_create --retry, or environment(..., retry=True)"
        )
        error.advice = note if error.advice is None else f"{error.advice}\n{note}"
        error.__dict__["failed_at"] = self.when
        return error


class Failures:
    """The failures remembered under ``home``.  Nothing here raises: forgetting costs an attempt."""

    def __init__(self, home: Path) -> None:
        self._directory = home / "failures"

    def recall(self, spec_hash: str, circumstances: str) -> Failure | None:
        """The failure of the last ten minutes in these circumstances."""
        try:
            facts = json.loads((self._directory / f"{spec_hash}.json").read_bytes())
            if facts.pop("circumstances") != circumstances:
                return None
            failure = Failure(**facts)
            known = issubclass(getattr(errors, failure.kind), _KINDS)
            failure.facts["command"] = tuple(failure.facts["command"])
            failure.error()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        # Clocks of machines that share a cache differ, in both directions.
        return failure if known and abs(time.time() - failure.when) < REMEMBERED else None

    def remember(self, spec_hash: str, circumstances: str, error: BaseException) -> None:
        """Keep ``error``, if it is of those that would happen again."""
        if not isinstance(error, _KINDS) or _is_of_the_moment(error):
            return
        facts = dict(error.__dict__)
        facts["log"] = str(facts.get("log", ""))[-_LONGEST_LOG:]
        document = {
            "token": secrets.token_hex(8),
            "when": time.time(),
            "kind": type(error).__name__,
            "text": error.message,
            "facts": facts,
            "circumstances": circumstances,
        }
        path = self._directory / f"{spec_hash}.json"
        draft = self._directory / f".{spec_hash}.{document['token']}"
        with contextlib.suppress(OSError, TypeError, ValueError):
            text = json.dumps(document)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            try:
                with open(draft, "x", encoding="ascii", opener=_private) as stream:
                    stream.write(text)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def forget(self, spec_hash: str) -> None:
        """It was built after all."""
        with contextlib.suppress(OSError):
            (self._directory / f"{spec_hash}.json").unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Remove what is not remembered any more."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as found:
            limit = time.time() - REMEMBERED
            for each in found:
                if each.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(each.path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_of_the_moment(error: PonchoError) -> bool:
    """Whether the machine is to blame, just now: a program's own words, or an error of the system behind this one."""
    words = f"{error} {getattr(error, 'log', '')}"
    if any(text in words for text in _FULL):
        return True
    return any(
        isinstance(each, (MemoryError, KeyboardInterrupt))
        or (isinstance(each, OSError) and each.errno in _OF_THE_MOMENT)
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
