"""Every error that poncho_wq raises on purpose: one family, one root.

The facts of an error are attributes, so that callers branch on them rather than on words; `str(error)` is for a
person, says what happened and, on lines of its own, what to do next. Errors cross process borders (pools, tasks),
so all of them survive pickling and copying. None of them shows credentials: see `redact`.

Only the command line turns these into exit statuses; the library raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, TypeVar

__all__ = [
    "AnalysisError",
    "BatchError",
    "BuildError",
    "CacheError",
    "CorruptTarball",
    "EngineError",
    "EngineNotInstalled",
    "FetchError",
    "LockTimeout",
    "PackError",
    "PonchoError",
    "SolveError",
    "SpecError",
    "TaskError",
    "UnresolvedImport",
    "UnresolvedImportError",
    "quoted",
    "redact",
]

_E = TypeVar("_E", bound="PonchoError")
_LONGEST_QUOTE = 120  # characters

# RFC 3986: userinfo ends at the last "@" before the path. Quotes and blanks end a URL inside running text.
_USERINFO = re.compile(r"(?<=://)(?P<user>[^/?#\s'\"<>]*)@")
# The conda convention for a channel token: https://host/t/<token>/channel.
_CHANNEL_TOKEN = re.compile(r"(?P<before>://[^/\s]+/t/)[A-Za-z0-9_-]+(?=/)")
# Bounded, so that a log of megabytes without a blank costs no more than its length.
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&][^=&?#\s]{0,64}?(?:token|secret|password|passwd|signature|credential|api_?key|sig)=)[^&#\s'\"<>]+",
    re.IGNORECASE,
)


def redact(text: str, *, channel_tokens: bool = True) -> str:
    """`text` with the credentials of every URL in it replaced by `***`.

    The user name of an ssh URL stays (`git@` names no one); a user name of http is as often a token as not, and goes.
    `channel_tokens=False` leaves `/t/…/` alone, which in the URL of anything but a conda channel is a folder.
    """

    def userinfo(match: re.Match[str]) -> str:
        before = match.string[max(0, match.start() - 10) : match.start()].lower()
        over_ssh = re.search(r"(?:ssh|ssh\+git)://$", before)
        return match[0] if over_ssh and ":" not in match["user"] else "***@"

    text = _SECRET_QUERY.sub(r"\g<key>***", _USERINFO.sub(userinfo, text))
    return _CHANNEL_TOKEN.sub(r"\g<before>***", text) if channel_tokens else text


def quoted(text: str) -> str:
    """`text` as an error shows it: in double quotes, on one line, without credentials, cut when very long."""
    text = redact(text)
    if len(text) > _LONGEST_QUOTE:
        text = text[: _LONGEST_QUOTE - 1] + "…"
    # ASCII escapes only where a terminal could not show the text (control characters, half of a surrogate pair).
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _restore(cls: type[_E], args: tuple[Any, ...], facts: dict[str, Any]) -> _E:
    """Rebuild an error without calling its `__init__`, whose required arguments pickle knows nothing of."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(facts)
    return error


class PonchoError(Exception):
    """Root of the family. `str()` is `message`, then `advice` on the lines after it."""

    message: str
    advice: str | None

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        self.message = redact(message)
        self.advice = None if advice is None else redact(advice)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self._headline() if not self.advice else f"{self._headline()}\n{self.advice}"

    def _headline(self) -> str:
        """The first part of `str()`; subclasses put the place of the trouble before the message."""
        return self.message

    def __reduce__(self) -> tuple[Callable[..., PonchoError], tuple[Any, ...]]:
        return _restore, (type(self), self.args, dict(self.__dict__))


class SpecError(PonchoError):
    """An environment specification that cannot be read, with the place: `source: path: message`.

    `path` is the key as one would write it, `http.DATA.type` or `pip[2]`; None when the document as a whole is bad.
    `source` is where the document came from, usually a file name; None for a dictionary.
    """

    path: str | None
    source: str | None

    def __init__(
        self, message: str, *, path: str | None = None, source: str | None = None, advice: str | None = None
    ) -> None:
        super().__init__(message, advice=advice)
        self.path = path
        self.source = source

    def _headline(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.message) if part)


