"""Removing entries, superseded tarballs and layers of a cache while others build and look up.

What they see of each other is the story in inuse.py.  What is removed is out of sight at once, by one rename to a name
that belongs to nobody; taking it off the disk, which is most of the work, may be done by anybody at any time later, and
by several at once: by ``rm``, of which one runs beside us as soon as there is enough to do, by ourselves when all is
chosen, and by whoever sweeps next (scratch.py), should we be killed meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from poncho_wq.cache import ENTRY_NAME, LOCK_NAME, USED_NAME
from poncho_wq.caching import inuse
from poncho_wq.caching.listing import Listed, current_generation, generations_in, is_generation, size_of
from poncho_wq.scratch import DEAD, disk_error

_MANY = 500
"""So many directories are worth a program of their own, which takes some milliseconds to start."""


class Remover:
    """Removes one thing after another, each with its locks held; says no where something is in use.

    ``now`` is for file systems without locks, where the last use must have been ``inuse.GRACE`` seconds before it.
    What is removed is out of sight at once, and off the disk when the ``with`` block has ended.
    """

    def __init__(self, home: Path, claims: inuse.Claims, now: float, *, dry_run: bool) -> None:
        self._home = os.fspath(home)
        self._claims = claims
        self._now = now
        self._dry_run = dry_run
        self._doomed: list[tuple[str, str]] = []
        self._rm = None if dry_run else shutil.which("rm")
        self._at_work: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Remover:
        return self

    def __exit__(self, *_: object) -> None:
        while self._doomed:
            path, tarball = self._doomed.pop()
            _remove_known(path, tarball)
            self._share()
        if self._at_work is not None:
            self._at_work.wait()

    def _dispose(self, path: str, tarball: str = "") -> None:
        """Have a directory removed that is out of sight; ``tarball``: of an entry, where in it that lies."""
        if path:
            self._doomed.append((path, tarball))
            self._share()

    def _share(self) -> None:
        """Give ``rm`` something to do, where there is much.  It runs on another core while we choose and remove.

        What it cannot remove is left for the next sweep, as everything here.
        """
        waiting = len(self._doomed)
        if waiting < _MANY or self._rm is None:
            return
        if self._at_work is not None and self._at_work.poll() is None:
            return
        # A third: when we choose no more, we are to be done with the rest at about the same time.
        share = self._doomed[: max(_MANY, waiting // 3)]
        paths = [path for path, _ in share]
        try:
            self._at_work = subprocess.Popen([self._rm, "-rf", "--", *paths], stderr=subprocess.DEVNULL)
        except OSError:
            self._rm = None
        else:
            del self._doomed[: len(share)]

    def remove_entry(self, entry: Listed) -> bool:
        """Whether it is gone."""
        path = f"{self._home}/environments/{entry.spec_hash}"
        with _Claimed(self._claims, asks=self._dry_run) as claimed:
            # Somebody may have had it, and ended, since it was listed.
            if not claimed.claim(inuse.hash_byte(entry.spec_hash)) or not self._rested(path, entry.used):
                return False
            if not all(claimed.claim(inuse.generation_byte(name)) for name in generations_in(path)):
                return False
            doomed = self._out_of_sight(path)
        self._dispose(doomed, "" if entry.path is None else entry.path[len(path) + 1 :])
        return True

    def remove_superseded(self, entry: Listed) -> tuple[int, int]:
        """Remove generations that are not the entry's current one: how many, and bytes."""
        count = size = 0
        path = f"{self._home}/environments/{entry.spec_hash}"
        for name in entry.superseded:
            with _Claimed(self._claims, asks=self._dry_run) as claimed:
                if not claimed.claim(inuse.hash_byte(entry.spec_hash)):
                    continue
                if not claimed.claim(inuse.generation_byte(name)) or not self._rested(path, entry.used):
                    continue
                if current_generation(path) == name:
                    continue
                bytes_ = size_of(f"{path}/{name}")
                doomed = self._out_of_sight(f"{path}/{name}")
            self._dispose(doomed)
            count, size = count + 1, size + bytes_
        return count, size

    def remove_layers(self, names: Sequence[str]) -> Sequence[str]:
        """Remove layers that no entry names, and recipes of what is gone; those removed.  None while anybody builds."""
        if not names:
            return ()
        with _Claimed(self._claims, asks=self._dry_run) as claimed:
            if not claimed.claim(inuse.LAYERS) or (not self._claims.locks and not self._dry_run):
                return ()
            if not self._dry_run:
                for name in names:
                    _unlink(f"{self._home}/layers/{name}")
                _remove_recipes(self._home)
        return names

    def _rested(self, path: str, used: float) -> bool:
        """Whether the entry was not used since it was listed, nor, where there are no locks, lately."""
        if not self._claims.locks and used > self._now - inuse.GRACE:
            return False
        try:
            return os.stat(f"{path}/{USED_NAME}").st_mtime <= used
        except OSError:
            return True

    def _out_of_sight(self, path: str) -> str:
        """Rename a directory to what belongs to nobody, in one step."""
        if self._dry_run:
            return ""
        doomed = f"{self._home}/tmp/{DEAD}{secrets.token_hex(8)}"
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            return ""  # somebody else's work
        except OSError as error:
            raise disk_error(error, Path(path), "could not be removed") from error
        return doomed


