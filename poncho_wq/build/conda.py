"""The conda builder: packages of conda channels, and beside them what only the Python index has.

``CondaBuilder.lock`` and ``.build`` tell the story.  No conda program takes part, and none need be installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.build import FileGroup, Prefix, conda_meta, conda_pip
from poncho_wq.build.host import check_glibc, highest_glibc
from poncho_wq.build.rattler import Conda, Record, base_url, channel_of, name_of
from poncho_wq.build.relocation import PLACEHOLDER, relocations, room_for_prefix
from poncho_wq.errors import BuildError, SpecError
from poncho_wq.lock import Lock, LockedPackage
from poncho_wq.packing.conda_package import CondaPackage
from poncho_wq.platforms import host_platform
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.scratch import work_directory
from poncho_wq.spec import EnvSpec

DEFAULT_CHANNEL = "conda-forge"
"""Where packages come from when a specification names no channel."""


class CondaBuilder:
    """Builds specifications with a conda section; see ``Builder`` for what each method promises.

    ``cache_root`` is where packages are kept (in ``conda/`` and ``uv/``, unless ``$RATTLER_CACHE_DIR`` and
    ``$UV_CACHE_DIR`` say otherwise).  ``platform`` is the workers', ``offline`` forbids the network.
    ``environment`` are the variables that uv gets for the ``pip`` part (default: those of the process).
    """

    def __init__(
        self,
        *,
        cache_root: Path | None = None,
        platform: str | None = None,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if cache_root is None:
            from poncho_wq.cache import default_root

            cache_root = default_root()
        self._root = cache_root
        self._platform = platform or host_platform()
        self._conda = Conda(cache=cache_root / "conda", offline=offline)
        self._offline = offline
        self._environment = environment

    def interpreter(self) -> None:
        return None  # it is a package like any other

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        self._check_platform(spec)
        question = ask(spec)
        if question.note:
            on_progress(Progress(stage="note", detail=question.note))
        on_progress(Progress(stage="resolve", detail=f"{len(question.specs)} conda packages for {self._platform}"))
        records = self._conda.solve(
            question.specs,
            channels=question.channels,
            pinned=question.pinned,
            platform=self._platform,
            glibc=spec.glibc,
        )
        packages = tuple(CondaPackage.from_record(record, channel=question.channel_of(record)) for record in records)
        return Lock(
            python=_python_of(packages),
            interpreter=None,
            platform=self._platform,
            packages=self._lock_pip(spec, packages, on_progress),
            conda=packages,
        )

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> None:
        return None

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        self._check_lock(lock)
        try:
            return self._build(spec, lock, prefix, on_progress)
        except OSError as error:  # a full disk, as a rule
            raise BuildError(f"could not build the environment in {prefix}: {error}") from error

    def _build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        self.link(lock.conda, prefix, on_progress)
        documents = conda_meta.settle(prefix, lock.conda)
        owned = conda_meta.owned_files(prefix, documents)
        for name, room in room_for_prefix(documents.values()).items():
            note = (
                f"{name} can be unpacked into directories of at most {room} characters only, as it was built for that"
            )
            on_progress(Progress(stage="note", detail=note))
        of_pip: Sequence[FileGroup] = ()
        if lock.packages:
            of_pip = conda_pip.install(self._uv(on_progress), spec, lock, prefix, owned=owned, on_progress=on_progress)
        highest = highest_glibc(prefix)
        check_glibc(spec.glibc, highest, what="a package")
        return Prefix(
            path=prefix,
            python=lock.python,
            platform=lock.platform,
            glibc=None if highest is None else highest[0],
            groups=conda_meta.groups(prefix, lock.conda, owned, of_pip),
            relocations=relocations(prefix, documents.values()),
            placeholder=PLACEHOLDER,
        )

    def link(self, packages: Sequence[CondaPackage], prefix: Path, on_progress: OnProgress) -> None:
        """Download and link ``packages`` into the new directory ``prefix``."""
        total = len(packages)
        on_progress(Progress(stage="install", detail="conda packages", done=0, total=total, unit="packages"))
        records = [package.to_record(base_url(package.channel)) for package in packages]
        self._conda.install(records, prefix, placeholder=PLACEHOLDER, platform=self._platform, on_progress=on_progress)

    def _lock_pip(
        self, spec: EnvSpec, packages: Sequence[CondaPackage], on_progress: OnProgress
    ) -> tuple[LockedPackage, ...]:
        """What the ``pip`` part adds.  What conda brings counts as installed, and only a prefix tells what that is."""
        if not spec.pip:
            return ()
        on_progress(Progress(stage="resolve", detail=f"{len(spec.pip)} requirements beside the conda packages"))
        with self._work_directory() as work:
            self.link(packages, work / "prefix", on_progress)
            return conda_pip.lock(self._uv(on_progress), spec, work / "prefix", work=work, platform=self._platform)

    def _uv(self, on_progress: OnProgress) -> conda_pip.PrefixUv:
        given = os.environ if self._environment is None else self._environment
        environment = {**given, "UV_OFFLINE": "1"} if self._offline else given
        return conda_pip.PrefixUv(cache=self._root / "uv", environment=environment, on_progress=on_progress)

    @contextmanager
    def _work_directory(self) -> Iterator[Path]:
        """A directory on the disk of the package cache, so that files can be linked instead of copied."""
        place = self._root / "conda" / "tmp"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with work_directory(place) as work:
            (work / "pip").mkdir()
            yield work

    def _check_platform(self, spec: EnvSpec) -> None:
        if self._platform != host_platform() and spec.pip:
            raise SpecError(
                f"requirements can be installed for {host_platform()} only, this machine's platform, "
                f"not for {self._platform}",
                path="pip",
                advice="list them as conda packages, or build on a machine of that platform",
            )

    def _check_lock(self, lock: Lock) -> None:
        if not lock.conda:
            raise BuildError(
                "the lock has no conda packages, and the specification has a conda section",
                advice="it was made for another specification; lock this one again",
            )
        if lock.platform != self._platform:
            raise BuildError(
                f"the lock is for {lock.platform}, and {self._platform} was asked for",
                advice=f"use --platform {lock.platform}, or lock the environment again",
            )


@dataclass(frozen=True, kw_only=True)
class CondaQuestion:
    """What a specification asks of conda: MatchSpecs, channels in order, pinned versions; ``note`` is for the user."""

    specs: tuple[str, ...]
    channels: tuple[str, ...]
    pinned: tuple[str, ...]
    note: str | None = None

    def channel_of(self, record: Record) -> str:
        """The name or URL, as the specification has it, of the channel that ``record`` comes from."""
        url = str(record["url"])
        return next((name for name in self.channels if url.startswith(base_url(name))), url.rpartition("/")[0])


def ask(spec: EnvSpec) -> CondaQuestion:
    """Turn the conda section and ``pinned`` of ``spec`` into what the solver is asked.

    A specification that asks for no Python gets the manager's minor version, because functions are pickled for that.
    """
    assert spec.conda is not None
    specs, notes = list(spec.conda.packages), []
    if not any(name_of(each) == "python" for each in specs):
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        pinned = dict(spec.pinned).get("python")
        specs.append("python" if pinned else f"python {minor}.*")
        notes.append(
            f"the specification asks for no Python: taking {pinned or minor}" + ("" if pinned else ", the manager's")
        )
    channels = list(spec.conda.channels)
    named = [channel for each in specs if (channel := channel_of(each)) is not None]
    if not channels and not named:
        channels.append(DEFAULT_CHANNEL)
        notes.append(f"the specification names no channel: taking {DEFAULT_CHANNEL}")
    known = {base_url(channel) for channel in channels}
    for channel in named:  # as conda does: a channel named by a package is asked after all others
        if base_url(channel) not in known:
            channels.append(channel)
            known.add(base_url(channel))
    return CondaQuestion(
        specs=tuple(specs),
        channels=tuple(channels),
        pinned=tuple(_pin(name, version) for name, version in spec.pinned),
        note="; ".join(notes) or None,
    )


def _pin(name: str, version: str) -> str:
    """``{"numpy": "1.26"}`` as the line ``numpy=1.26`` that upstream's tools write: 1.26 and what begins so."""
    return f"{name}={version}" if version[0].isalnum() else f"{name} {version}"


def _python_of(packages: Sequence[CondaPackage]) -> str:
    return next(package.version for package in packages if package.name == "python")
