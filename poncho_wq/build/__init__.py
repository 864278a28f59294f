"""Builders: from a specification and a lock to a prefix, a directory that holds the whole environment.

Each kind of environment has a builder behind one short protocol; what comes after (packing, caching, engines) sees only
the ``Prefix``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from poncho_wq.errors import BuildError, SpecError
from poncho_wq.progress import OnProgress

if TYPE_CHECKING:
    from poncho_wq.build.builds import Outcome
    from poncho_wq.build.interpreter import Interpreter
    from poncho_wq.importing.model import Imported
    from poncho_wq.lock import Lock
    from poncho_wq.packing.layers import Entry
    from poncho_wq.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class FileGroup:
    """The files of one package.

    ``files`` are POSIX paths relative to the prefix, sorted: files, symbolic links, and directories that are empty
    (those end in ``/``).  ``version`` is None where there is none to tell.

    ``known`` is what an earlier build has given for it, in the order of ``files``: what has to be found there or, where
    the files are not ``there``, what is packed.
    """

    name: str
    version: str | None
    kind: Literal["interpreter", "pip", "conda", "data", "other"]
    files: tuple[str, ...]
    known: tuple[Entry, ...] = ()
    there: bool = True


@dataclass(frozen=True, kw_only=True)
class Relocation:
    """A file that names the place it is installed in, and is edited when that place is known.

    ``path`` is relative to the prefix; ``places`` are (offset, length) pairs in bytes: the offset of the placeholder
    and, for a binary, the length of the zero-terminated text it begins (for text, of the placeholder).
    """

    path: str
    kind: Literal["text", "binary"]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A built prefix, ready to pack: every file below ``path`` is in exactly one of ``groups``.

    ``python`` is the full version (``"3.11.7"``), None without an interpreter; ``platform`` as in ``Target``; ``glibc``
    the highest version that any binary asks for (``"2.34"``), None when none does.  ``certificates`` are the paths
    where its OpenSSL looks for those of authorities, if they are the machine's.  ``outcome`` is what later builds can
    learn from this one, where they can.
    """

    path: Path
    python: str | None
    platform: str
    glibc: str | None
    groups: tuple[FileGroup, ...]
    relocations: tuple[Relocation, ...] = ()
    placeholder: str | None = None
    certificates: tuple[str, ...] = ()
    outcome: Outcome | None = None


class Builder(Protocol):
    """Makes environments of one kind."""

    def interpreter(self) -> str | None:
        """What identifies the interpreter in ``Target``; None when the lock decides it.  Cheap, as every hit asks."""

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        """Solve ``spec`` to exact packages.  Raises ``SolveError``, ``FetchError``, ``BuildError``, ``SpecError``."""

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        """Make the environment in ``prefix``, which does not exist yet.  Raises ``BuildError``, ``FetchError``."""

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix | None:
        """The same with what earlier builds have given, so that ``prefix`` holds only what has changed, and some more.

        What is packed from it is the same, byte for byte; ``NotAsKnown``, there or later, says that it cannot be packed
        after all.  None where there is nothing to begin with.  Raises as ``build``.
        """


def builder_for(
    spec: EnvSpec,
    *,
    cache_root: Path | None = None,
    platform: str | None = None,
    offline: bool = False,
    source: Imported | None = None,
) -> Builder:
    """The builder for ``spec``.

    ``cache_root`` is where it may keep downloads (default: the cache's own), ``platform`` the workers' (default: this
    machine's), and ``offline`` forbids it the network.  ``source`` is what ``spec`` was read from, with what it says of
    indexes, hashes and the interpreter.  Raises ``SpecError`` for what no builder can build.
    """
    builder = _package_builder(spec, cache_root, platform, offline, source)
    if source is not None and source.conditions.digest is not None:
        from poncho_wq.build.wrapping import WithConditions

        builder = WithConditions(builder, source.conditions)
    if spec.git or spec.http:
        from poncho_wq.build.datastore import DataStore
        from poncho_wq.build.wrapping import WithData
        from poncho_wq.cache import default_root

        builder = WithData(builder, store=DataStore(cache_root or default_root(), offline=offline))
    return builder


def _package_builder(
    spec: EnvSpec, cache_root: Path | None, platform: str | None, offline: bool, source: Imported | None
) -> Builder:
    if source is not None and source.prefix is not None:
        from poncho_wq.build.installed import InstalledBuilder

        return InstalledBuilder(source.prefix, source.spec, platform=platform)
    environment = None if source is None else source.build_environment(os.environ)
    if spec.conda is not None:
        from poncho_wq.build.conda import CondaBuilder

        return CondaBuilder(cache_root=cache_root, platform=platform, offline=offline, environment=environment)
    from poncho_wq.build.host import HostBuilder
    from poncho_wq.platforms import host_platform

    if platform not in (None, host_platform()):
        raise SpecError(
            f"without a conda section an environment takes this machine's Python, which is for {host_platform()}",
            advice=f"give the specification a conda section, or build it on a {platform} machine",
        )
    python = None if source is None or source.interpreter is None else _base_of_venv(source.interpreter)
    return HostBuilder(cache_root=cache_root, python=python, offline=offline, environment=environment)


def _base_of_venv(program: Path) -> Interpreter:
    """The interpreter that a virtual environment was made from.  Raises ``BuildError`` where it does not start."""
    from poncho_wq.build.interpreter import Interpreter

    try:
        return Interpreter.of(program)
    except BuildError as error:
        said = error.log.strip().splitlines() or [error.message]
        raise BuildError(
            f"the interpreter of the virtual environment does not start: {said[-1]}",
            command=error.command,
            log=error.log,
            advice=error.advice or "load the environment module that it was made with, and try again",
        ) from error
