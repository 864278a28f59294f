"""The SQLite file under a journal: what goes wrong in it becomes one of our errors, in this place alone.

A file on a disk may be damaged, cut short, or written to by somebody else: that shows in any statement, at any time,
and in values that are not of their kind.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from poncho_wq.errors import EngineError

_T = TypeVar("_T")


Row = sqlite3.Row


class Rows(list[Row]):
    """What a statement gave, all of it.  ``lastrowid`` is that of an INSERT."""

    lastrowid: int | None = None


class Database:
    """An open file.  Raises ``EngineError``."""

    def __init__(self, path: Path, *, advice: str) -> None:
        self._path = path
        self._advice = advice
        with self._sound():
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._connection.row_factory = sqlite3.Row

    @property
    def in_transaction(self) -> bool:
        """Whether a BEGIN is not ended yet; an error on the disk may have rolled it back by itself."""
        return self._connection.in_transaction

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """One statement, with ``values`` for its question marks; all of its rows."""
        # All rows at once: reading the next one is where damage shows.
        with self._sound():
            cursor = self._connection.execute(statement, values)
            rows = Rows(cursor.fetchall())
            rows.lastrowid = cursor.lastrowid
            return rows

    def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """The same statement for each of ``values``; each by itself, unless a transaction is open."""
        with self._sound():
            self._connection.executemany(statement, values)

    def close(self) -> None:
        """What a transaction that is still open has written is lost."""
        self._connection.close()

    def read(self, make: Callable[[Row], _T], statement: str, values: Sequence[Any] = ()) -> list[_T]:
        """What ``make`` makes of each row; what it cannot make anything of is damage."""
        rows = self.execute(statement, values)
        try:
            return [make(row) for row in rows]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise self._damaged(error) from error

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        except UnicodeError as error:  # what it has to say of a damaged schema
            raise self._damaged(error) from error
        except (sqlite3.Error, OverflowError) as error:
            raise EngineError(f"{self._path}: {error}", advice=self._advice) from error

    def _damaged(self, error: Exception) -> EngineError:
        if isinstance(error, sqlite3.OperationalError) and not str(error).startswith("no such"):
            return EngineError(f"{self._path}: {error}", advice=self._advice)  # locked, read-only, a full disk …
        if isinstance(error, sqlite3.IntegrityError) and self._is_whole():
            return EngineError(
                f"{self._path}: what was to be written contradicts what is there: {error}",
                advice="the file is not damaged, and nothing of it was written: please report this",
            )
        return EngineError(
            f"{self._path}: is damaged: {error or type(error).__name__}",
            advice="published results are still where they were; with this file moved away, its batches are forgotten",
        )

    def _is_whole(self) -> bool:
        """Whether SQLite finds nothing wrong with all of the file."""
        try:
            return bool(self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok")
        except (sqlite3.Error, UnicodeError, TypeError):
            return False


def made(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """The dataclass ``kind`` from what was stored.  Raises ``ValueError``, ``TypeError`` for a value of another kind.

    Columns and JSON hold anything; that a name is text has to be looked at before somebody relies on it.
    """
    found = kind(**values)
    for name, hint in _hints(cast(Any, kind)).items():
        if not _is(getattr(found, name), hint):
            raise ValueError(f"{kind.__name__}.{name} is {getattr(found, name)!r:.80}")
    return found


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is(value: Any, hint: Any) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, each) for each in inside)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(each, inside[0]) for each in value)
    if origin is not None:  # Mapping
        return isinstance(value, Mapping) and all(_is(k, inside[0]) and _is(v, inside[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)
