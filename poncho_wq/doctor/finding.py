"""One finding: what was looked at, how bad it is, what was seen, and the command that mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from poncho_wq.errors import PonchoError, redact

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``check`` is one word for what was looked at, ``text`` what was seen, for a person.

    ``level``: ``ok``; ``note``, worth knowing; ``warning``, something will not work or be slow for some users;
    ``problem``, it does not work here.  ``mend`` is a command (or what to write where), None where nothing is to mend.
    """

    check: str
    level: Level
    text: str
    mend: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without credentials."""
        return {name: redact(value) if isinstance(value, str) else value for name, value in asdict(self).items()}


def ok(check: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(check=check, level="ok", text=text)


def note(check: str, text: str, mend: str | None = None) -> Finding:
    """It is worth knowing; ``mend`` None: nothing has to be done about it."""
    return Finding(check=check, level="note", text=text, mend=mend)


def warning(check: str, text: str, mend: str) -> Finding:
    """It will not work, or be slow, for some users; ``mend`` is a command, or what to write where."""
    return Finding(check=check, level="warning", text=text, mend=mend)


def problem(check: str, text: str, mend: str) -> Finding:
    """It does not work here; ``mend`` is a command, or what to write where."""
    return Finding(check=check, level="problem", text=text, mend=mend)


def of_error(check: str, error: PonchoError, mend: str) -> Finding:
    """A problem that an error of ours already describes; its own advice comes before ``mend``."""
    return problem(check, error.message, error.advice or mend)
