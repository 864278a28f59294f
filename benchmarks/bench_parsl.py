"""Parsl apps on Work Queue: ours in an environment, against Parsl's own executor with ``pack=True`` and with none.

``pack=True`` asks for conda only through ``python_package_create``; here it finds ours under that name, so that both
sides run the same kind of environment, and what is left is what it does for every task: unpack.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Unavailable, paired, seconds

APPS, PACKED_APPS = 100, 10
NEEDS = {"cores": 1, "memory": 200, "disk": 2000}

# Parsl sends a packed app as its source, without the first line, so each is a function of its own in a file.
PROGRAM = """\
from parsl import python_app
@python_app(executors=["ours"])
def ours(x, parsl_resource_specification={}):
    return x
@python_app(executors=["plain"])
def plain(x, parsl_resource_specification={}):
    return x
@python_app(executors=["packed"])
def packed(x, parsl_resource_specification={}):
    return x
"""


def rows() -> Iterator[Row]:
    """Apps a second, one worker of two cores each, environments built and workers warm."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:{os.environ['PATH']}"
    from poncho_wq.parsl import offer_ndcctools

    try:
        offer_ndcctools()
        import parsl
    except ImportError:
        raise Unavailable("Parsl is not installed (pip install parsl)") from None
    from parsl.config import Config
    from parsl.executors import WorkQueueExecutor

    from poncho_wq.parsl import PonchoWorkQueueExecutor

    common = {"address": "127.0.0.1", "port": 0, "worker_options": "--cores 2 --memory 4000 --disk 20000 -t 300"}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        Path("poncho_bench_apps.py").write_text(PROGRAM)
        sys.path.insert(0, place)
        # The worker's plain Python imports the function from here.
        os.environ["PYTHONPATH"] = place
        import poncho_bench_apps as apps  # type: ignore[import-not-found] # written above

        executors = [
            PonchoWorkQueueExecutor(label="ours", **common),
            WorkQueueExecutor(label="plain", **common),
            WorkQueueExecutor(label="packed", pack=True, **common),
        ]
        with parsl.load(Config(executors=executors, run_dir="runinfo", usage_tracking=0)):

            def rate(app: Callable[..., Any], count: int) -> float:
                def all_of_them() -> None:
                    futures = [app(i, parsl_resource_specification=NEEDS) for i in range(count)]
                    assert [future.result() for future in futures] == list(range(count))

                return count / seconds(all_of_them)

            yield paired(
                f"Parsl apps a second, {APPS} apps", lambda: rate(apps.ours, APPS), lambda: rate(apps.plain, APPS),
                pairs=2, unit="apps/s", peer_name="WorkQueueExecutor, no environment",
            )  # fmt: skip
            yield paired(
                f"Parsl apps a second, {APPS} apps", lambda: rate(apps.ours, APPS),
                lambda: rate(apps.packed, PACKED_APPS), pairs=2, unit="apps/s",
                peer_name="WorkQueueExecutor, pack=True", target=">= 10x",
                note=f"pack=True measured with {PACKED_APPS} apps",
            )  # fmt: skip
        os.chdir("/")
