"""Conda environments (numpy, scipy, pandas: some 350 MB) against conda-pack, and against py-rattler and uv by hand.

The channel is made on disk from the index's packages and this interpreter, as for the tests.  Both sides find the
packages downloaded and use the same number of threads.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row, Unavailable, paired, seconds
from poncho_wq.build import Prefix, conda_pip
from poncho_wq.build.conda import CondaBuilder
from poncho_wq.build.uv import Uv, find_uv
from poncho_wq.cache import Cache
from poncho_wq.errors import PonchoError
from poncho_wq.lock import Lock
from poncho_wq.pack import pack
from poncho_wq.progress import silent
from poncho_wq.spec import EnvSpec
from tests.conda.channel import MINOR, make_large_channel

PACKAGES = ("numpy", "scipy", "pandas")
FROM_THE_INDEX = "colorama"
THREADS = len(os.sched_getaffinity(0))


class Bench:
    """One directory with the channel, the caches, and fresh prefixes for each measurement."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = make_large_channel(root / "channel", PACKAGES)
        self.builder = CondaBuilder(cache_root=root / "cache")
        self.spec = EnvSpec.from_dict({"conda": {"channels": [self.url], "packages": list(PACKAGES)}})
        self.with_pip = EnvSpec.from_dict({**self.spec.to_dict(), "pip": [FROM_THE_INDEX]})
        self.cache = Cache(root / "cache")
        self._count = 0

    def fresh(self) -> Path:
        self._count += 1
        return self.root / f"prefix-{self._count}"

    def build(self, spec: EnvSpec, lock: Lock | None = None) -> tuple[Prefix, Lock]:
        lock = lock or self.builder.lock(spec, _quiet)
        return self.builder.build(spec, lock, self.fresh(), _quiet), lock

    def pack(self, prefix: Prefix, lock: Lock) -> int:
        output = self.root / "ours.tar.gz"
        packed = pack(prefix, spec=self.spec, lock=lock, store=self.cache.layers, output=output, threads=THREADS)
        return packed.size

    def forget_layers(self) -> None:
        shutil.rmtree(self.cache.layers.root, ignore_errors=True)

    def by_hand(self, *, pip: bool = False) -> Path:
        """Solve and link with py-rattler, install with uv, as its documentation shows."""
        import rattler

        prefix = self.fresh()
        packages = self.root / "cache" / "conda"

        async def solve_and_link() -> None:
            records = await rattler.solve(
                [rattler.Channel(self.url)],
                [*PACKAGES, f"python {MINOR}.*"],
                gateway=rattler.Gateway(cache_dir=packages / "repodata"),
                virtual_packages=rattler.VirtualPackage.detect(),
            )
            await rattler.install(
                records, prefix, cache_dir=packages / "pkgs", installed_packages=[], show_progress=False
            )

        asyncio.run(solve_and_link())
        if pip:
            environ = Uv(cache=self.root / "cache" / "uv")._environment
            argv = [find_uv(), "pip", "install", "-q", "--python", prefix / "bin" / "python", FROM_THE_INDEX]
            subprocess.run(argv, check=True, env=environ)
        return prefix

    def conda_pack(self, prefix: Path) -> int:
        import conda_pack

        output = self.root / "theirs.tar.gz"
        conda_pack.pack(prefix=str(prefix), output=str(output), n_threads=THREADS, force=True)
        return output.stat().st_size


def rows() -> Iterator[Row]:
    """Packing, the way from a specification to a tarball, and the overhead over the parts used by hand."""
    try:
        import conda_pack  # noqa: F401
    except ImportError:
        raise Unavailable("conda-pack is not installed") from None
    with tempfile.TemporaryDirectory(prefix="poncho-bench-conda-") as directory:
        try:
            bench = Bench(Path(directory))
        except PonchoError as error:
            raise Unavailable(f"no packages for the channel: {error}") from error
        yield from _packing(bench)
        yield from _linking(bench)


def _packing(bench: Bench) -> Iterator[Row]:
    prefix, lock = bench.build(bench.spec)
    theirs = bench.by_hand()

    def peer() -> float:
        return seconds(lambda: bench.conda_pack(theirs))

    def from_scratch() -> float:
        bench.forget_layers()
        return seconds(lambda: bench.pack(prefix, lock))

    def whole() -> float:
        def story() -> None:
            built, solved = bench.build(bench.spec)
            bench.pack(built, solved)

        return seconds(story)

    def without_layers() -> float:
        bench.forget_layers()
        return whole()

    measured = {"pairs": 3, "unit": "s", "peer_name": f"conda-pack, {THREADS} threads"}
    yield paired("conda: pack, from scratch", from_scratch, peer, target="<= 0.5", **measured)  # type: ignore[arg-type]
    yield paired("conda: spec to tarball, packages cached", without_layers, peer, target="<= 0.75", **measured)  # type: ignore[arg-type]
    yield paired("conda: spec to tarball, layers cached", whole, peer, target="<= 0.33", **measured)  # type: ignore[arg-type]
    yield paired(
        "conda: size of the tarball",
        lambda: bench.pack(prefix, lock) / 1e6, lambda: bench.conda_pack(theirs) / 1e6,
        pairs=1, unit="MB", peer_name="conda-pack", target="<= 1.15",
    )  # fmt: skip


def _linking(bench: Bench) -> Iterator[Row]:
    def solve_and_link() -> None:
        lock = bench.builder.lock(bench.spec, _quiet)
        bench.builder.link(lock.conda, bench.fresh(), _quiet)

    yield paired(
        "conda: solve and link",
        lambda: seconds(solve_and_link), lambda: seconds(bench.by_hand),
        pairs=7, unit="s", peer_name="py-rattler by hand", target="<= 1.1",
    )  # fmt: skip
    _, lock = bench.build(bench.with_pip)

    def solve_link_and_add() -> None:
        solved, prefix = bench.builder.lock(bench.spec, _quiet), bench.fresh()
        bench.builder.link(solved.conda, prefix, _quiet)
        conda_pip.add(bench.builder._uv(silent), bench.with_pip, lock, prefix)

    def by_hand() -> float:
        return seconds(lambda: bench.by_hand(pip=True))

    yield paired(
        "conda: solve, link, and a pip part by uv",
        lambda: seconds(solve_link_and_add), by_hand,
        pairs=7, unit="s", peer_name="py-rattler and uv by hand", target="<= 1.1",
    )  # fmt: skip
    yield paired(
        "conda: locked, with a pip part, to a prefix",
        lambda: seconds(lambda: bench.build(bench.with_pip, lock)), by_hand,
        pairs=5, unit="s", peer_name="py-rattler and uv by hand", note="ours also makes it portable",
    )  # fmt: skip


def _quiet(_: object) -> None:
    pass
