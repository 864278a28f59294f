"""A built prefix → a tarball of layers, the same bytes for the same files wherever they are packed.

``pack`` is the story: scan what the builder says the prefix holds, plan the layers, hash the files, make the layers
that the store does not have, and put manifest, layers and end of archive in a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq.digests import in_batches, sha256_of
from poncho_wq.errors import PackError
from poncho_wq.manifest import LayerRef, Manifest
from poncho_wq.packing.bytecode import Compiler, chunks, compiler_for
from poncho_wq.packing.compression import Compression
from poncho_wq.packing.known import Absent, NotAsKnown, check
from poncho_wq.packing.layers import Entry, Layer, LayerStore, OnDisk, recipe
from poncho_wq.packing.parts import arrange
from poncho_wq.packing.planning import Plan, by_path, plan_layers, scan
from poncho_wq.packing.shipped_bytecode import adopt
from poncho_wq.packing.tarball import write_tarball
from poncho_wq.platforms import host_platform
from poncho_wq.progress import OnProgress, Progress, silent
from poncho_wq.wrapper import wrapper_path

if TYPE_CHECKING:
    from poncho_wq.build import Prefix
    from poncho_wq.lock import Lock
    from poncho_wq.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A finished tarball: the file ``path`` of ``size`` bytes, and what its manifest says of it."""

    path: Path
    identity: str
    size: int
    python: str | None
    glibc: str | None
    platform: str
    layers: tuple[LayerRef, ...]
    compression: Compression = "gzip"

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> Packed:
        """The file at ``path``, whose manifest this is."""
        return cls(
            path=path,
            identity=manifest.identity,
            size=manifest.size,
            python=manifest.python,
            glibc=manifest.glibc,
            platform=manifest.platform,
            layers=manifest.layers,
            compression=manifest.compression,
        )


def pack(
    prefix: Prefix,
    *,
    spec: EnvSpec,
    lock: Lock,
    store: LayerStore,
    output: Path,
    on_progress: OnProgress = silent,
    threads: int | None = None,
    runtime: Mapping[str, tuple[int, bytes]] | None = None,
    on_read: Callable[[Mapping[str, Entry]], None] | None = None,
) -> Packed:
    """Pack ``prefix`` into the file ``output``, which appears complete or not at all and replaces what was there.

    ``spec`` and ``lock`` go into the tarball.  Layers are taken from ``store`` and kept there; the tarball has their
    form (``store.compression``), which changes neither what is in it nor its identity.  ``threads`` is how many things
    are done at once (default: the cores of this process); the bytes do not depend on it.  ``runtime`` are the files
    that every environment gets, path → (mode, content); default: those of this release.  ``on_read`` is called when the
    prefix is not needed any more, before the tarball is written, with its files by path.

    Raises ``PackError`` when a file of the prefix cannot be packed or the tarball not be written, ``CacheError`` when
    the store cannot be used, ``NotAsKnown`` when the prefix is not there in full and should be.
    """
    ours = runtime_files(spec, lock, prefix.certificates) if runtime is None else runtime
    found = scan(prefix, hidden=frozenset(ours))
    plans = plan_layers(found)
    own = Plan(name="runtime", entries=tuple(sorted((_runtime_entry(*item) for item in ours.items()), key=by_path)))
    cores = threads or len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(cores, thread_name_prefix="poncho-pack")
    try:
        # What is edited on the worker must not have been compiled before: the .pyc would go on saying the old.
        edited = frozenset(entry.path for entry in prefix.relocations)
        plans = _hashed(plans, pool)
        entries = {entry.path: entry for plan in plans for entry in plan.entries}
        check(prefix.groups, entries)
        hashed, compiled = adopt(plans, prefix.python, edited)
        plans = [*hashed, own]
        compiler = _compiler(prefix, plans, edited | compiled)
        layers = _layers(plans, compiler, store, pool, on_progress)
    finally:
        # Without this, an error or a Ctrl-C would wait for everything that was ever planned.
        pool.shutdown(cancel_futures=True)
    if on_read is not None:
        on_read(entries)
    groups = arrange([(plan.name, layer.unpacked) for plan, layer in zip(plans, layers, strict=True)])
    if groups is not None:  # as it is sent in parts; else as planned
        order = [number for group in groups for number in group]
        plans, layers = [plans[number] for number in order], [layers[number] for number in order]
    manifest = _manifest(prefix, plans, layers, store.compression)
    write_tarball(output, manifest, [layer.path for layer in layers])
    return Packed.of(output, manifest)


