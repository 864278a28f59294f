"""Copying the results of a batch to another place."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from poncho_wq.errors import EngineError


def chosen(
    source: Path, *, include: Sequence[re.Pattern[str]] = (), exclude: Sequence[re.Pattern[str]] = ()
) -> list[str]:
    """The files of the results in ``source``, relative to it, sorted; ours, and those half done, are hidden ones.

    With ``include`` those in which one of these is found, with ``exclude`` those in which none is.
    """
    found = []
    for directory, folders, files in os.walk(source):
        at = os.path.relpath(directory, source)
        if at == ".":
            # A job's name has no leading dot; what does is being published.
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.normpath(os.path.join(at, name))
            if name.startswith(".poncho-"):
                continue
            wanted = not include or any(each.search(path) for each in include)
            if wanted and not any(each.search(path) for each in exclude):
                found.append(path)
    return sorted(found)


def copy(source: Path, target: Path, files: Iterable[str]) -> None:
    """Copy them; each is there whole or not at all.  Raises ``EngineError``."""
    for name in files:
        place = target / name
        partial = place.with_name(f".{secrets.token_hex(4)}.partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(source / name, partial)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"{place}: {error.strerror or error}") from error
