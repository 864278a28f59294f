"""Files that people and tools write, as text: bounded, decoded, and refused by name."""

from __future__ import annotations

import codecs
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from poncho_wq.errors import SpecError

MAX_FILE = 16 * 1024 * 1024  # bytes; a lock of a thousand packages with all their hashes has 3 MB

# Windows' PowerShell writes `pip freeze > requirements.txt` in UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")


def read_bytes(path: Path, *, limit: int = MAX_FILE) -> bytes:
    """The contents of ``path``.  Raises ``SpecError`` where it cannot be read or has more than ``limit`` bytes."""
    try:
        # Not blocking: a named pipe that nobody writes to would hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise SpecError("no such file", source=str(path)) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
    if len(data) > limit:
        raise SpecError(f"is larger than {limit} bytes, so not a list of packages", source=str(path))
    return data


def read_text(path: Path, *, limit: int = MAX_FILE) -> str:
    """The text of ``path``: UTF-8, or what its byte order mark or a ``coding:`` comment says.  Raises ``SpecError``."""
    return decode(read_bytes(path, limit=limit), source=str(path))


def decode(data: bytes, *, source: str) -> str:
    """``data`` as text, by pip's rules for requirements files."""
    encoding = "utf-8"
    for mark, name in _MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], name
            break
    else:
        for line in data.split(b"\n", 2)[:2]:
            found = _CODING.search(line) if line.startswith(b"#") else None
            if found:
                encoding = found[1].decode("ascii")
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        raise SpecError(f"is not text in {encoding}", source=source, advice="save the file as UTF-8") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML document ``path``.  Raises ``SpecError`` with line and column."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document: dict[str, Any] = toml.loads(decode(read_bytes(path), source=str(path)))
        return document
    except ValueError as error:  # TOMLDecodeError of either
        raise SpecError(f"not TOML: {error}", source=str(path)) from None
    except RecursionError:
        raise SpecError("not TOML that anyone writes: nested too deeply", source=str(path)) from None
