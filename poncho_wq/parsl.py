"""Parsl apps in prepared environments: executors, a launch command, and Debian's binding for stock Parsl.

Needs Parsl, ``pip install parsl``, which is not imported before one of the first three is asked for: what
``offer_ndcctools`` offers is only seen by a Parsl that is imported after it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from poncho_wq.engines.parsl_shim import offer_ndcctools
from poncho_wq.errors import EngineNotInstalled

if TYPE_CHECKING:
    from poncho_wq.engines.parsl_executors import PonchoTaskVineExecutor, PonchoWorkQueueExecutor
    from poncho_wq.engines.parsl_htex import htex_launch_cmd

__all__ = ["PonchoTaskVineExecutor", "PonchoWorkQueueExecutor", "htex_launch_cmd", "offer_ndcctools"]

_LAZY = {
    "PonchoTaskVineExecutor": "poncho_wq.engines.parsl_executors",
    "PonchoWorkQueueExecutor": "poncho_wq.engines.parsl_executors",
    "htex_launch_cmd": "poncho_wq.engines.parsl_htex",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as missing:
        if missing.name != "parsl":
            raise
        raise EngineNotInstalled("Parsl is not installed", engine="parsl", advice="pip install parsl") from missing
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
