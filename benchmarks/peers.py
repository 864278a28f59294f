"""The peers: Debian's tools, where they are installed, and the environment that both sides run."""

from __future__ import annotations

import shutil
from functools import cache

from benchmarks.harness import Unavailable
from poncho_wq import Environment, environment


def program(name: str) -> str:
    """The path of an installed program; raises ``Unavailable``."""
    found = shutil.which(name, path="/usr/bin:/usr/local/bin")
    if found is None:
        raise Unavailable(f"{name} is not installed (Debian: coop-computing-tools, python3-workqueue)")
    return found


@cache
def numpy_environment() -> Environment:
    """numpy, pandas, and dill, which Debian's PythonTask needs on the worker."""
    return environment({"pip": ["numpy", "pandas", "dill", "cloudpickle"]})


@cache
def debian_work_queue() -> object:
    """Debian's binding with its PythonTask; that needs dill on the manager."""
    from poncho_wq.engines.binding import find_work_queue

    try:
        import dill  # noqa: F401
    except ImportError:
        raise Unavailable("dill is not installed in this Python (pip install dill)") from None
    return find_work_queue()
