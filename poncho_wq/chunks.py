"""Several calls of one function in one task: what a task costs beyond its work is then paid once for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["call_each", "chunks_of"]


def call_each(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    """The results of ``function(*arguments)`` for each of ``calls``; runs on the worker."""
    return [function(*arguments) for arguments in calls]


def chunks_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in order, in lists of ``size``; the last may be shorter."""
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
