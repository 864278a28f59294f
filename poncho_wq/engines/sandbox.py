"""A task's sandbox on this machine: inputs go in as ``work_queue_worker`` puts them, outputs come out.

``cache/`` holds one copy of each cached input, linked into every sandbox that wants it.  It is a copy, never a link to
the user's own file: a task may write to its inputs.  Our own inputs (environment, wrapper, runner, functions) never
change and are linked as they are, since nobody wants another copy of an environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from poncho_wq.engines.stand_in import CACHE, FAILURE_ONLY, SUCCESS_ONLY, File


def fill(home: Path, cache: Path, files: Iterable[File]) -> None:
    """Make the sandbox ``home`` with its inputs.  Raises ``OSError`` when one is missing or cannot be copied."""
    home.mkdir()
    for file in files:
        if file.output:
            continue
        place = home / file.remote
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.kind == "buffer":
            place.write_text(file.local, encoding="utf-8", errors="surrogateescape")
        elif file.kind == "directory":
            place.mkdir(exist_ok=True)
        elif file.kind == "piece":
            _copy_piece(file, place)
        elif file.ours:
            place.symlink_to(os.path.realpath(file.local))
        elif file.flags & CACHE:
            _link_tree(_cached(cache, file.local), place)
        else:
            _copy(Path(file.local), place)


def fetch(home: Path, files: Iterable[File], *, failed: bool) -> list[str]:
    """Move the outputs to where the task's owner wants them; returns the names of those that are not there."""
    missing = []
    for file in files:
        unwanted = (file.flags & FAILURE_ONLY and not failed) or (file.flags & SUCCESS_ONLY and failed)
        if not file.output or unwanted:
            continue
        place, local = home / file.remote, Path(file.local)
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir() and local.is_dir():
                shutil.copytree(place, local, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.move(place, local)
        except OSError:
            missing.append(file.remote)
    return missing


def remove(directory: Path) -> None:
    """Remove a tree, also where a task has taken write permission away."""
    if not directory.exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for path, _, _ in os.walk(directory):
            try:
                Path(path).chmod(stat.S_IRWXU)
            except OSError:
                pass
        shutil.rmtree(directory, ignore_errors=True)


def _cached(cache: Path, local: str) -> Path:
    """The copy of ``local`` in the cache: one for each version of it that was asked for."""
    info = Path(local).stat()
    key = f"{Path(local).resolve()}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}"
    copy = cache / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    if not copy.exists():
        _copy(Path(local), copy)
    return copy


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
        # Work Queue carries the mode along, but neither times nor owners.
        shutil.copymode(source, target)


def _link_tree(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
    else:
        os.link(source, target)


def _copy_piece(file: File, target: Path) -> None:
    with Path(file.local).open("rb") as source:
        source.seek(file.start)
        length = max(0, file.end - file.start + 1)
        target.write_bytes(source.read(length))
