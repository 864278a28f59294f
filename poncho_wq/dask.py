"""Dask on TaskVine in prepared environments: see ``poncho_wq.engines.dask_vine``."""

from __future__ import annotations

from poncho_wq.engines.dask_vine import DaskVine

__all__ = ["DaskVine"]