class _Claimed:
    """Nothing is ours before this block, nor after it; ``asks``: nor within it, in a dry run."""

    __slots__ = ("_asks", "_claims")

    def __init__(self, claims: inuse.Claims, *, asks: bool) -> None:
        self._claims = claims
        self._asks = asks

    def __enter__(self) -> _Claimed:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._asks:
            self._claims.let_go_of_all()

    def claim(self, byte: int) -> bool:
        """Whether nobody uses it, and nobody does until the block ends."""
        return not self._claims.is_used(byte) if self._asks else self._claims.claim(byte)


def _remove_recipes(home: str) -> None:
    """Remove recipes whose layer is gone.  One that comes back meanwhile may lose its recipe, and is made once more."""
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{home}/recipes") as found:
        for each in found:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                with open(each.path, "rb", buffering=0) as stream:
                    digest = json.loads(stream.read())["digest"]
                suffix = os.path.splitext(each.name)[1] or ".gz"  # a gzip layer's recipe has none
                if not os.path.exists(f"{home}/layers/{digest}{suffix}"):
                    os.unlink(each.path)


def remove_tree(path: str) -> None:
    """Remove a directory that nobody else can be in; what cannot be removed is left for the next ``sweep``.

    By paths, which for 10,000 of them takes a third of the time of ``shutil.rmtree``: that guards against others who
    replace directories by links, and here nobody else may write.
    """
    with contextlib.suppress(OSError):
        with os.scandir(path) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False):
                    remove_tree(each.path)
                else:
                    _unlink(each.path)
        os.rmdir(path)


def _remove_known(path: str, tarball: str) -> None:
    """Remove the directory of an entry whose tarball lies at ``GENERATION/NAME`` in it, or was said to.

    It holds what ``Cache`` puts there and nothing else, as a rule; to look first would be a third of the work.
    """
    generation, _, name = tarball.partition("/")
    if is_generation(generation) and name and "/" not in name:
        try:
            # Who was short of space may have put a link in its place; what that leads to is not ours.
            if not stat.S_ISDIR(os.lstat(f"{path}/{generation}").st_mode):
                raise NotADirectoryError
            for known in (tarball, f"{generation}/{LOCK_NAME}", ENTRY_NAME, USED_NAME):
                os.unlink(f"{path}/{known}")
            os.rmdir(f"{path}/{generation}")
            os.rmdir(path)
            return
        except OSError:
            pass  # as a rule
    remove_tree(path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
