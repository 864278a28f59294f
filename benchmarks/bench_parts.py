"""An environment as ranges of few files: what one changed pin sends and takes, on real Work Queue with a real worker.

Bytes are those of the inputs in the manager's transaction log, where that names them (Debian's does not), else those
that the manager says it has sent.  The requirements are pinned, so that nothing but the pin in
question changes; the packages are downloaded beforehand, for both sides.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Unavailable, paired
from benchmarks.peers import debian_work_queue, program
from benchmarks.simulate_parts import Pieces
from poncho_wq import Environment, PonchoTask, environment
from poncho_wq.build import builder_for
from poncho_wq.engines import core, shipping
from poncho_wq.engines.workers import LocalWorkers
from poncho_wq.errors import FetchError, SolveError
from poncho_wq.manifest import read_manifest
from poncho_wq.progress import silent
from poncho_wq.spec import EnvSpec
from poncho_wq.wrapper import wrapper_path

PINS = {
    "numpy": "2.2.6", "pandas": "2.2.3", "scipy": "1.15.3", "scikit-learn": "1.6.1", "matplotlib": "3.10.3",
    "seaborn": "0.13.2", "cloudpickle": "3.1.1", "six": "1.17.0", "tzdata": "2025.2", "packaging": "25.0",
    "pyparsing": "3.2.3", "joblib": "1.5.1",
}  # fmt: skip
# Ten changes of one pin after the other, none of which has been seen before.
CHANGES = (
    ("tzdata", "2025.1"), ("packaging", "24.2"), ("six", "1.16.0"), ("pyparsing", "3.2.1"), ("joblib", "1.4.2"),
    ("tzdata", "2024.2"), ("packaging", "24.1"), ("pyparsing", "3.1.4"), ("cloudpickle", "3.1.0"), ("tzdata", "2024.1"),
)  # fmt: skip
LARGE = ("scikit-learn", "1.6.0")
IMPORTS = "python3 -c 'import numpy, pandas, scipy.optimize, sklearn, matplotlib; print(numpy.__version__)'"
PAIRS = 3


class Bench:
    """A queue, and a cache that has the packages and nothing else."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.queue: Any = debian_work_queue().WorkQueue(0)  # type: ignore[attr-defined]
        self.log = work / "transactions"
        self.queue.specify_transactions_log(str(self.log))

    def download(self) -> None:
        """Have every package that is needed later in uv's cache."""
        for changes in ((), *((change,) for change in (*CHANGES, LARGE))):
            spec = EnvSpec.from_dict({"pip": _requirements(dict(changes) if changes else PINS)})
            builder = builder_for(spec, cache_root=self.work / "downloads")
            try:
                builder.build(spec, builder.lock(spec, silent), self.work / "prefix", silent)
            except (FetchError, SolveError) as error:
                raise Unavailable(f"{spec.pip} cannot be had: {error}") from error
            shutil.rmtree(self.work / "prefix")

    def build(self, pins: dict[str, str], cache: Path) -> Environment:
        """The environment of these pins, from the cache ``cache``."""
        return environment({"pip": _requirements(pins)}, cache_dir=cache)

    def run(self, env: Environment, command: str = IMPORTS) -> int:
        """Bytes that the manager sends for one task."""
        before = self.sent()
        self.queue.submit(PonchoTask(command, environment=env))
        while (task := self.queue.wait(5)) is None:
            pass
        if not task.returned:
            raise RuntimeError(f"a task failed: {task.output!r}")
        return self.sent() - before

    def sent(self) -> int:
        """Bytes of inputs that the manager has sent until now."""
        lines = self.log.read_text().splitlines()
        if not any(line.startswith("#") and "TRANSFER" in line for line in lines):
            return int(self.queue.stats.bytes_sent)
        # time, manager, TRANSFER, INPUT, task, whether it is cached, MB (of 1024 KB), seconds, name
        found = (line.split() for line in lines if " TRANSFER INPUT " in line)
        return int(sum(float(words[6]) for words in found) * (1 << 20))

    def rate(self) -> float:
        """Bytes a second that the manager has sent, while it was sending."""
        return float(self.queue.stats.bytes_sent / self.queue.stats.time_send * 1e6)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A new worker of two cores that has connected."""
        before = self.queue.stats.workers_connected
        with LocalWorkers(self.queue.port, count=1, cores=2, directory=self.work):
            while self.queue.stats.workers_connected == before:
                self.queue.wait(1)
            yield
        while self.queue.stats.workers_connected > before:
            self.queue.wait(1)


def _requirements(pins: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in pins.items()]


@contextlib.contextmanager
def one_file() -> Iterator[None]:
    """Every environment goes whole, whatever was sent before."""
    in_ranges = shipping._in_ranges
    _forget()
    shipping._in_ranges = lambda tarball, members: None  # type: ignore[assignment]
    try:
        yield
    finally:
        shipping._in_ranges = in_ranges
        _forget()


def after(base: Environment, env: Environment) -> shipping.Shipment:
    """``env`` as it goes to workers of a manager that has shipped ``base`` and nothing else."""
    _forget()
    shipping.ship(base.tarball, base.identity)
    return shipping.ship(env.tarball, env.identity)


def _forget() -> None:
    shipping._forget()
    core._attachments.clear()


def rows() -> Iterator[Row]:
    """Megabytes sent again for a changed pin, seconds to its first result, what ranges cost where they save nothing."""
    program("work_queue_worker")
    with tempfile.TemporaryDirectory(prefix="poncho-parts-", dir=os.environ.get("PONCHO_BENCH_DIR")) as directory:
        before = os.environ.get("UV_CACHE_DIR")
        os.environ["UV_CACHE_DIR"] = os.environ.get("PONCHO_BENCH_UV", f"{directory}/uv")
        try:
            yield from _rows(Bench(Path(directory)))
        finally:
            os.environ.pop("UV_CACHE_DIR")
            if before is not None:
                os.environ["UV_CACHE_DIR"] = before


def _rows(bench: Bench) -> Iterator[Row]:
    bench.download()
    cache = bench.work / "cache"
    old = bench.build(PINS, cache)
    manifest = read_manifest(old.tarball)
    assert manifest is not None
    whole = old.size / 1e6
    new = bench.build({**PINS, CHANGES[-1][0]: CHANGES[-1][1]}, cache)
    found = after(old, new)
    note = (
        f"{manifest.unpacked / 1e6:.0f} MB unpacked, {whole:.0f} MB packed; "
        f"with one pin changed {len(found.files)} files, {found.ranges.count(',') + 1} ranges"
    )

    yield _nothing(bench, old, new, note)
    yield _unpacking(old, new)
    _forget()
    yield _row("one large compiled package changed, sent again", *_large(bench, old, cache), peer="package + 3 %")
    yield _tasks(bench, old, new)

    _forget()
    pins, sent, took, build_seconds, files = dict(PINS), [], [], [], 0
    with bench.worker():
        bench.run(old)
        for name, version in CHANGES:
            pins[name] = version
            start = time.perf_counter()
            new = bench.build(pins, cache)
            build_seconds.append(time.perf_counter() - start)
            sent.append(bench.run(new) / 1e6)
            took.append(time.perf_counter() - start)
            files = max(files, len(shipping.ship(new.tarball, new.identity).files))
    yield _row(
        "one pure-Python pin changed, sent again", max(sent), whole, target="<= 0.03", note=f"the most of {len(sent)}"
    )
    yield _row("ten changes one after the other, sent", sum(sent), whole * len(sent), target="<= 0.03",
               note=f"at most {files} files")  # fmt: skip

    complete, complete_builds = [], []
    for number, (name, version) in enumerate(CHANGES[:PAIRS]):
        with bench.worker(), one_file():
            start = time.perf_counter()
            new = bench.build({**PINS, name: version}, bench.work / f"complete{number}")
            complete_builds.append(time.perf_counter() - start)
            bench.run(new)
            complete.append(time.perf_counter() - start)
    yield Row(
        name="changed requirement to first result", ours=middle_of(took), peer=middle_of(complete), unit="s",
        ratio=middle_of(took) / middle_of(complete), pairs=len(complete), peer_name="build and send all",
        target="<= 0.33", note=f"the slowest of {len(took)}: {max(took):.1f} s; building {max(build_seconds):.1f} s",
    )  # fmt: skip
    yield _simulated(Pieces(
        whole=old.size, changed=int(max(sent) * 1e6), manager=bench.rate(),
        build_whole=min(complete_builds), build_changed=middle_of(build_seconds),
    ))  # fmt: skip


def middle_of(numbers: list[float]) -> float:
    """The median, of an even number of them the higher one."""
    return sorted(numbers)[len(numbers) // 2]


def _simulated(pieces: Pieces) -> Row:
    return Row(
        name=f"simulated: {pieces.workers} workers, 10 Gb/s, one pin", ours=pieces.minutes_changed,
        peer=pieces.minutes_whole, unit="min", ratio=pieces.minutes_changed / pieces.minutes_whole, pairs=1,
        peer_name="build and send all",
        note=f"{pieces.minutes_saved:.1f} minutes saved; the manager here sends {pieces.manager / 1e6:.0f} MB/s",
    )  # fmt: skip


def _row(name: str, ours: float, whole: float, *, target: str = "<= 1", note: str = "", peer: str = "the whole") -> Row:
    return Row(
        name=name, ours=ours, peer=whole, unit="MB", ratio=ours / whole, pairs=1, peer_name=peer, target=target,
        note=note,
    )  # fmt: skip


def _unpacking(base: Environment, env: Environment) -> Row:
    """Processor time, which other work on the machine changes less than it does the clock's."""
    shipment = after(base, env)
    ranges = [word for path, _ in shipment.files for word in ("-e", path)] + ["--ranges", shipment.ranges]

    def unpack(words: list[str]) -> float:
        with tempfile.TemporaryDirectory(prefix="poncho-unpack-", dir=os.environ.get("PONCHO_BENCH_DIR")) as directory:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            argv = ["sh", str(wrapper_path()), *words, "--id", env.identity, "-d", f"{directory}/env", "true"]
            subprocess.run(argv, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return paired(
        "processor time to unpack", lambda: unpack(ranges), lambda: unpack(["-e", str(env.tarball)]),
        pairs=2 * PAIRS + 1, unit="s", peer_name="one file", target="<= 1.05",
    )  # fmt: skip


def _nothing(bench: Bench, base: Environment, env: Environment, note: str) -> Row:
    """First result on a worker that has nothing, as ranges of a file that was sent before and as one file."""
    with bench.worker():
        bench.run(env, "true")  # the disk's caches are warm for both

    def first() -> float:
        with bench.worker():
            start = time.perf_counter()
            bench.run(env, "true")
            return time.perf_counter() - start

    def ranges() -> float:
        after(base, env)
        return first()

    def whole() -> float:
        with one_file():
            return first()

    return paired(
        "first result on a worker that has nothing", ranges, whole, pairs=2 * PAIRS + 1, unit="s", peer_name="one file",
        target="<= 1.05", note=note,
    )  # fmt: skip


def _large(bench: Bench, old: Environment, cache: Path) -> tuple[float, float]:
    """Megabytes sent for another version of a large package, and what the package and 3 % of the whole come to."""
    new = bench.build({**PINS, LARGE[0]: LARGE[1]}, cache)
    manifest = read_manifest(new.tarball)
    assert manifest is not None
    package = sum(layer.length for layer in manifest.layers if layer.name.startswith(LARGE[0]))
    with bench.worker():
        bench.run(old)
        return bench.run(new) / 1e6, package / 1e6 + 0.03 * new.size / 1e6


def _tasks(bench: Bench, base: Environment, env: Environment) -> Row:
    """What one more input and the ranges cost a task whose worker has them all."""

    def rate() -> float:
        with bench.worker():
            bench.run(env, "true")
            start = time.perf_counter()
            for _ in range(200):
                bench.queue.submit(PonchoTask("true", environment=env))
            done = 0
            while done < 200:
                done += bench.queue.wait(5) is not None
            return 200 / (time.perf_counter() - start)

    def ranges() -> float:
        after(base, env)
        return rate()

    def whole() -> float:
        with one_file():
            return rate()

    return paired(
        "command tasks a second, environment there", ranges, whole, pairs=PAIRS, unit="tasks/s", peer_name="one file",
        target=">= 0.9",
    )  # fmt: skip
