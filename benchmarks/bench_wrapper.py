"""The run wrapper, warm and cold, against Debian's ``python_package_run`` on the same tarball."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row, paired, seconds
from benchmarks.peers import numpy_environment, program
from poncho_wq import Environment, environment
from poncho_wq.packing.compression import Compression
from poncho_wq.wrapper import wrapper_path

WARM_RUNS = 50


def _run(argv: list[str], cwd: Path, **more: str) -> None:
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(cwd),
        "CORES": str(os.cpu_count() or 1),
        "PONCHO_NODE_CACHE": str(cwd / "node"),
        **more,
    }
    subprocess.run(
        argv,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def rows() -> Iterator[Row]:
    """Warm and cold runs; times in milliseconds, the cost of the bare command taken away from the warm ones."""
    upstream = program("python_package_run")
    env = numpy_environment()
    with tempfile.TemporaryDirectory(prefix="poncho-bench-") as directory:
        cwd = Path(directory)
        ours_dir, peer_dir, id_dir = cwd / "ours", cwd / "peer", cwd / "with-id"
        ours = ["/bin/sh", str(wrapper_path()), "-e", str(env.tarball), "--unpack-to", str(ours_dir), "--", "/bin/true"]
        with_id = [
            "/bin/sh", str(wrapper_path()), "-e", str(env.tarball), "--id", str(env.identity),
            "--unpack-to", str(id_dir), "--", "/bin/true",
        ]  # fmt: skip
        peer = [upstream, "-e", str(env.tarball), "--unpack-to", str(peer_dir), "/bin/true"]
        for argv in (ours, with_id, peer):
            _run(argv, cwd)

        def each(argv: list[str], count: int = WARM_RUNS) -> float:
            return 1000 * seconds(lambda: [_run(argv, cwd) for _ in range(count)]) / count

        def over_bare(argv: list[str]) -> float:
            return max(each(argv) - each(["/bin/true"]), 0.001)

        yield paired(
            "wrapper, warm, over the bare command", lambda: over_bare(with_id), lambda: over_bare(peer),
            pairs=5, unit="ms", peer_name="python_package_run", target="<= 0.083",
        )  # fmt: skip
        yield paired(
            "wrapper, warm, no --id", lambda: over_bare(ours), lambda: over_bare(peer),
            pairs=5, unit="ms", peer_name="python_package_run", target="<= 0.083",
        )  # fmt: skip

        def cold(argv: list[str], directory: Path) -> float:
            shutil.rmtree(directory, ignore_errors=True)
            return seconds(lambda: _run(argv, cwd))

        yield paired(
            "wrapper, cold", lambda: cold(ours, ours_dir), lambda: cold(peer, peer_dir),
            pairs=5, unit="s", peer_name="python_package_run", target="<= 0.7",
        )  # fmt: skip
        yield paired(
            "wrapper, 64 cold runs at once", lambda: _at_once(ours, ours_dir, cwd, 64),
            lambda: _at_once(peer, peer_dir, cwd, 64), pairs=3, unit="s", peer_name="python_package_run",
            target="<= 0.7",
        )  # fmt: skip

        path = _without_fast_decompressors(cwd / "programs")

        def on_one_core(argv: list[str], directory: Path) -> float:
            shutil.rmtree(directory, ignore_errors=True)
            return seconds(lambda: _run(argv, cwd, CORES="1", PATH=path))

        by_hand = ["sh", "-c", 'mkdir "$1" && tar -xzf "$2" -C "$1"', "sh", str(peer_dir), str(env.tarball)]
        yield paired(
            "wrapper, cold, on one core with gzip", lambda: on_one_core(ours, ours_dir),
            lambda: on_one_core(by_hand, peer_dir), pairs=5, unit="s", peer_name="tar -xzf", target="<= 1.05",
        )  # fmt: skip
        for name, words in _other_forms(env, ours_dir):
            yield paired(
                f"wrapper, cold, {name}", lambda words=words: cold(words, ours_dir),  # type: ignore[misc]
                lambda: cold(ours, ours_dir), pairs=5, unit="s", peer_name="gzip", target="< 1",
            )  # fmt: skip

        node = [
            "/bin/sh", str(wrapper_path()), "-e", str(env.tarball), "--id", str(env.identity), "--node-cache",
            "/bin/true",
        ]  # fmt: skip
        _run(node, cwd)
        yield paired(
            "wrapper, warm, in the node's cache", lambda: over_bare(node), lambda: over_bare(with_id),
            pairs=5, unit="ms", peer_name="in a directory", target="<= 1.3",
        )  # fmt: skip


def _without_fast_decompressors(directory: Path) -> str:
    """A PATH with the programs of /usr/bin, but for those that decompress faster than gzip."""
    directory.mkdir()
    for there in (*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()):
        link = directory / there.name
        if there.name not in ("igzip", "pigz", "unpigz") and not link.is_symlink():
            link.symlink_to(there)
    return str(directory)


def _other_forms(env: Environment, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """The command for the same environment as zstd frames, where this machine has zstd, and as a bare tar."""
    names: tuple[Compression, ...] = ("zstd", "none") if shutil.which("zstd", path="/usr/bin:/bin") else ("none",)
    for name in names:
        form = environment(env, compression=name)
        yield name, ["/bin/sh", str(wrapper_path()), "-e", str(form), "--unpack-to", str(directory), "/bin/true"]


def _at_once(argv: list[str], directory: Path, cwd: Path, count: int) -> float:
    shutil.rmtree(directory, ignore_errors=True)

    def all_of_them() -> None:
        running = [subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL) for _ in range(count)]
        statuses = [process.wait() for process in running]
        if any(statuses):
            raise RuntimeError(f"cold runs ended with {statuses}")

    return seconds(all_of_them)
