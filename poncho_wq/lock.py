"""Lock: the exact packages that an environment holds, each with what proves it to be the same.

A frozen value and its JSON form; solving is a builder's work.  What a lock holds names no machine, no index and no
user: an index's package is known by its name, version and sha256, whichever index delivers it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from poncho_wq.errors import BuildError, redact
from poncho_wq.locked_data import LockedData
from poncho_wq.packing.conda_package import CondaPackage

LOCK_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class LockedPackage:
    """One package.

    ``name`` is normalised (PEP 503); ``version`` None only for a source whose version shows when it is built.
    ``sha256`` are the files that may be installed, sorted: 64 hexadecimal digits each.  A package that no index serves
    has a ``url`` without credentials (PEP 508; of a local file only its name) and, for git, the ``commit``.
    """

    name: str
    version: str | None
    sha256: tuple[str, ...] = ()
    url: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lock:
    """``python`` is the full version, ``interpreter`` the identity of the copied one (None when conda brings it).

    ``packages`` are those of the Python index and ``conda`` those of conda channels, both sorted by name; ``data`` is
    what ``git`` and ``http`` gave, sorted by variable.
    """

    python: str
    interpreter: str | None
    platform: str
    packages: tuple[LockedPackage, ...]
    conda: tuple[CondaPackage, ...] = ()
    data: tuple[LockedData, ...] = ()

    def to_json(self) -> str:
        """The same text for equal locks, for people to read and compare."""
        document: dict[str, Any] = {
            "format": LOCK_FORMAT,
            "interpreter": self.interpreter,
            "packages": [_present(package) for package in self.packages],
            "platform": self.platform,
            "python": self.python,
        }
        if self.conda:
            document["conda"] = [package.to_dict() for package in self.conda]
        if self.data:
            document["data"] = [each.to_dict() for each in self.data]
        return json.dumps(document, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Lock:
        """Read what ``to_json`` wrote.  Raises ``BuildError`` naming the key that is not as it should be."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise BuildError(f"the lock is not JSON: {error}") from error
        except RecursionError:
            raise BuildError("the lock is nested too deeply") from None
        if not isinstance(document, dict):
            raise BuildError(f"the lock is {_kind(document)}, expected an object")
        if document.get("format") != LOCK_FORMAT:
            raise BuildError(
                f"lock: format: expected {LOCK_FORMAT}, got {document.get('format')!r}",
                advice="it was made by another version of poncho_wq; lock the environment again",
            )
        _only(document, {"conda", "data", "format", "interpreter", "packages", "platform", "python"}, "lock")
        packages, conda = _list(document.get("packages"), "packages"), _list(document.get("conda", []), "conda")
        data = _list(document.get("data", []), "data")
        return cls(
            python=_text(document, "python", "lock"),
            interpreter=_optional(document, "interpreter", "lock"),
            platform=_text(document, "platform", "lock"),
            packages=tuple(_package(each, f"lock: packages[{i}]") for i, each in enumerate(packages)),
            conda=tuple(CondaPackage.from_dict(each, f"lock: conda[{i}]") for i, each in enumerate(conda)),
            data=tuple(LockedData.from_dict(each, f"lock: data[{i}]") for i, each in enumerate(data)),
        )


def _list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise BuildError(f"lock: {key}: expected a list, got {_kind(value)}")
    return value


def packages_from_pylock(document: Mapping[str, Any]) -> tuple[LockedPackage, ...]:
    """The packages of a pylock.toml (PEP 751) that was made for one machine, as ``uv pip compile`` writes it.

    Raises ``BuildError`` for a package that is none of: from an index, an archive, a git commit.
    """
    try:
        return tuple(sorted(map(_from_pylock, document.get("packages", [])), key=lambda package: package.name))
    except (KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"the resolver's result is not as expected: {error!r}", log=str(document)) from error


def _from_pylock(entry: Mapping[str, Any]) -> LockedPackage:
    name, version = canonicalize_name(entry["name"]), entry.get("version")
    if "vcs" in entry:
        vcs = entry["vcs"]
        url = f"{vcs['type']}+{_public(vcs.get('url') or 'file:' + vcs['path'])}"
        folder = f"#subdirectory={vcs['subdirectory']}" if vcs.get("subdirectory") else ""
        return LockedPackage(name=name, version=version, url=url + folder, commit=vcs["commit-id"])
    if "archive" in entry:
        archive = entry["archive"]
        url = _public(archive.get("url") or f"file:{archive['path']}")
        folder = f"#subdirectory={archive['subdirectory']}" if archive.get("subdirectory") else ""
        return LockedPackage(name=name, version=version, url=url + folder, sha256=_hashes([archive]))
    files = [*entry.get("wheels", []), *([entry["sdist"]] if "sdist" in entry else [])]
    if not files or version is None:
        raise BuildError(
            f"{name}: a package in a folder cannot be locked",
            advice=f"build a wheel of it (pip wheel) and list it as {name} @ file:///path/to/the.whl",
        )
    return LockedPackage(name=name, version=version, sha256=_hashes(files))


def _hashes(files: list[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({file["hashes"]["sha256"] for file in files if "sha256" in file.get("hashes", {})}))


def _public(url: str) -> str:
    """``url`` as others may see it: no credentials, and of this machine's directories nothing."""
    if url.startswith("file:"):
        return "file:" + url.rstrip("/").rpartition("/")[2]
    return redact(url)


def _package(entry: object, where: str) -> LockedPackage:
    if not isinstance(entry, dict):
        raise BuildError(f"{where}: expected an object, got {_kind(entry)}")
    _only(entry, {"name", "version", "sha256", "url", "commit"}, where)
    hashes = entry.get("sha256", [])
    if not isinstance(hashes, list) or not all(isinstance(each, str) and _SHA256.fullmatch(each) for each in hashes):
        raise BuildError(f"{where}.sha256: expected a list of sha256 digests")
    return LockedPackage(
        name=_text(entry, "name", where),
        version=_optional(entry, "version", where),
        sha256=tuple(hashes),
        url=_optional(entry, "url", where),
        commit=_optional(entry, "commit", where),
    )


def _present(package: LockedPackage) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(package).items() if v}


def _text(document: Mapping[str, Any], key: str, where: str) -> str:
    value = _optional(document, key, where)
    if not value:
        raise BuildError(f"{where}.{key}: missing")
    return value


def _optional(document: Mapping[str, Any], key: str, where: str) -> str | None:
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        raise BuildError(f"{where}.{key}: expected text, got {_kind(value)}")
    return value or None  # an empty text says no more than none, and is not written


def _only(document: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in sorted(set(document) - known):
        raise BuildError(f"{where}: unknown key {key!r}")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")
