"""JSON text as values that know where they stand, for readers of formats that refuse with the place.

Nothing here knows what a specification is.  Whatever comes in, text or values, the only error that comes out is
`SpecError`; values are looked at from the top, no deeper than the reader asks, so depth is nobody's problem.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from poncho_wq.errors import SpecError, quoted

MAX_DOCUMENT = 4 * 1024 * 1024  # bytes or characters: hundreds of times the longest `conda env export`
MAX_STRING = 4096  # characters of a name, a version, a URL

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
BRACKETS_ADVICE = 'a list is written with brackets: "pip": ["parsl", "ipython==7.20.0"]'


def load_json(text: str | bytes, *, source: str | None = None) -> object:
    """JSON text as Python values; objects remember keys that were given twice.  Raises `SpecError`."""
    place = Place(path="", source=None if source is None else str(source))
    if isinstance(text, bytes | bytearray | memoryview):
        if len(text) > MAX_DOCUMENT:
            place.fail(f"is {len(text)} bytes long, more than the {MAX_DOCUMENT} of the longest specification")
        try:
            text = bytes(text).decode("utf-8")
        except UnicodeDecodeError as error:
            place.fail(f"byte {error.start + 1}: not UTF-8", advice="save the file as UTF-8")
    if not isinstance(text, str):
        place.fail(f"expected JSON text, got {kind(text)}")
    if len(text) > MAX_DOCUMENT:
        place.fail(f"is {len(text)} characters long, more than the {MAX_DOCUMENT} of the longest specification")
    if text.startswith("\ufeff"):
        place.fail("line 1 column 1: begins with a byte order mark", advice="save the file as UTF-8 without one")
    if not text.strip():
        place.fail("line 1 column 1: is empty", advice='write for example {"pip": ["numpy"]}')
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_int=_number, parse_constant=float)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        place.fail(f"{where}: not JSON: {error.msg}", advice=_json_advice(error))
    except RecursionError:
        place.fail("not a specification: nested too deeply")


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys that were given more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: tuple[str, ...] = ()
        if len(self) < len(pairs):
            seen: set[str] = set()
            self.repeated = tuple(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _number(digits: str) -> int | float:
    # int() refuses thousands of digits with a ValueError; no number is valid anywhere, so infinity serves.
    return int(digits) if len(digits) < 20 else math.inf


def _json_advice(error: json.JSONDecodeError) -> str | None:
    following = error.doc[error.pos : error.pos + 1]
    if "delimiter" in error.msg and "':'" in error.msg and following in (",", "}"):
        return BRACKETS_ADVICE
    before = error.doc[: error.pos].rstrip()[-1:]
    if before == "," or following == "," or "trailing comma" in error.msg:
        return "JSON has no comma after the last item"
    if following == "'":
        return "JSON has double quotes only"
    if following in ("#", "/"):
        return "JSON has no comments"
    return None


@dataclass(frozen=True)
class Place:
    """Where a value is: its path in the document (empty for the whole) and where the document came from."""

    path: str
    source: str | None

    def key(self, name: str) -> Place:
        """The place of a key of the object here: `http.DATA`, or `env["a b"]` where the name is no plain word."""
        if not _PLAIN_KEY.fullmatch(name):
            return Place(f"{self.path}[{quoted(name)}]", self.source)
        return Place(f"{self.path}.{name}" if self.path else name, self.source)

    def item(self, position: int) -> Place:
        """The place of an item of the list here, the first being 0: `pip[0]`."""
        return Place(f"{self.path}[{position}]", self.source)

    def fail(self, message: str, *, advice: str | None = None) -> NoReturn:
        """Raises `SpecError` with this place."""
        raise SpecError(message, path=self.path or None, source=self.source, advice=advice)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Give the errors of a check that knows only the value the place where the value stands."""
        try:
            yield
        except SpecError as error:
            raise SpecError(error.message, path=self.path, source=self.source, advice=error.advice) from None


def kind(value: object) -> str:
    """What `value` is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "NaN" if math.isnan(value) else f"the number {value}" if abs(value) < 1e20 else "a number"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a Python {type(value).__name__}"


def object_at(
    place: Place, value: object, *, known: Sequence[str] | None = None, hints: Mapping[str, str] | None = None
) -> Mapping[str, Any]:
    """`value` as an object whose keys are all in `known` (None: any), each given once.

    `hints` maps what people write from habit to what it is called here.
    """
    if not isinstance(value, Mapping):
        place.fail(f"expected an object, got {kind(value)}")
    for key in getattr(value, "repeated", ()):
        place.key(key).fail("is given twice")
    for key in value:
        if not isinstance(key, str):
            place.fail(f"expected keys that are strings, got {kind(key)}")
        if known is not None and key not in known:
            hints = hints or {}
            close = difflib.get_close_matches(key.lower()[:64], [*hints, *known], n=1)
            suggestion = (
                f"did you mean {quoted(hints.get(close[0], close[0]))}?" if close else f"expected {one_of(known)}"
            )
            place.key(key).fail(f"unknown key; {suggestion}")
    return value


def one_of(words: Sequence[str]) -> str:
    """`"a", "b" or "c"`, for an error that says what was expected; there must be at least one."""
    return " or ".join(filter(None, (", ".join(map(quoted, words[:-1])), quoted(words[-1]))))


def string_at(place: Place, value: object, *, limit: int = MAX_STRING, printable: bool = True) -> str:
    """`value` as a string that is not blank; by default on one line and without control characters."""
    if not isinstance(value, str):
        place.fail(f"expected a string, got {kind(value)}")
    if len(value) > limit:
        place.fail(f"is {len(value)} characters long, more than {limit}")
    if printable and not value.strip():
        place.fail("is empty")
    bad = _UNPRINTABLE.search(value)
    if printable and bad:
        place.fail(f"holds the character U+{ord(bad[0]):04X}, which cannot be printed")
    return str(value)


def strings_at(place: Place, value: object) -> list[tuple[Place, str]]:
    """`value` as a list of strings (null: none), each with its place."""
    items = items_at(place, value, expected="a list of strings")
    return [(where, string_at(where, item)) for where, item in items]


def items_at(place: Place, value: object, *, expected: str = "a list") -> list[tuple[Place, object]]:
    """`value` as a list of anything (null: none), each item with its place.  `expected`: what an error calls it."""
    if value is None:
        return []
    if isinstance(value, str):
        place.fail(f"expected {expected}, got {kind(value)}", advice=f"put it in brackets: [{quoted(value)}]")
    if not isinstance(value, list | tuple):
        place.fail(f"expected {expected}, got {kind(value)}", advice=BRACKETS_ADVICE)
    return [(place.item(position), item) for position, item in enumerate(value)]


def choice_at(place: Place, value: object, choices: Sequence[str]) -> str:
    """`value` as one of `choices`, in exactly these letters."""
    if not isinstance(value, str) or value not in choices:
        place.fail(f"expected {one_of(choices)}, got {kind(value)}")
    return str(value)


def required_at(place: Place, fields: Mapping[str, Any], key: str) -> object:
    """The value of a key that must be there; without it, what is wrong is the object."""
    if key not in fields:
        place.fail(f"lacks {quoted(key)}")
    return fields[key]