def runtime_files(spec: EnvSpec, lock: Lock, certificates: Sequence[str] = ()) -> dict[str, tuple[int, bytes]]:
    """The files that every environment of ours gets besides its packages: path → (mode, content).

    They replace files of the same name, such as a virtual environment's ``bin/activate``.
    """
    given = resources.files("poncho_wq.prefix_files")
    # Conda packages have the path of their prefix in some files; host builds have it nowhere.
    unpack = "conda-unpack-relocating" if lock.conda else "conda-unpack"
    return {
        "bin/activate": (0o644, given.joinpath("activate").read_bytes()),
        "bin/conda-unpack": (0o755, given.joinpath(unpack).read_bytes()),
        "bin/poncho_package_run": (0o755, wrapper_path().read_bytes()),
        "bin/run_in_env": (0o755, given.joinpath("run_in_env").read_bytes()),
        "poncho/lock.json": (0o644, _text(lock.to_json())),
        "poncho/set_env": (0o644, _text(_set_env(spec, certificates))),
        "poncho/spec.json": (0o644, _text(_public(spec))),
    }


# A file's URL up to its last name, which may have a slash after it.
_DIRECTORIES = re.compile(r"file:/[^\s;#?]*/(?=[^/\s;#?]+)")


def _public(spec: EnvSpec) -> str:
    """The specification as it is in the tarball: one text for all that are equal, which does not name this machine's
    directories: of a wheel's, a repository's or a channel's place the last name stays.  (Credentials it has none.)

    It is a specification, but one that can be built only where those files are; the lock has their digests.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [cleaned(each) for each in value]
        if value.startswith("/"):
            return "/" + value.rstrip("/").rpartition("/")[2]
        return _DIRECTORIES.sub("file:///", value)

    document = json.loads(spec.canonical_json())
    # What the user has set for commands is theirs to choose, and is set on the worker as it is.
    return json.dumps(
        {section: value if section == "env" else cleaned(value) for section, value in document.items()},
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip


def _set_env(spec: EnvSpec, certificates: Sequence[str] = ()) -> str:
    """A POSIX sh file that sets the specification's variables, given the prefix as ``$1``.

    An OpenSSL from one distribution finds no certificates on another's machine: where none of ``certificates`` is there
    and nobody has said where they are, it is told.  The specification's own variables come later, and win.
    """
    lines = ["# Sourced with the prefix as $1."]
    if certificates:
        lines.append(_USUAL_CERTIFICATES % " ".join(f"[ ! -e {_quoted(path)} ] &&" for path in certificates))
    lines += [f"export {name}={_quoted(value)}" for name, value in spec.env]
    lines += [f'export {name}="$1/poncho/data/{name}"' for name in sorted(name for name, _ in (*spec.git, *spec.http))]
    return "\n".join(lines)


# Debian, Ubuntu, Arch; Fedora, RHEL; openSUSE; Alpine: the bundles that the systems' own packages keep.
_USUAL_CERTIFICATES = """\
if %s [ -z "${SSL_CERT_FILE-}${SSL_CERT_DIR-}" ]; then
	for _poncho_bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt \\
		/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
		if [ -f "$_poncho_bundle" ]; then
			export SSL_CERT_FILE="$_poncho_bundle"
			break
		fi
	done
	unset _poncho_bundle
fi"""


def _quoted(value: str) -> str:
    """``value`` as one word of sh: within single quotes nothing but the quote itself means anything."""
    return "'" + value.replace("'", "'\\''") + "'"


def _text(text: str) -> bytes:
    return (text.rstrip("\n") + "\n").encode("utf-8", "surrogateescape")


def _runtime_entry(path: str, file: tuple[int, bytes]) -> Entry:
    mode, content = file
    return Entry(path=path, kind="file", mode=mode, content=content, digest=hashlib.sha256(content).hexdigest())


# Hashing


def _hashed(plans: Sequence[Plan], pool: Executor) -> list[Plan]:
    """The plans with the sha256 of every file."""
    files = [entry for plan in plans for entry in plan.entries if isinstance(entry.content, OnDisk)]
    digests = dict(zip((entry.path for entry in files), in_batches(_sha256, files, pool), strict=True))
    return [
        replace(plan, entries=tuple(_with(entry, digests.get(entry.path)) for entry in plan.entries)) for plan in plans
    ]


def _with(entry: Entry, digest: str | None) -> Entry:
    if digest is None:
        return entry
    # `replace` would take three times as long, and there are ten thousand.
    return Entry(
        path=entry.path, kind=entry.kind, mode=entry.mode, target=entry.target, digest=digest, content=entry.content
    )


def _sha256(entry: Entry) -> str:
    assert isinstance(entry.content, OnDisk)
    try:
        return sha256_of(entry.content.path)
    except OSError as error:
        raise PackError(f"{entry.path}: cannot be read: {error.strerror or error}") from error


# Layers


def _compiler(prefix: Prefix, plans: Iterable[Plan], left_out: frozenset[str]) -> Compiler | None:
    """What makes the ``.pyc`` files; None without Python, and for a platform whose interpreter does not run here."""
    if prefix.python is None or prefix.platform != host_platform():
        return None
    digests = {entry.path: entry.digest for plan in plans for entry in plan.entries if entry.kind == "file"}
    return compiler_for(prefix.path, prefix.python, digests, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A planned layer with its recipe and the sources (path and size) to compile for it."""

    plan: Plan
    recipe: str
    sources: tuple[tuple[str, int], ...]


