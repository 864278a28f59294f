"""The packages of a conda prefix, from `conda-meta`: which one holds a file, and how a specification names it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.errors import redact

# Channels of anaconda.org go by their name; conda knows where they are.
_WELL_KNOWN = re.compile(r"https?://(?:conda\.anaconda\.org|repo\.anaconda\.com)/(?P<name>.+)")
_SUBDIR = re.compile(r"/(?:noarch|(?:linux|osx|win|emscripten|wasi|zos|freebsd)-[a-z0-9_]+)/?$")


@dataclass(frozen=True, kw_only=True)
class CondaRecord:
    """One installed conda package."""

    name: str
    version: str
    build: str
    channel: str | None

    @property
    def matchspec(self) -> str:
        """`channel::name=version=build`, as the specification format asks for."""
        exact = f"{self.name}={self.version}={self.build}"
        return f"{self.channel}::{exact}" if self.channel else exact


class CondaRecords:
    """The records of `PREFIX/conda-meta`. They are large, so that each is parsed only when it is asked for."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix

    @classmethod
    def beside(cls, prefix: Path) -> CondaRecords | None:
        """The records of a prefix; None when it is not conda's."""
        records = cls(prefix)
        return records if records._documents else None

    @functools.cached_property
    def _documents(self) -> dict[Path, bytes]:
        folder = self.prefix / "conda-meta"
        try:
            return {file: file.read_bytes() for file in sorted(folder.glob("*.json"))}
        except OSError:
            return {}

    def named(self, name: str) -> CondaRecord | None:
        """The package of that name."""
        for file, data in self._documents.items():
            if file.name.lower().startswith(name.lower() + "-"):
                record = _record(data)
                if record is not None and record.name == name.lower():
                    return record
        return None

    def owner(self, path: Path) -> CondaRecord | None:
        """The package that `path`, or something in that directory, came with."""
        try:
            relative = path.absolute().relative_to(self.prefix.absolute()).as_posix()
        except ValueError:
            return None
        # The path as JSON, with or without more of it behind: parsing every record to find out takes seconds.
        quoted = json.dumps(relative)[:-1].encode()
        for data in self._documents.values():
            if quoted + b'"' in data or quoted + b"/" in data:
                return _record(data)
        return None

    def channels(self, used: Iterator[str]) -> list[str]:
        """The channels of the packages used, that of Python first."""
        python = self.named("python")
        first = [python.channel] if python and python.channel else []
        return list(dict.fromkeys([*first, *used]))


def _record(data: bytes) -> CondaRecord | None:
    try:
        document: Any = json.loads(data)
        return CondaRecord(
            name=str(document["name"]),
            version=str(document["version"]),
            build=str(document.get("build") or document["build_string"]),
            channel=_channel(document),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _channel(document: Any) -> str | None:
    """The channel's name, or its URL where it has no well-known one, without token and platform."""
    text = str(document.get("channel") or "")
    if "://" not in text and document.get("url"):
        text = text or str(document["url"]).rpartition("/")[0]
    text = redact(text).replace("***@", "").replace("/t/***", "")
    text = _SUBDIR.sub("", text).rstrip("/")
    match = _WELL_KNOWN.fullmatch(text)
    if match is not None:
        text = match["name"]
    return text if text and text not in ("pypi", "<unknown>", "<develop>") else None