class BatchError(SpecError):
    """Everything that is wrong with the description of a batch, together: ``problems``, each with its place."""

    problems: tuple[SpecError, ...]

    def __init__(self, problems: Iterable[SpecError]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class AnalysisError(PonchoError):
    """Code that cannot be analyzed: a syntax error, no such function, a file that is not Python."""


@dataclass(frozen=True, kw_only=True)
class UnresolvedImport:
    """One import that no installed distribution provides, where it was seen, and why it was not taken."""

    module: str
    file: str | None = None
    line: int | None = None
    why: str = "no installed package provides it"

    def __str__(self) -> str:
        place = self.file or "?"
        if self.line is not None:
            place = f"{place}:{self.line}"
        return f"{place}: {self.module}: {self.why}"


class UnresolvedImportError(AnalysisError):
    """Every import that could not be resolved, together, so that a user sees them all at once.

    `imports` is a tuple; each item knows its module, file and line.
    """

    imports: tuple[Any, ...]

    def __init__(self, message: str | None = None, *, imports: Iterable[Any] = (), advice: str | None = None) -> None:
        found = tuple(imports)
        if message is None:
            heading = "cannot resolve this import:" if len(found) == 1 else "cannot resolve these imports:"
            message = "\n  ".join([heading, *map(str, found)])
        super().__init__(message, advice=advice)
        self.imports = found


class _StepError(PonchoError):
    """A step of making an environment failed, perhaps in a program that it ran.

    `command` is the argument vector of that program, empty when there was none; `log` what it printed.
    """

    command: tuple[str, ...]
    log: str

    def __init__(self, message: str, *, command: Iterable[str] = (), log: str = "", advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.command = tuple(redact(str(word)) for word in command)
        self.log = redact(log)


class SolveError(_StepError):
    """No set of packages satisfies the specification."""


class BuildError(_StepError):
    """The packages are known but no prefix could be made of them."""


class FetchError(_StepError):
    """Something could not be downloaded. `url` has its credentials removed."""

    url: str | None

    def __init__(
        self,
        message: str,
        *,
        url: str | None = None,
        command: Iterable[str] = (),
        log: str = "",
        advice: str | None = None,
    ) -> None:
        super().__init__(message, command=command, log=log, advice=advice)
        self.url = None if url is None else redact(url)


class PackError(_StepError):
    """A prefix could not be turned into a tarball."""


class CacheError(PonchoError):
    """The cache directory cannot be used or holds something it should not."""


class LockTimeout(CacheError):
    """Somebody else held a lock for too long. `lock` is its file, `waited` the seconds spent waiting."""

    lock: str | None
    waited: float | None

    def __init__(
        self,
        message: str,
        *,
        lock: str | PathLike[str] | None = None,
        waited: float | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.lock = None if lock is None else fspath(lock)
        self.waited = waited


class CorruptTarball(CacheError):
    """A tarball is cut short or is not what its manifest says. `tarball` is its path."""

    tarball: str | None

    def __init__(self, message: str, *, tarball: str | PathLike[str] | None = None, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.tarball = None if tarball is None else fspath(tarball)


class EngineError(PonchoError):
    """Work Queue, TaskVine, Parsl or the local engine refused what was asked of it."""


class EngineNotInstalled(EngineError):
    """An optional engine is missing; the advice says how to install it. `engine` is its name."""

    engine: str | None

    def __init__(self, message: str, *, engine: str | None = None, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.engine = engine


class TaskError(PonchoError):
    """A task did not give a result.

    `traceback` is the text of the traceback on the worker (empty when the process died without one), `exit_status`
    the task's, or None when it is unknown, `host` the worker that ran it.
    """

    traceback: str
    exit_status: int | None
    host: str | None

    def __init__(
        self,
        message: str,
        *,
        traceback: str = "",
        exit_status: int | None = None,
        host: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.traceback = traceback
        self.exit_status = exit_status
        self.host = host
