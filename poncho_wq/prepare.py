"""The story: whatever describes an environment goes in, a tarball that runs on any worker comes out.

``environment()`` is the only place that composes analysis, cache, lock, build and pack.  Read it top to bottom.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from poncho_wq.build import Builder, Prefix, builder_for
from poncho_wq.cache import LOCK_NAME, Cache, Entry, default_root
from poncho_wq.errors import BuildError, PackError, SpecError
from poncho_wq.importers import Options, read_source
from poncho_wq.importing.model import Imported
from poncho_wq.lockfile import LockFile
from poncho_wq.manifest import FORMAT_VERSION, read_manifest
from poncho_wq.pack import Packed, pack
from poncho_wq.packing.compression import COMPRESSIONS, Compression, Form, form_of
from poncho_wq.packing.known import NotAsKnown
from poncho_wq.packing.layers import Entry as PackedEntry
from poncho_wq.platforms import host_platform
from poncho_wq.progress import OnProgress, Progress, current
from poncho_wq.scratch import removed_beside
from poncho_wq.spec import EnvSpec, Target

COMPRESSION_VARIABLE = "PONCHO_COMPRESSION"
"""The form of the tarballs that are built where the caller does not say: a site's choice."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A prepared environment: what every engine is handed.

    ``tarball`` is one file that ``poncho_package_run`` runs, ``size`` its bytes.  ``identity`` (64 hexadecimal digits)
    says what is in it: our manifest's, or the sha256 of a tarball that another tool made.  ``spec_hash`` is the key it
    was built under, None for a tarball that was handed in.  ``python`` is the interpreter's full version (``"3.11.7"``)
    and ``glibc`` the oldest C library it runs with (``"2.34"``), None where not known or not needed.  ``cached`` says
    that nothing was built for it; it makes no difference to equality.
    """

    spec_hash: str | None
    tarball: Path
    identity: str
    size: int
    python: str | None
    platform: str | None
    glibc: str | None
    spec: EnvSpec | None
    cached: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return str(self.tarball)


EnvironmentLike = Environment | EnvSpec | Mapping[str, Any] | str | os.PathLike[str]


def environment(
    E: EnvironmentLike,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    refresh: bool = False,
    retry: bool = False,
    packages: Sequence[str] = (),
    locked: LockFile | None = None,
    require_locked: bool = False,
    offline: bool = False,
    platform: str | None = None,
    options: Options | None = None,
    compression: Compression | None = None,
) -> Environment:
    """Prepare the environment that ``E`` describes, or find it in the cache.

    ``E`` is a path to any input of ``poncho_package_create`` (or to a tarball that exists already), a dictionary in the
    specification format, an ``EnvSpec``, or an ``Environment``, which is returned as it is.  ``cache_dir`` is the cache
    (default: ``$PONCHO_CACHE_DIR``, else the platform's cache directory).  ``refresh`` resolves and builds again even
    when the cache has it.  ``retry`` tries again what failed in the last ten minutes; without it the error of then is
    raised again.  ``packages`` are names of what an engine needs in every environment besides; they change no
    environment that exists already.  Calling it again with an equal ``E`` returns the same path and builds nothing.

    ``locked`` builds exactly what that lock says, which must be one of ``E``; ``require_locked`` refuses anything else.
    ``offline`` uses only what earlier builds have downloaded.  ``platform`` is the workers' (``"linux-64"`` or
    ``"linux-aarch64"``; default: this machine's), for environments that come from conda alone.  ``options`` are for
    what ``E`` leaves open: extras and groups of a project, packages installed from a folder.

    ``compression`` is the form of the tarball: ``"gzip"``, which every worker reads; ``"zstd"``, smaller, and unpacked
    faster where workers have the program zstd; ``"none"``, unpacked faster still, for networks that are faster than a
    decompressor.  None: ``$PONCHO_COMPRESSION``, else gzip; a tarball or ``Environment`` keeps the form that it has.
    The specification's hash and the identity are the same in all, and what the cache has in one form is not built again
    for another.

    Raises ``SpecError`` for a bad description, ``SolveError``, ``FetchError``, ``BuildError`` or ``PackError`` when it
    cannot be had, ``CacheError`` when the cache cannot be used.  Nothing is cached then.
    """
    say = on_progress or current()
    if not isinstance(E, Environment) and (tarball := _as_tarball(E)) is not None:
        E = _adopt(tarball, say)
    if isinstance(E, Environment):
        return E if compression is None else _in_form(E, _form(compression), cache_dir, say)

    form = _form(compression)
    source = read_source(E, options)
    if locked is not None:
        source = replace(source, prefix=None)  # from the packages that the lock names, not from what is installed
    for note in source.notes:
        say(Progress(stage="note", detail=note))
    spec = _with_packages(source.spec, packages)
    root = Path(cache_dir) if cache_dir is not None else default_root()
    builder = builder_for(spec, cache_root=root, platform=platform, offline=offline, source=source)
    target = Target(
        platform=platform or host_platform(), interpreter=builder.interpreter(), format_version=FORMAT_VERSION
    )
    spec_hash = spec.spec_hash(target)
    _check_lock(locked, spec, require_locked)
    key = _key(spec_hash, source) if locked is None else locked.key(spec_hash)

    cache = Cache(root)
    form_key = _form_key(key, form)
    entry = None if refresh else cache.lookup(form_key)
    built: list[Packed] = []
    if entry is None:
        from poncho_wq.caching import admin as cache_admin

        form.require()  # as a mistake in the limit: better known before a build than after
        make = _maker(spec, locked, builder, cache, say, built, form, None if refresh else key)
        most = cache_admin.limit()
        entry = cache.build_once(
            form_key, make, refresh=refresh, retry=retry, circumstances=_circumstances(offline),
            on_wait=lambda: say(Progress(stage="wait", detail=cache.builder_of(form_key))),
        )  # fmt: skip
        cache_admin.tidy(cache, most)
    say(Progress(stage="ready", detail=entry.tarball.name))
    return replace(_from_entry(entry, spec, cached=not built), spec_hash=spec_hash)


def lock_environment(
    E: EnvSpec | Mapping[str, Any] | str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    offline: bool = False,
    platform: str | None = None,
    options: Options | None = None,
) -> LockFile:
    """Resolve ``E`` to exact packages, now, whatever the cache has.  Arguments and errors as for ``environment``."""
    source = replace(read_source(E, options), prefix=None)  # a lock is for building it again, elsewhere
    spec = source.spec
    root = Path(cache_dir) if cache_dir is not None else default_root()
    Cache(root).exists()  # refuses one that others can write to
    builder = builder_for(spec, cache_root=root, platform=platform, offline=offline, source=source)
    return LockFile(spec=spec, lock=builder.lock(spec, on_progress or current()))


def _key(spec_hash: str, source: Imported) -> str:
    """What an environment is cached under: hashes and constraints make it another than the specification alone."""
    digest = source.digest
    return spec_hash if digest is None else hashlib.sha256(f"{spec_hash} {digest}".encode()).hexdigest()


def _form(compression: Compression | None) -> Form:
    """The form that is asked for.  Raises ``SpecError``."""
    name = compression or os.environ.get(COMPRESSION_VARIABLE) or "gzip"
    if name not in COMPRESSIONS:
        source = None if compression else f"${COMPRESSION_VARIABLE}"
        raise SpecError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {name!r}", source=source)
    return form_of(name)


def _form_key(key: str, form: Form) -> str:
    """What the same environment in another form is cached under."""
    return key if form.name == "gzip" else hashlib.sha256(f"{key} {form.name}".encode()).hexdigest()


def _in_form(given: Environment, form: Form, cache_dir: str | os.PathLike[str] | None, say: OnProgress) -> Environment:
    """An environment that exists, in this form: itself, or its layers compressed anew, in the cache."""
    manifest = read_manifest(given.tarball)
    if manifest is not None and manifest.compression == form.name:
        return given
    from poncho_wq.packing.repack import repack

    cache = Cache(Path(cache_dir) if cache_dir is not None else default_root())

    def make(workdir: Path) -> Packed:
        form.require()
        output = workdir / f"env{form.suffix}"
        return repack(given.tarball, store=cache.layers.compressed(form.name), output=output, on_progress=say)

    # By what is in it: whatever it was built from, no specification's key is like this one.
    key = hashlib.sha256(f"tarball {given.identity} {form.name}".encode()).hexdigest()
    entry = cache.lookup(key) or cache.build_once(key, make, on_wait=lambda: say(Progress(stage="wait")))
    say(Progress(stage="ready", detail=entry.tarball.name))
    return replace(given, tarball=entry.tarball, size=entry.size)


def _check_lock(locked: LockFile | None, spec: EnvSpec, required: bool) -> None:
    """Raises ``BuildError`` when ``locked`` is not for ``spec``, or leaves something open that is ``required``."""
    if locked is not None:
        locked.check_for(spec)
        if required:
            locked.check_complete()
    elif required:
        raise BuildError(
            "only a locked environment may be built, and there is no lock",
            advice="make one: poncho-wq env lock SPEC > poncho.lock, and give it with --locked poncho.lock",
        )


def _with_packages(spec: EnvSpec, packages: Sequence[str]) -> EnvSpec:
    """``spec`` with those of ``packages`` that it does not name itself, from conda if it has such a section."""
    if not packages:
        return spec
    conda = spec.conda.packages if spec.conda is not None else ()
    # Both forms begin with the name; a conda channel, then a blank or an operator, may stand around it.
    names = (re.split(r"[^A-Za-z0-9._-]", each.rpartition("::")[2])[0] for each in (*spec.pip, *conda))
    named = {canonicalize_name(name) for name in names}
    missing = [name for name in packages if canonicalize_name(name) not in named]
    if not missing:
        return spec
    if spec.conda is None:
        return replace(spec, pip=(*spec.pip, *missing))
    return replace(spec, conda=replace(spec.conda, packages=(*conda, *missing)))


def _maker(
    spec: EnvSpec, locked: LockFile | None, builder: Builder, cache: Cache, say: OnProgress, built: list[Packed],
    form: Form, key: str | None,
) -> Callable[[Path], Packed]:  # fmt: skip
    """What the cache calls, at most once at a time for a spec hash, with an empty directory to work in.

    ``key`` is what the specification is cached under, in whichever form; None when it is to be built in any case.
    """
    store = cache.layers.compressed(form.name)

    def make(workdir: Path) -> Packed:
        output = workdir / f"env{form.suffix}"
        if key is not None and (other := _other_form(cache, key, form)) is not None:
            # Not resolved again: in all forms it is the same environment.
            from poncho_wq.packing.repack import repack

            if (lock_file := other.tarball.with_name(LOCK_NAME)).exists():
                shutil.copyfile(lock_file, workdir / LOCK_NAME)
            built.append(repack(other.tarball, store=store, output=output, on_progress=say))
            return built[-1]
        lock = builder.lock(spec, say) if locked is None else locked.lock
        # It stays beside the tarball, for whoever wants the same again: `poncho_package_create --locked`.
        LockFile(spec=spec, lock=lock).write(workdir / LOCK_NAME)

        def packed(prefix: Prefix) -> Packed:
            with removed_beside(prefix.path) as remove:

                def read(entries: Mapping[str, PackedEntry]) -> None:
                    remove()
                    if prefix.outcome is not None:
                        prefix.outcome.remember(entries)

                return pack(prefix, spec=spec, lock=lock, store=store, output=output, on_progress=say, on_read=read)

        changed = None if key is None else builder.rebuild(spec, lock, workdir / "changed", say)
        if changed is not None:
            with contextlib.suppress(NotAsKnown):
                built.append(packed(changed))
                return built[-1]
        built.append(packed(builder.build(spec, lock, workdir / "prefix", say)))
        return built[-1]

    return make


def _other_form(cache: Cache, key: str, form: Form) -> Entry | None:
    """What the cache has of the same specification in another form."""
    for other in (form_of(name) for name in COMPRESSIONS if name != form.name):
        with contextlib.suppress(PackError):  # what cannot be read here cannot help
            other.require()
            if (entry := cache.lookup(_form_key(key, other))) is not None:
                return entry
    return None


# What decides, besides the specification, whether packages are found and can be had.
_SETTINGS = re.compile(
    r"(PIP|UV|CONDA|MAMBA|RATTLER|GIT|SSL|CURL|NETRC|REQUESTS|XDG_CONFIG)(_.*)?|HOME|PATH|(https?|all|no|ftp)_proxy",
    re.IGNORECASE,
)


def _circumstances(offline: bool) -> str:
    """A digest of what may make a build fail here and now that is no part of its specification."""
    settings = sorted(item for item in os.environ.items() if _SETTINGS.fullmatch(item[0]))
    return hashlib.sha256(repr((offline, settings)).encode(errors="surrogateescape")).hexdigest()[:16]


def _from_entry(entry: Entry, spec: EnvSpec, *, cached: bool) -> Environment:
    return Environment(
        spec_hash=entry.spec_hash,
        tarball=entry.tarball,
        identity=entry.identity,
        size=entry.size,
        python=entry.python,
        platform=entry.platform,
        glibc=entry.glibc,
        spec=spec,
        cached=cached,
    )


# What a compressed or plain tar file begins with; a plain one has its magic word further on.
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh")
_TAR_MAGIC_AT = 257


def _as_tarball(E: EnvironmentLike) -> Path | None:
    """``E`` as the path of an existing tarball; None when it is anything else."""
    if not isinstance(E, (str, os.PathLike)) or E == "-":
        return None
    path = Path(E)
    if not os.path.isfile(path):  # a name that no file can have is none, and no OSError
        return None
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
    if head.startswith(_COMPRESSED) or head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return path.absolute()
    return None


def _adopt(tarball: Path, say: OnProgress) -> Environment:
    """A tarball that was handed in: ours says what it is, another tool's is known by its bytes."""
    try:
        manifest = read_manifest(tarball)
        facts = tarball.stat()
        identity = manifest.identity if manifest else _digest(tarball, facts.st_size, facts.st_mtime_ns, say)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=str(tarball)) from error
    return Environment(
        spec_hash=None,
        tarball=tarball,
        identity=identity,
        size=facts.st_size,
        python=manifest.python if manifest else None,
        platform=manifest.platform if manifest else None,
        glibc=manifest.glibc if manifest else None,
        spec=None,
    )


_digests: dict[tuple[Path, int, int], str] = {}


def _digest(tarball: Path, size: int, mtime: int, say: OnProgress) -> str:
    """sha256 of a file, read again only when its size or time has changed."""
    found = _digests.get((tarball, size, mtime))
    if found is None:
        done = 0
        with tarball.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(16 << 20):
                digest.update(piece)
                done += len(piece)
                say(Progress(stage="hash", detail=tarball.name, done=done, total=size, unit="bytes"))
        found = _digests[tarball, size, mtime] = digest.hexdigest()
    return found
