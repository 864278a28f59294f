"""EnvSpec: what an environment is to hold, as a frozen value with a canonical form and a hash.

This module decides which specifications are equal and what the hash covers; `spec_parse` decides what may be written.
Neither touches a file, a network or a process.  The format is described in `docs/formats/spec.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from poncho_wq.errors import SpecError, quoted

__all__ = ["CondaSection", "EnvSpec", "GitSource", "HttpSource", "Target"]

PLATFORMS = ("linux-64", "linux-aarch64")


@dataclass(frozen=True, kw_only=True)
class CondaSection:
    """Conda packages.  `channels` in order of priority; `packages` are MatchSpecs, sorted."""

    channels: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GitSource:
    """A repository and what to check out of it: a commit, tag or branch; None means its default branch."""

    remote: str
    tag: str | None = None


@dataclass(frozen=True, kw_only=True)
class HttpSource:
    """A file to download, or an archive to unpack.  `sha256` is of the file as downloaded: 64 lower-case digits."""

    url: str
    type: Literal["file", "tar"]
    compression: Literal["gzip", "bzip2", "xz", "zstd"] | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a specification is built for, as far as the outcome depends on it.

    `platform` is conda's name of it; `interpreter` identifies the interpreter that a host build copies, and is None for
    a conda build, which brings its own; `format_version` is that of the tarball.
    """

    platform: str
    interpreter: str | None
    format_version: int

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise SpecError(
                f"workers are {' or '.join(PLATFORMS)}, got {quoted(str(self.platform))}", path="target.platform"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class EnvSpec:
    """An environment, parsed and valid.  Make one with `from_json` or `from_dict`; the fields are not checked again.

    Two specs are equal when they describe the same environment: order and spelling that mean nothing are ignored, as in
    `spec_hash`.  The fields keep the digits that the user wrote (`rich==15.0.0`), for people to read.
    """

    conda: CondaSection | None = None
    pip: tuple[str, ...] = ()
    git: tuple[tuple[str, GitSource], ...] = ()
    http: tuple[tuple[str, HttpSource], ...] = ()
    pinned: tuple[tuple[str, str], ...] = ()
    python: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    glibc: str | None = None

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str | None = None) -> EnvSpec:
        """Read a specification; `source` is where it came from, for the errors.

        Raises `SpecError`, and nothing else, for whatever is not one: its `.path` names the bad key.
        """
        from poncho_wq.specs.document import load_json
        from poncho_wq.specs.spec_parse import parse_spec

        return parse_spec(load_json(text, source=source), source=source)

    @classmethod
    def from_dict(cls, obj: Mapping[str, Any], *, source: str | None = None) -> EnvSpec:
        """The same for a specification that is already a dictionary of dictionaries, lists and strings."""
        from poncho_wq.specs.spec_parse import parse_spec

        return parse_spec(obj, source=source)

    def to_dict(self) -> dict[str, Any]:
        """The specification in its documented format; reading it back gives an equal EnvSpec."""
        document: dict[str, Any] = {}
        if self.conda is not None:
            document["conda"] = {"channels": list(self.conda.channels), "packages": list(self.conda.packages)}
        if self.pip:
            document["pip"] = list(self.pip)
        if self.git:
            document["git"] = {variable: _present(vars(source)) for variable, source in self.git}
        if self.http:
            document["http"] = {variable: _present(vars(source)) for variable, source in self.http}
        if self.pinned:
            document["pinned"] = {"conda": dict(self.pinned)}
        if self.python is not None:
            document["python"] = self.python
        if self.env:
            document["env"] = dict(self.env)
        if self.glibc is not None:
            document["glibc"] = self.glibc
        return document

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def canonical_json(self) -> str:
        """The same text for every equal specification: itself a valid one, in ASCII, on one line."""
        return self._canonical

    def spec_hash(self, target: Target) -> str:
        """The sha256, as 64 hexadecimal digits, of this environment built for `target`.

        It covers exactly this ASCII text: `{"spec":S,"target":T}`, where S is `canonical_json()` and T holds the three
        fields of `target` in the same form (keys sorted, no blanks, non-ASCII characters escaped).  S holds

        - `conda.channels` in the order given, since order is priority;
        - as sets: `conda.packages`, `pip`, and the entries of `git`, `http`, `env` and `pinned.conda`;
        - each requirement and MatchSpec in the one spelling that `requirement.canonical` and `matchspec.canonical` give
          to all that are equal, so that `1.0` is `1.0.0` where the two mean the same;
        - `python` and `glibc` as given.

        Not covered: where the specification came from, `name` and `prefix`, the indexes, proxies and credentials that
        packages are downloaded with, and the versions that an unpinned requirement resolves to.
        """
        covered = f'{{"spec":{self._canonical},"target":{_canonical_text(vars(target))}}}'
        return hashlib.sha256(covered.encode("ascii")).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self._canonical == other._canonical if isinstance(other, EnvSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._canonical)

    @cached_property
    def _canonical(self) -> str:
        document = self.to_dict()
        if self.conda is not None:
            from poncho_wq.specs import matchspec

            document["conda"]["packages"] = sorted({matchspec.canonical(each) for each in self.conda.packages})
        if self.pip:
            from poncho_wq.specs import requirement

            document["pip"] = sorted({requirement.canonical(each) for each in self.pip})
        return _canonical_text(document)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _canonical_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
