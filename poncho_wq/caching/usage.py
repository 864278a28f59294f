"""What a cache takes of the disk, part by part, as a quota counts it: blocks and inodes, each file once."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.cache import Cache


@dataclass(frozen=True, kw_only=True)
class Area:
    """A part: ``size`` in bytes on the disk, ``files`` counts directories too, ``advice`` is how to shrink it."""

    name: str
    path: Path
    size: int
    files: int
    advice: str


_OURS = "poncho-wq cache gc"
_AGAIN = "remove the directory when nothing is being built; it is downloaded again"


def areas(cache: Cache) -> list[Area]:
    """The parts that there are, ours and those of the tools that builds use, wherever these keep them."""
    home, root = cache.home, cache.root
    uv = Path(os.environ.get("UV_CACHE_DIR") or root / "uv")
    conda = Path(os.environ.get("RATTLER_CACHE_DIR") or root / "conda")
    parts = [
        ("environments", [home / "environments"], _OURS),
        ("layers", [home / "layers", home / "recipes"], _OURS),
        ("unfinished", [home / "tmp", root / "data/tmp", root / "interpreters/tmp"], _OURS),
        ("locks", [home / "locks", home / "failures", home / "in-use", root / "data/locks"], ""),
        ("git", [root / "data/git"], _AGAIN),
        ("http", [root / "data/http", root / "data/urls", root / "data/partial"], _AGAIN),
        ("builds", [root / "builds"], "remove the directory; the next build is a whole one"),
        ("interpreters", [root / "interpreters"], "remove the directory when nothing is being built; it is made again"),
        ("uv", [uv], f"UV_CACHE_DIR={uv} uv cache prune, or uv cache clean"),
        ("conda", [conda], _AGAIN),
    ]
    seen: set[tuple[int, int]] = set()
    found = []
    for name, paths, advice in parts:
        size = files = 0
        for path in paths:
            more = _usage(os.fspath(path), seen)
            size, files = size + more[0], files + more[1]
        if files:
            found.append(Area(name=name, path=paths[0], size=size, files=files, advice=advice))
    return found


def _usage(path: str, seen: set[tuple[int, int]]) -> tuple[int, int]:
    """Bytes and inodes of a file, or of all in a directory and itself, that were not counted before."""
    size = files = 0
    waiting = [path]
    while waiting:
        path = waiting.pop()
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) in seen:
                continue
            if found.st_nlink > 1:
                seen.add((found.st_dev, found.st_ino))
            size, files = size + found.st_blocks * 512, files + 1
            with os.scandir(path) as entries:
                waiting += [each.path for each in entries]
    return size, files
