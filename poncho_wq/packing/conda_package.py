"""A conda package as a lock knows it: where it is, what proves it to be the same, and all that linking it needs.

The channel's own record goes into the lock, because a channel may change what it says of a package (its dependencies
are "hot-fixed") or be out of reach when the environment is built again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from poncho_wq.errors import BuildError, redact

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWN = ("name", "version", "build", "subdir", "sha256")
# `indexed_timestamp` is when the channel was last indexed; the others are said in our own words.
_NOT_KEPT = frozenset((*_OWN, "fn", "url", "channel", "indexed_timestamp", "requested_specs", "files", "paths_data"))


@dataclass(frozen=True, kw_only=True)
class CondaPackage:
    """One package.

    ``channel`` is its name or URL as the specification has it, ``subdir`` and ``file`` where it is below that.
    ``sha256`` is of that file, None in channels that publish none.  ``record`` is the rest of what the channel says of
    it (dependencies, size, kind), as JSON with sorted keys.
    """

    name: str
    version: str
    build: str
    channel: str
    subdir: str
    file: str
    sha256: str | None
    record: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, channel: str) -> CondaPackage:
        """The package that ``record`` (an entry of ``repodata.json``, with ``fn``) describes."""
        rest = {key: value for key, value in record.items() if key not in _NOT_KEPT and value not in (None, [], {})}
        return cls(
            name=record["name"],
            version=record["version"],
            build=record["build"],
            channel=redact(channel),
            subdir=record["subdir"],
            file=record["fn"],
            sha256=record.get("sha256"),
            record=json.dumps(rest, sort_keys=True),
        )

    def to_record(self, base_url: str) -> dict[str, Any]:
        """The channel's record again; ``base_url`` is where ``channel`` is, with a final slash."""
        own = {key: value for key in _OWN if (value := getattr(self, key)) is not None}
        place = {"fn": self.file, "url": f"{base_url}{self.subdir}/{self.file}", "channel": base_url}
        return {"depends": [], "constrains": [], **json.loads(self.record), **own, **place}

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a lock."""
        document = {key: value for key, value in vars(self).items() if value is not None}
        return {**document, "record": json.loads(self.record)}

    @classmethod
    def from_dict(cls, entry: object, where: str) -> CondaPackage:
        """Read what ``to_dict`` gave.  Raises ``BuildError`` that names the key, after ``where``."""
        if not isinstance(entry, dict):
            raise BuildError(f"{where}: expected an object")
        words = ("name", "version", "build", "channel", "subdir", "file")
        for key in sorted(set(entry) - {*words, "sha256", "record"}):
            raise BuildError(f"{where}: unknown key {key!r}")
        for key in words:
            if not isinstance(entry.get(key), str) or not entry[key]:
                raise BuildError(f"{where}.{key}: expected text")
        if "/" in entry["file"] or "/" in entry["subdir"] or ".." in (entry["file"], entry["subdir"]):
            raise BuildError(f"{where}.file: is not the name of a file")
        digest, record = entry.get("sha256"), entry.get("record")
        if digest is not None and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
            raise BuildError(f"{where}.sha256: expected 64 hexadecimal digits")
        if not isinstance(record, dict):
            raise BuildError(f"{where}.record: expected an object")
        texts = {key: entry[key] for key in words}
        return cls(**texts, sha256=digest, record=json.dumps(record, sort_keys=True))
