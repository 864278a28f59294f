"""What the server does of a library's for its children, before there are any."""

from __future__ import annotations

import importlib
import sys
import threading
import types
import warnings
from typing import Any

import numpy
import pandas
import pytest

from poncho_wq.warm import settling


def _state() -> dict[str, Any]:
    return {
        "numpy's random numbers": repr(numpy.random.get_state()),
        "numpy's errors": numpy.geterr(),
        "numpy's printing": numpy.get_printoptions(),
        "pandas' options": {name: pandas.get_option(name) for name in ("display.max_rows", "display.precision")},
        "warnings": list(warnings.filters),
        "threads": threading.active_count(),
    }


@pytest.mark.parametrize("name", settling._FIRST_USES)
def test_a_first_use_works_and_changes_nothing(name: str) -> None:
    library = importlib.import_module(name)
    before = _state()
    settling._FIRST_USES[name](library)
    assert _state() == before


def test_each_is_used_once_and_only_if_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(settling, "_FIRST_USES", {"here": lambda lib: used.append(lib.__name__), "absent": used.append})
    monkeypatch.setitem(sys.modules, "here", types.ModuleType("here"))
    done: set[str] = set()
    settling._first_use(done)
    settling._first_use(done)
    assert used == ["here"]
    assert done == {"here"}


def test_a_broken_library_is_the_task_s_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    monkeypatch.setitem(sys.modules, "numpy", types.ModuleType("numpy"))
    done: set[str] = set()
    settling._first_use(done)
    assert done == {"numpy", "pandas"}


def test_what_it_warns_of_is_left_to_be_said_to_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(_: Any) -> None:
        warnings.warn("old", FutureWarning, stacklevel=1)

    monkeypatch.setattr(settling, "_FIRST_USES", {"sys": old})
    with warnings.catch_warnings(record=True) as said:
        settling._first_use(set())
        assert not said
        old(None)
    assert [str(warning.message) for warning in said] == ["old"]
