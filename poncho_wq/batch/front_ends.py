"""What a user hands in → a ``Batch``: which front end reads which file."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.batch.model import Batch
from poncho_wq.errors import SpecError

# By the end of a file's name: the module whose ``load(path)`` returns a ``Loaded``.
_READERS = {
    ".yaml": "poncho_wq.batch.distribute",
    ".yml": "poncho_wq.batch.distribute",
    ".json": "poncho_wq.batch.prominence.document",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A checked batch, the ``front_end`` that read it, its ``source`` text, and ``notes`` for the user: what was asked
    for and means nothing here."""

    batch: Batch
    front_end: str
    source: str
    notes: tuple[str, ...] = ()


def load(path: Path) -> Loaded:
    """Read a description of a batch.  Raises ``SpecError``, as ``BatchError`` when several things are wrong."""
    module = _READERS.get(path.suffix.lower())
    if module is None:
        raise SpecError(f"expected a name that ends in {', '.join(_READERS)}", source=str(path))
    if importlib.util.find_spec(module) is None:
        raise SpecError("this version reads distribute's YAML only", source=str(path))
    loaded: Loaded = importlib.import_module(module).load(path)
    return loaded


def text_of(path: Path) -> str:
    """The file's text.  Raises ``SpecError``."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError("not UTF-8", source=str(path), advice="save the file as UTF-8") from error
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
