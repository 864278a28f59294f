"""``ndcctools.work_queue`` from Debian's binding, for programs that import that name only, as stock Parsl does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from poncho_wq.engines.binding import find_work_queue
from poncho_wq.errors import EngineError

__all__ = ["offer_ndcctools"]

_SHIM = Path(__file__).resolve().parent.parent / "parsl_shim"


def offer_ndcctools() -> bool:
    """Make ``import ndcctools.work_queue`` give the binding that ``poncho_wq`` finds; whether that was needed.

    Call it before ``parsl`` is imported, which looks for the binding once.  A directory is added at the end of
    ``sys.path``, so that a real ndcctools always goes first; processes that are spawned from this one inherit it.  Our
    own executors do not need it.

    Raises ``EngineNotInstalled`` when there is no binding, ``EngineError`` when Parsl has been imported or when an
    ndcctools without Work Queue is installed, which nothing may stand in for.
    """
    if importlib.util.find_spec("ndcctools") is not None:
        if importlib.util.find_spec("ndcctools.work_queue") is not None:
            return False
        raise EngineError(
            "the ndcctools that is installed here has no work_queue",
            advice="conda install -c conda-forge ndcctools brings one that has",
        )
    if "parsl.executors.workqueue.executor" in sys.modules:
        raise EngineError(
            "Parsl has looked for ndcctools.work_queue already", advice="call offer_ndcctools() before `import parsl`"
        )
    find_work_queue()
    sys.path.append(str(_SHIM))
    importlib.invalidate_caches()
    return True
