"""What an importer gives: the specification, and what the source says besides it.

A specification holds what an environment is; where packages are downloaded from, which files of a version may be
taken, and which interpreter is copied are decided elsewhere.  A ``requirements.txt`` or a venv says that too, so it
travels beside the specification: to the builder, and never into spec, lock or tarball.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from poncho_wq.errors import SolveError
from poncho_wq.spec import EnvSpec

if TYPE_CHECKING:
    from poncho_wq.importing.conda_prefix import CondaPrefix
    from poncho_wq.lock import Lock, LockedPackage

# What says to uv which indexes there are.
_UV_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What a requirements file says about downloading, in pip's words.

    ``index_url`` replaces the user's index, ``extra_index_urls`` and ``find_links`` come beside the user's, as with
    pip.  ``no_binary`` and ``only_binary`` are names of packages, or ``":all:"``.  These may hold credentials: they
    are never printed.
    """

    index_url: str | None = field(default=None, repr=False)
    extra_index_urls: tuple[str, ...] = field(default=(), repr=False)
    find_links: tuple[str, ...] = field(default=(), repr=False)
    no_index: bool = False
    trusted_hosts: tuple[str, ...] = ()
    pre: bool = False
    no_binary: tuple[str, ...] = ()
    only_binary: tuple[str, ...] = ()

    @property
    def choices(self) -> str | None:
        """Those that choose among the files of an index, as text; None for the usual ones.

        Where packages come from is no part of what an environment is; whether it may hold pre-releases is.
        """
        if not (self.pre or self.no_binary or self.only_binary):
            return None
        return json.dumps([self.pre, sorted(self.no_binary), sorted(self.only_binary)])

    def applied_to(self, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` with these options for uv in it, and what the user's configuration of pip says.

        Variables, not arguments: every user of a machine can read the arguments of its processes.
        """
        from poncho_wq.build import index

        given = {**environment, **index.uv_variables(environment)}
        if self.no_index or (index.wants_no_index(environment) and not (self.index_url or self.extra_index_urls)):
            given = {name: value for name, value in given.items() if name not in _UV_INDEXES}
            given["PIP_NO_INDEX"] = "1"
        else:
            self._add_indexes(given)
        if self.find_links:
            given["UV_FIND_LINKS"] = ",".join(filter(None, (given.get("UV_FIND_LINKS"), *self.find_links)))
        if self.trusted_hosts:
            given["UV_INSECURE_HOST"] = " ".join(filter(None, (given.get("UV_INSECURE_HOST"), *self.trusted_hosts)))
        if self.pre:
            given["UV_PRERELEASE"] = "allow"
        for names, everything, some in (
            (self.no_binary, "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE"),
            (self.only_binary, "UV_NO_BUILD", "UV_NO_BUILD_PACKAGE"),
        ):
            if ":all:" in names:
                given[everything] = "1"
            elif names:
                given[some] = " ".join(names)
        return given

    def _add_indexes(self, given: dict[str, str]) -> None:
        if self.index_url:
            given.pop("UV_INDEX_URL", None)
            given["UV_DEFAULT_INDEX"] = self.index_url
        if self.extra_index_urls:
            before = (given.pop("UV_EXTRA_INDEX_URL", None), given.get("UV_INDEX"))
            given["UV_INDEX"] = " ".join(filter(None, (*before, *self.extra_index_urls)))
            # pip takes the best version of all its indexes; uv by itself stops at the first that knows the name.
            given.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a lock must fulfil beyond the specification.

    ``hashes`` maps a normalised name to the sha256 digests of the files that may be installed; with ``hashes_required``
    every package needs one.  ``constraints`` are PEP 508 requirements on packages *if* they are installed, and
    ``constraint_files`` the absolute paths of the files that hold them.
    """

    hashes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    hashes_required: bool = False
    constraints: tuple[str, ...] = ()
    constraint_files: tuple[Path, ...] = ()

    @property
    def digest(self) -> str | None:
        """The sha256 of what these demand, None when that is nothing.

        An environment made under conditions is not the one that the specification alone gives: the cache must not
        confuse the two.
        """
        if not (self.hashes or self.constraints or self.hashes_required):
            return None
        covered = [sorted(self.hashes), self.hashes_required, sorted(self.constraints)]
        return hashlib.sha256(json.dumps(covered, separators=(",", ":")).encode("ascii")).hexdigest()

    def restrict(self, lock: Lock) -> Lock:
        """``lock`` with the allowed files only.

        Raises ``SolveError`` naming every package of which none is allowed.
        """
        allowed = dict(self.hashes)
        kept: list[LockedPackage] = []
        wrong: list[str] = []
        for package in lock.packages:
            digests = allowed.get(package.name)
            if digests is None:
                if self.hashes_required:
                    wrong.append(f"{package.name} {package.version}: no hash is given for it")
                kept.append(package)
                continue
            files = tuple(digest for digest in package.sha256 if digest in digests)
            if not files:
                wrong.append(f"{package.name} {package.version}: none of its files has one of the hashes given")
            kept.append(replace(package, sha256=files))
        if wrong:
            raise SolveError(
                "the packages are not those whose hashes are given:\n  " + "\n  ".join(wrong),
                advice="see what changed on the index, or write the hashes again: uv pip compile --generate-hashes",
            )
        return replace(lock, packages=tuple(kept))


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A source, read.

    ``spec`` describes the environment.  ``notes`` are for the user: what was left out, and why.  ``index`` and
    ``conditions`` are for the builder.  ``interpreter`` is the program to copy, None for the one that runs the
    manager.  ``prefix`` is set for a conda prefix, which is packed as it is.
    """

    spec: EnvSpec
    notes: tuple[str, ...] = ()
    index: IndexOptions = IndexOptions()
    conditions: Conditions = Conditions()
    interpreter: Path | None = None
    prefix: CondaPrefix | None = None

    @property
    def digest(self) -> str | None:
        """What besides the specification decides what is built; None when that is nothing.

        A cache tells two environments apart by this and the specification's hash.
        """
        packed = None if self.prefix is None else self.prefix.fingerprint()
        parts = [self.conditions.digest, self.index.choices, packed]
        known = [part for part in parts if part]
        return hashlib.sha256("\n".join(known).encode()).hexdigest() if known else None

    def build_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables that uv gets to build this, given those of the process."""
        given = self.index.applied_to(environment)
        if self.conditions.constraint_files:
            before = given.get("UV_CONSTRAINT")
            given["UV_CONSTRAINT"] = " ".join(filter(None, (before, *map(str, self.conditions.constraint_files))))
        return given
