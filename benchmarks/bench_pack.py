"""Packing a prefix against ``conda-pack`` on the same files, with the same number of threads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Row, Unavailable, paired, seconds
from poncho_wq.build import FileGroup, Prefix, builder_for
from poncho_wq.lock import Lock
from poncho_wq.pack import pack
from poncho_wq.packing.layers import LayerStore
from poncho_wq.progress import silent
from poncho_wq.spec import EnvSpec

PACKAGES = ("numpy", "scipy", "pandas")


def as_conda(prefix: Prefix, packages: Path) -> Prefix:
    """Make ``prefix`` what conda would have made of it.

    The modules are compiled beforehand, as they are in conda's packages; each package has its record in ``conda-meta``
    and its files in a package cache, ``packages``, hard-linked to the prefix.
    """
    version = ".".join(str(prefix.python).split(".")[:2])
    command = [prefix.path / "bin" / f"python{version}", "-m", "compileall", "-q", "-j0", f"lib/python{version}"]
    subprocess.run(command, cwd=prefix.path, check=False, stdout=subprocess.DEVNULL)
    (prefix.path / "conda-meta").mkdir()
    # conda-pack takes the time of its own entries from this file.
    (prefix.path / "conda-meta/history").write_text("")
    groups = [FileGroup(name="conda-meta", version=None, kind="other", files=("conda-meta/history",))]
    for number, group in enumerate(prefix.groups):
        files = (*group.files, *_compiled(prefix.path, group))
        source = packages / f"{number}"
        for name in files:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                os.link(prefix.path / name, source / name, follow_symlinks=False)
        (source / "info").mkdir(exist_ok=True)
        (source / "info/files").write_text("".join(f"{name}\n" for name in files if not name.endswith("/")))
        record = f"conda-meta/{group.name}-{number}.json"
        facts: dict[str, object] = {"name": group.name, "version": group.version or "0", "url": "", "files": files}
        facts["link"] = {"source": str(source)}
        (prefix.path / record).write_text(json.dumps(facts))
        groups.append(replace(group, files=tuple(sorted((*files, record)))))
    return replace(prefix, groups=tuple(groups))


def _compiled(root: Path, group: FileGroup) -> list[str]:
    found = []
    for name in group.files:
        folder, _, module = name.rpartition("/")
        if module.endswith(".py"):
            caches = (root / folder / "__pycache__").glob(f"{module[:-3]}.*.pyc")
            found += [f"{folder}/__pycache__/{cache.name}" for cache in caches]
    return [name for name in found if name not in group.files]


def rows() -> Iterator[Row]:
    """From nothing, with every layer known, and the size; times in seconds, sizes in megabytes."""
    try:
        import conda_pack
    except ImportError:
        raise Unavailable("conda-pack is not installed in this Python (pip install conda-pack)") from None
    spec = EnvSpec.from_dict({"pip": list(PACKAGES)})
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="poncho-bench-") as directory:
        work = Path(directory)
        builder = builder_for(spec, cache_root=work / "cache")
        lock = builder.lock(spec, silent)
        prefix = as_conda(builder.build(spec, lock, work / "prefix", silent), work / "packages")
        known = LayerStore(work / "known")

        # conda's packages come compiled; those of a Python index are compiled when they are packed.
        conda = replace(prefix, groups=tuple(replace(group, kind="conda") for group in prefix.groups))

        def ours(store: LayerStore, prefix: Prefix) -> float:
            return seconds(lambda: _pack(prefix, spec, lock, store, work / "ours.tar.gz", threads))

        def from_nothing(prefix: Prefix) -> float:
            shutil.rmtree(work / "store", ignore_errors=True)
            return ours(LayerStore(work / "store"), prefix)

        def peer() -> float:
            output = str(work / "peer.tar.gz")
            return seconds(
                lambda: conda_pack.pack(prefix=str(prefix.path), output=output, force=True, n_threads=threads)
            )

        size = sum((prefix.path / name).lstat().st_size for group in prefix.groups for name in group.files) / 1e6
        note = f"{size:.0f} MB, {sum(len(group.files) for group in prefix.groups)} files, {threads} threads"

        def megabytes(name: str) -> float:
            return (work / name).stat().st_size / 1e6

        yield paired(
            "pack, nothing known, conda packages", lambda: from_nothing(conda), peer,
            pairs=3, unit="s", peer_name="conda-pack", target="<= 0.5", note=note,
        )  # fmt: skip
        yield paired(
            "tarball, conda packages", lambda: megabytes("ours.tar.gz"), lambda: megabytes("peer.tar.gz"),
            pairs=1, unit="MB", peer_name="conda-pack", target="<= 1.15",
        )  # fmt: skip
        yield paired(
            "pack, nothing known, compiling", lambda: from_nothing(prefix), peer,
            pairs=3, unit="s", peer_name="conda-pack",
        )  # fmt: skip
        yield paired(
            "pack, every layer known", lambda: ours(known, prefix), peer,
            pairs=3, unit="s", peer_name="conda-pack", target="<= 0.33",
        )  # fmt: skip


def _pack(prefix: Prefix, spec: EnvSpec, lock: Lock, store: LayerStore, output: Path, threads: int) -> None:
    pack(prefix, spec=spec, lock=lock, store=store, output=output, threads=threads)
