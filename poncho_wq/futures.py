"""``concurrent.futures`` on workers: see ``poncho_wq.engines.futures``."""

from __future__ import annotations

from poncho_wq.engines.futures import Executor, RemoteFuture
from poncho_wq.engines.opened import Needs

__all__ = ["Executor", "Needs", "RemoteFuture"]
