"""Which library compresses and decompresses zstd: Python's own module (since 3.14), its backport, or ``zstandard``."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

ADVICE = "pip install 'poncho_wq[zstd]'"
"""The command that mends it when there is none."""


def find() -> Any:
    """The first of the three that can be imported; None when there is none.

    All have ``open`` and ``ZstdError``.  The first two have the same classes, ``zstandard`` its own.
    """
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        with suppress(ImportError):
            return importlib.import_module(name)
    return None
