"""py-rattler: the one place that solves, downloads and links with it, and that turns what it says into our errors.

py-rattler is younger than 1.0 and its interface moves.  Everything that the rest of the package sees of it are plain
dictionaries (records, as a channel's ``repodata.json`` has them) and errors of ours.  (`matchspec` asks it what is a
MatchSpec, and no more.)
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import rattler
from rattler import exceptions
from rattler.package import BuildString

from poncho_wq.build.solver_words import Question, explain_fetch, explain_solve
from poncho_wq.digests import sha256_of
from poncho_wq.errors import BuildError, FetchError, PonchoError, SpecError, redact
from poncho_wq.progress import OnProgress, Progress

T = TypeVar("T")

Record = Mapping[str, Any]
"""A package as its channel describes it: ``name``, ``version``, ``build``, ``depends``, ``sha256``, ``url``, …"""

# What the manager's processor can do says nothing about the workers'; every machine of the platform can do this.
_BASELINE = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}

# A thread of py-rattler's may hold on to our event loop for a moment longer; a program that ends just then crashes
# (0.28: 2 of 100 failed downloads; 0 of 100 when it waits this long, in seconds).
atexit.register(time.sleep, 0.02)


class Conda:
    """conda packages with one cache and the user's own configuration (mirrors, proxies, certificates, credentials).

    ``cache`` is the directory for packages and channel indexes (``$RATTLER_CACHE_DIR`` wins over it, so that all tools
    on py-rattler can share one).  ``offline`` uses only what is there.  Raises ``BuildError`` when the user's
    configuration files are broken.
    """

    def __init__(self, *, cache: Path, offline: bool = False) -> None:
        self.cache = Path(os.environ.get("RATTLER_CACHE_DIR") or cache)
        self.offline = offline
        self._packages = self.cache / "pkgs"
        self._indexes = self.cache / "repodata"

    def solve(
        self,
        specs: Sequence[str],
        *,
        channels: Sequence[str],
        pinned: Sequence[str] = (),
        platform: str,
        glibc: str | None,
    ) -> list[dict[str, Any]]:
        """The packages that satisfy the MatchSpecs ``specs``, sorted by name.

        ``channels`` are in order of priority, strictly: a package comes from the first channel that has any of its
        name, unless the spec names a channel.  ``pinned`` restrict versions without asking for the package.
        ``glibc`` is the oldest C library that the packages may ask for (default: this machine's).

        Raises ``SolveError`` with the solver's reasons, ``FetchError`` when a channel cannot be read.
        """
        virtual = _virtual_packages(platform, glibc)
        wanted = [rattler.MatchSpec(text, strict=False) for text in specs]
        limits = [*wanted, *(rattler.MatchSpec(text, strict=False) for text in pinned)]
        sources = [rattler.Channel(name) for name in channels]
        gateway = self._gateway()
        asked = Question(
            specs=tuple(specs), channels=tuple(channels), platform=platform, virtual=tuple(map(str, virtual))
        )

        async def solve(asking: Sequence[rattler.MatchSpec | str]) -> list[dict[str, Any]]:
            # The index is asked by name alone and the versions are constraints: given the whole spec, py-rattler drops
            # what does not fit before it looks at priorities, and a lower channel steps in unnoticed.
            records = await rattler.solve(
                sources,
                asking,
                gateway=gateway,
                platforms=[rattler.Subdir(platform), rattler.Subdir("noarch")],
                virtual_packages=virtual,
                constraints=limits,
                channel_relations="disabled",
            )
            return [json.loads(record.to_json()) for record in records]

        async def names() -> dict[str, dict[str, set[str]]]:
            return await _what_there_is(gateway, sources, channels, wanted, platform)

        problem: PonchoError
        try:
            found = _run(lambda: solve([_by_name(spec) for spec in wanted]))
            return sorted(found, key=lambda record: str(record["name"]))
        except exceptions.SolverError as error:
            problem = explain_solve(str(error), asked, _or_nothing(lambda: _run(names)))
        except exceptions.GatewayError as error:
            problem = explain_fetch(str(error), asked.channels, offline=self.offline)
        # Out here: py-rattler's exceptions cannot be pickled, and a context of one would keep ours from it.
        raise problem

    def uncached(self, records: Sequence[Record]) -> list[Record]:
        """Those of ``records`` that are not in the package cache."""

        async def look() -> list[Record]:
            have = await rattler.PackageCache(self._packages).index()
            loaded = zip(records, _load(records), strict=True)
            return [record for record, parsed in loaded if not have.contains_record(parsed)]

        return _run(look) if self._packages.is_dir() else list(records)

    def install(
        self,
        records: Sequence[Record],
        prefix: Path,
        *,
        placeholder: str,
        platform: str,
        on_progress: OnProgress,
    ) -> None:
        """Download and link ``records`` into the new directory ``prefix``.

        Files that name their prefix say ``placeholder`` there, so that they are the same wherever they are linked.
        What is downloaded is compared with the record's sha256.  No script of a package is run.

        Raises ``FetchError`` when a package cannot be had, ``BuildError`` when it cannot be linked.
        """
        if self.offline or any(map(_local, records)):
            new = self.uncached(records)
            elsewhere = [record for record in new if _local(record) is None]
            if self.offline and elsewhere:
                raise _not_here(elsewhere)
            _check_local(new)
        reporter = _Reporter(on_progress, len(records))  # type: ignore[abstract] # they do nothing, as intended

        async def install() -> None:
            await rattler.install(
                _load(records),  # type: ignore[arg-type] # a list of a subclass
                prefix,
                cache_dir=self._packages,
                installed_packages=[],
                platform=rattler.Subdir(platform),
                execute_link_scripts=False,
                client=self._client,
                reporter=reporter,
                alternative_target_prefix=placeholder,
            )

        self._packages.mkdir(parents=True, exist_ok=True)
        try:
            _run(install)
        except (exceptions.InstallerError, exceptions.LinkError, OSError) as error:
            text = str(error)
            if "failed to fetch" in text or "error sending request" in text:
                raise explain_fetch(
                    text, [redact(str(each["url"])) for each in records[:1]], offline=self.offline
                ) from None
            raise BuildError(f"could not link the conda packages: {redact(text.strip())}", log=text) from None

    @cached_property
    def _client(self) -> rattler.Client:
        # Made once: it loads the system's certificates, 7 ms.
        return rattler.Client.from_config(_configuration())

    def _gateway(self) -> rattler.Gateway:
        if self.offline:
            only = rattler.SourceConfig(cache_action="force-cache-only")
            return rattler.Gateway(cache_dir=self._indexes, default_config=only, client=self._client)
        return rattler.Gateway.from_config(_configuration(), cache_dir=self._indexes, client=self._client)


def _configuration() -> rattler.Config:
    """rattler's files of this user and machine: mirrors, proxies, certificates, where credentials are."""
    try:
        return rattler.Config.load_from_default_locations("poncho_wq")
    except exceptions.ConfigError as error:
        raise BuildError(
            f"rattler's configuration cannot be read: {redact(str(error))}", advice="mend that file"
        ) from None


def base_url(channel: str) -> str:
    """Where the channel of this name or URL is, with a final slash.  Raises ``SpecError``."""
    try:
        return rattler.Channel(channel).base_url
    except exceptions.InvalidChannelError as error:
        raise SpecError(f"{channel}: is not a conda channel: {error}") from None


def served_from(channel: str) -> list[str]:
    """Where rattler looks for this channel: the mirrors of the user's configuration, else the channel's own URL.

    Each with a final slash.  Raises ``SpecError``, and ``BuildError`` when the configuration cannot be read.
    """
    url = base_url(channel)
    for upstream, mirrors in _configuration().mirrors.items():
        rest = url.removeprefix(upstream.rstrip("/") + "/")
        if rest != url and mirrors:
            return [f"{mirror.rstrip('/')}/{rest}" for mirror in mirrors]
    return [url]


def channel_of(spec: str) -> str | None:
    """The channel that a MatchSpec names, as it names it; None when it names none."""
    head, double_colon, _ = spec.partition("::")
    return head if double_colon else None


def name_of(spec: str) -> str | None:
    """The name of the package that a valid MatchSpec asks for; None for a pattern."""
    name = rattler.MatchSpec(spec, strict=False).name
    return getattr(name, "normalized", None) or (str(name) if name is not None and "*" not in str(name) else None)


# Virtual packages: what a machine has that no package provides


def _virtual_packages(platform: str, glibc: str | None) -> list[rattler.GenericVirtualPackage]:
    """Those of this machine, less what workers need not share; ``CONDA_OVERRIDE_*`` decide before anything else."""
    overrides = rattler.VirtualPackageOverrides.from_env()
    if glibc is not None and not os.environ.get("CONDA_OVERRIDE_GLIBC"):
        overrides.libc = rattler.Override.string(glibc)
    try:
        found = [each.into_generic() for each in rattler.VirtualPackage.detect(overrides)]
    except (exceptions.DetectVirtualPackageError, exceptions.VirtualPackageOverrideError) as error:
        raise SpecError(f"the virtual packages of this machine cannot be told: {error}") from None
    if os.environ.get("CONDA_OVERRIDE_ARCHSPEC"):
        return found
    kept = [each for each in found if each.name.normalized != "__archspec"]
    baseline = rattler.GenericVirtualPackage(
        rattler.PackageName("__archspec"), rattler.Version("1"), BuildString(_BASELINE[platform])
    )
    return [*kept, baseline]


# Records


def _load(records: Sequence[Record]) -> list[rattler.PrefixRecord]:
    """py-rattler's own objects.  It reads them from files only, and every field of ours survives that way."""
    loaded = []
    with tempfile.TemporaryDirectory(prefix="poncho-conda-") as directory:
        path = Path(directory, "record.json")
        for record in records:
            document = {"files": [], "paths_data": {"paths": [], "paths_version": 1}, **record}
            path.write_text(json.dumps(document), encoding="utf-8")
            loaded.append(rattler.PrefixRecord.from_path(path))
    return loaded


def _local(record: Record) -> Path | None:
    """The package's file, when its channel is a directory of this machine."""
    parts = urlsplit(str(record["url"]))
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _check_local(records: Sequence[Record]) -> None:
    """Compare packages on disk with their sha256; py-rattler does that for downloads only."""
    here = [(record, path) for record in records if (path := _local(record)) is not None and path.is_file()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (record, path), actual in zip(here, pool.map(lambda pair: sha256_of(pair[1]), here), strict=True):
            if actual != record.get("sha256", actual):
                raise BuildError(
                    f"{path}: is not the package that was locked: its sha256 is {actual}, expected {record['sha256']}",
                    advice="the channel changed a file that it had published; lock the environment again",
                )


def _not_here(absent: Sequence[Record]) -> FetchError:
    names = [str(record["fn"]) for record in absent]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return FetchError(
        f"not in the cache, and the network may not be used: {shown}",
        url=str(absent[0]["url"]),
        advice="build once without --offline; the packages stay in the cache",
    )


# What there is, for messages


def _by_name(spec: rattler.MatchSpec) -> rattler.MatchSpec | str:
    """The spec without version and build; with the channel that it names."""
    if spec.name is None:
        return spec
    text = str(getattr(spec.name, "normalized", spec.name))
    if "*" in text:
        return spec
    channel = spec.channel
    return rattler.MatchSpec(f"{channel.base_url.rstrip('/')}::{text}" if channel else text, strict=False)


async def _what_there_is(
    gateway: rattler.Gateway,
    sources: Sequence[rattler.Channel],
    channels: Sequence[str],
    wanted: Sequence[rattler.MatchSpec],
    platform: str,
) -> dict[str, dict[str, set[str]]]:
    """Package → channel → its versions there, for the packages that were asked for."""
    names = {getattr(spec.name, "normalized", None) for spec in wanted} - {None}
    found: dict[str, dict[str, set[str]]] = {str(name): {} for name in names}
    for source, channel in zip(sources, channels, strict=True):
        result = await gateway.query(
            [source], [rattler.Subdir(platform), rattler.Subdir("noarch")], sorted(found), recursive=False,
            channel_relations="disabled",
        )  # fmt: skip
        for record in (record for records in result for record in records):
            found[record.name.normalized].setdefault(channel, set()).add(str(record.version))
    return found


def _or_nothing(ask: Callable[[], dict[str, dict[str, set[str]]]]) -> dict[str, dict[str, set[str]]]:
    """For a message only: where it cannot be told, the message is shorter."""
    try:
        return ask()
    except Exception:
        return {}


class _Reporter(rattler.InstallerReporter):
    """py-rattler's progress as ours: bytes while it downloads, finished packages.  It is called from other threads."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._say, self._total, self._done = on_progress, total, 0
        self._names: dict[int, str] = {}
        # Of each download: its package, what has come, and what will.
        self._fetched: dict[int, tuple[str, int, int]] = {}
        self._told = 0.0

    def on_populate_cache_start(self, operation: int, package_name: str) -> int:
        self._names[operation] = package_name
        return operation

    def on_download_start(self, cache_entry: int) -> int:
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, total: int | None) -> None:
        self._fetched[download_idx] = (self._names.get(download_idx, ""), progress, total or progress)
        # It is called for every piece of a few kilobytes.
        if time.monotonic() - self._told > 0.1:
            self._tell()

    def on_download_completed(self, download_idx: int) -> None:
        name, _, total = self._fetched.get(download_idx, ("", 0, 0))
        self._fetched[download_idx] = (name, total, total)
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        found = list(self._fetched.values())
        waiting = sorted(name for name, done, total in found if done < total)
        done, total = sum(each[1] for each in found), sum(each[2] for each in found)
        self._say(Progress(stage="download", detail=", ".join(waiting), done=done, total=total, unit="bytes"))

    def on_link_start(self, operation: int, package_name: str) -> int:
        self._names[operation] = package_name
        return operation

    def on_link_complete(self, index: int) -> None:
        self._done += 1
        name = self._names.get(index, "")
        self._say(Progress(stage="install", detail=name, done=self._done, total=self._total, unit="packages"))


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(make())).result()
