"""A cache of 10,000 environments: listed, found to need nothing, and collected; against the bare system calls."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row, paired, seconds
from poncho_wq.cache import Cache
from poncho_wq.caching.admin import collect
from poncho_wq.caching.listing import scan

NUMBER = 10_000
LAYERS = 40  # of an environment; most are shared with others


def fill(root: Path, number: int) -> None:
    """Entries as builds leave them, with tarballs of a few bytes."""
    home = root / "v1"
    for name in ("environments", "layers", "recipes", "locks", "tmp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "in-use").touch()
    shared = [f"{each:064x}" for each in range(LAYERS - 1)]
    for each in range(number):
        spec_hash, generation, own = f"{each:08x}" * 8, f"{each:016x}", f"{each + 1000:064x}"
        directory = home / "environments" / spec_hash
        (directory / generation).mkdir(parents=True)
        tarball = f"{generation}/poncho-env-{each:016x}.tar.gz"
        (directory / tarball).write_bytes(b"tarball")
        (directory / generation / "poncho.lock").write_bytes(b"{}")
        facts = {"spec_hash": spec_hash, "tarball": tarball, "identity": own, "size": 7, "python": "3.11.7"}
        facts |= {"glibc": "2.28", "platform": "linux-64", "layers": [*shared, own], "generations": [generation]}
        (directory / "entry.json").write_text(json.dumps(facts, indent=1))
        (directory / "used").touch()
        os.utime(directory / "used", (each, each))


def bare(root: Path) -> float:
    """What reading those entries costs without us: every ``entry.json`` read and parsed, every tarball looked at."""

    def read() -> None:
        home = f"{root}/v1/environments"
        for name in os.listdir(home):
            with open(f"{home}/{name}/entry.json", "rb") as stream:
                os.stat(f"{home}/{name}/{json.loads(stream.read())['tarball']}")

    return seconds(read)


def remove_bare(root: Path) -> float:
    return seconds(lambda: shutil.rmtree(root / "v1/environments"))


def rows() -> Iterator[Row]:
    """Times in seconds."""
    with tempfile.TemporaryDirectory(prefix="poncho-bench-") as directory:
        root, again = Path(directory) / "cache", Path(directory) / "again"
        fill(root, NUMBER)
        cache = Cache(root)
        note = f"{NUMBER} entries of {LAYERS} layers"
        yield paired(
            "cache list", lambda: seconds(lambda: scan(cache)), lambda: bare(root),
            pairs=5, unit="s", peer_name="reading entry.json", target="< 1 s", note=note,
        )  # fmt: skip
        yield paired(
            "cache gc, nothing to remove",
            lambda: seconds(lambda: collect(cache, max_size=1 << 40)), lambda: bare(root),
            pairs=5, unit="s", peer_name="reading entry.json", target="< 1 s", note=note,
        )  # fmt: skip

        def everything() -> float:
            shutil.rmtree(root)
            fill(root, NUMBER)
            return seconds(lambda: collect(cache, max_size=0))

        def rmtree() -> float:
            shutil.rmtree(again, ignore_errors=True)
            fill(again, NUMBER)
            return remove_bare(again)

        yield paired(
            "cache gc, everything removed", everything, rmtree,
            pairs=3, unit="s", peer_name="shutil.rmtree", target="< 1 s on tmpfs", note=note,
        )  # fmt: skip