def _job(plan: Plan, compiler: Compiler | None) -> _Job:
    sources: tuple[tuple[str, int], ...] = ()
    identity = ""
    if compiler is not None:
        names = (entry for entry in plan.entries if entry.kind != "directory" and compiler.covers(entry.path))
        sources = tuple((entry.path, entry.size) for entry in names)
        if sources:
            left_out = sorted(entry.path for entry in plan.entries if entry.path in compiler.left_out)
            identity = "\0".join([compiler.identity, *left_out])
    key = recipe(plan.entries, identity)
    return _Job(plan=plan, recipe=key, sources=sources)


def _layers(
    plans: Sequence[Plan], compiler: Compiler | None, store: LayerStore, pool: Executor, on_progress: OnProgress
) -> list[Layer]:
    """The layer of each plan, from the store where it has it."""
    jobs = [_job(plan, compiler) for plan in plans]
    layers = {job.recipe: layer for job in jobs if (layer := store.find(job.recipe)) is not None}
    missing = [job for job in jobs if job.recipe not in layers]
    # What is there in another form need not be compiled again.
    others = {job.recipe: other for job in missing if (other := store.find_other(job.recipe)) is not None}
    for job in missing:
        if job.recipe not in others and any(isinstance(entry.content, Absent) for entry in job.plan.entries):
            raise NotAsKnown(f"{job.plan.name}: is not in the cache any more")
    total = sum(plan.size for plan in plans)
    done = total - sum(job.plan.size for job in missing)

    def say(detail: str) -> None:
        on_progress(Progress(stage="pack", detail=detail, done=done, total=total, unit="bytes"))

    say(f"{len(missing)} of {len(plans)} layers to make")
    if missing:
        with store.work_directory() as work:
            # All compiling is handed out before any compressing: it takes far longer.
            compiling = [[] if job.recipe in others else _compile(job, compiler, work, pool) for job in missing]
            making: list[Future[Layer]] = []
            for job, futures in zip(missing, compiling, strict=True):
                if job.recipe in others:
                    making.append(pool.submit(store.convert, job.recipe, *others[job.recipe], work))
                    continue
                entries = _with_bytecode(job.plan.entries, futures)
                making.append(pool.submit(store.make, job.recipe, entries, work))
            for job, future in zip(missing, making, strict=True):
                layers[job.recipe] = future.result()
                done += job.plan.size
                say(job.plan.name)
    return [layers[job.recipe] for job in jobs]


_Compiling = list["Future[Mapping[str, Entry]]"]


def _compile(job: _Job, compiler: Compiler | None, work: Path, pool: Executor) -> _Compiling:
    if compiler is None:
        return []
    return [
        pool.submit(_pyc_entries, compiler, chunk, work / f"{job.recipe}.{number}")
        for number, chunk in enumerate(chunks(job.sources))
    ]


def _pyc_entries(compiler: Compiler, chunk: Sequence[str], blob: Path) -> Mapping[str, Entry]:
    made = compiler.compile(chunk, blob)
    return {path: Entry(path=path, kind="file", mode=0o644, content=content) for path, content in made.items()}


def _with_bytecode(entries: Sequence[Entry], compiling: _Compiling) -> list[Entry]:
    everything = list(entries)
    for future in compiling:
        everything += future.result().values()
    return sorted(everything, key=by_path)


# The tarball


def _manifest(prefix: Prefix, plans: Sequence[Plan], layers: Sequence[Layer], compression: Compression) -> Manifest:
    references = []
    offset = 0
    for plan, layer in zip(plans, layers, strict=True):
        references.append(
            LayerRef(offset=offset, length=layer.length, unpacked=layer.unpacked, digest=layer.digest, name=plan.name)
        )
        offset += layer.length
    try:
        return Manifest(
            platform=prefix.platform,
            python=prefix.python,
            glibc=prefix.glibc,
            unpacked=sum(layer.content for layer in layers),
            files=sum(layer.files for layer in layers),
            layers=tuple(references),
            placeholder=prefix.placeholder if prefix.relocations else None,
            relocations=prefix.relocations,
            compression=compression,
        )
    except ValueError as error:
        raise PackError(f"{prefix.path}: {error}") from error
