"""Each kind of engine, opened with a worker; TaskVine where it is installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from poncho_wq.engines.opened import open_engine
from poncho_wq.errors import EngineNotInstalled

KINDS = ("work_queue", "local", "taskvine")


def needed(kind: str) -> None:
    """Skip the test where this engine is not installed."""
    if kind == "taskvine" and (
        importlib.util.find_spec("ndcctools") is None
        or importlib.util.find_spec("ndcctools.taskvine") is None
        or shutil.which("vine_worker") is None
    ):
        pytest.skip("TaskVine is not installed: no module ndcctools.taskvine, or no vine_worker on PATH")
    if kind == "work_queue" and shutil.which("work_queue_worker") is None:
        pytest.skip("Work Queue is not installed: no work_queue_worker on PATH")


@contextmanager
def opened(kind: str, **options: Any) -> Iterator[Any]:
    needed(kind)
    try:
        with open_engine(kind, **options) as engine:
            yield engine
    except EngineNotInstalled as missing:
        pytest.skip(missing.message)
