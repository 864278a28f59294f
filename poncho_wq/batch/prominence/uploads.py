"""Artifacts that the user has uploaded: files in the spool by the names they were given."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from poncho_wq.errors import EngineError


def _directory() -> Path:
    from poncho_wq.batch.prominence.settings import settings

    return settings().spool / "uploads"


def place(name: str) -> Path:
    """Where an upload of this name is, if there is one."""
    # One file whatever the name: a slash in it is no directory, and ".." none of ours.
    return _directory() / f"u-{quote(name, safe='')}"


def keep(name: str, filename: str | os.PathLike[str]) -> None:
    """Copy a file; an upload of the same name is replaced.  Raises ``EngineError``."""
    import secrets
    import shutil

    target = place(name)
    partial = target.with_name(f".{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            shutil.copyfile(filename, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{os.fspath(filename)}: cannot be uploaded: {error.strerror or error}") from error
