"""Parsl apps in prepared environments: executors, a launch command, and Debian's binding for stock Parsl.

Needs Parsl, ``pip install parsl``.
"""

from __future__ import annotations

from poncho_wq.errors import EngineNotInstalled

try:
    import parsl as _parsl  # noqa: F401 # asked for here, so that its absence is told in our words
except ModuleNotFoundError as missing:
    if missing.name != "parsl":
        raise
    raise EngineNotInstalled("Parsl is not installed", engine="parsl", advice="pip install parsl") from missing

from poncho_wq.engines.parsl_executors import PonchoTaskVineExecutor, PonchoWorkQueueExecutor
from poncho_wq.engines.parsl_htex import htex_launch_cmd
from poncho_wq.engines.parsl_shim import offer_ndcctools

__all__ = ["PonchoTaskVineExecutor", "PonchoWorkQueueExecutor", "htex_launch_cmd", "offer_ndcctools"]
