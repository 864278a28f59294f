"""Work Queue and TaskVine tasks that run in exactly the Python environment they need.

``q.submit(PonchoTask(f, x))``: the environment is worked out from ``f``, built once, cached, sent to each worker once
and unpacked there once.  Importing this package is cheap: engines, solvers and YAML are loaded by what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Now, not when first asked for: importing the module later would put it in the place of the function.
from poncho_wq.analyze import analyze
from poncho_wq.version import VERSION as __version__

if TYPE_CHECKING:
    from poncho_wq.engines.local import LocalQueue
    from poncho_wq.engines.work_queue import PonchoTask, WorkQueue
    from poncho_wq.errors import PonchoError
    from poncho_wq.prepare import Environment, environment
    from poncho_wq.recording import record
    from poncho_wq.showing import show_progress
    from poncho_wq.spec import EnvSpec

__all__ = [
    "EnvSpec",
    "Environment",
    "LocalQueue",
    "PonchoError",
    "PonchoTask",
    "WorkQueue",
    "__version__",
    "analyze",
    "environment",
    "record",
    "show_progress",
]

_LAZY = {
    "EnvSpec": "poncho_wq.spec",
    "Environment": "poncho_wq.prepare",
    "LocalQueue": "poncho_wq.engines.local",
    "PonchoError": "poncho_wq.errors",
    "PonchoTask": "poncho_wq.engines.work_queue",
    "WorkQueue": "poncho_wq.engines.work_queue",
    "environment": "poncho_wq.prepare",
    "record": "poncho_wq.recording",
    "show_progress": "poncho_wq.showing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
