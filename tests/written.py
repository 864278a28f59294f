"""A project of local modules that a test writes, imports from and edits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Write = Callable[[dict[str, str]], Path]


def written_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Yields what writes files (text by name) into ``project``, which is on the path, and returns it.

    Afterwards what was imported from there is forgotten.
    """
    project.mkdir()
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(texts: dict[str, str]) -> Path:
        for name, text in texts.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return project

    yield write
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
        if any(place.startswith(str(project)) for place in places):
            del sys.modules[name]
