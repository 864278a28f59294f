"""The sha256 of files, as hexadecimal text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_PIECE = 1 << 20
_BATCH = 128


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Of one file.  Raises ``OSError``."""
    digest = hashlib.sha256()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One byte more shows the end; a buffer of a megabyte for each of ten thousand small files would be mapped anew.
        size = min(os.fstat(file).st_size + 1, _PIECE)
        while piece := os.read(file, size):
            digest.update(piece)
    finally:
        os.close(file)
    return digest.hexdigest()


def in_batches(make: Callable[[_T], _R], items: Sequence[_T], pool: Executor) -> list[_R]:
    """``make`` of each, in order, in the threads of ``pool``.  Raises what it raises.

    A future for each of ten thousand small files would cost as much as hashing them.
    """
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    return [made for batch in pool.map(lambda batch: [make(item) for item in batch], batches) for made in batch]
