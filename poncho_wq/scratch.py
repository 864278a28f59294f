"""Locks, and working directories that do not outlive their owners, for what several processes do to one cache.

A lock is the kernel's (``flock``, by way of ``filelock``): it ends with the process that holds it, however that process
ends, so nobody ever has to guess whether a lock is stale.  Where a file system has no such locks, that is an error:
a lock made of a file's existence would outlive a killed builder and stop everybody after it.

**Working directories.**  A builder needs a place for gigabytes that are worth nothing once it is dead.

A makes ``tmp/<random>/`` and locks ``owner.lock`` in it, both while it holds ``tmp/.lock``, so that nobody ever sees
one of these directories without its lock held.  A then works for minutes, without ``tmp/.lock``.
B, before it starts a build of its own, takes ``tmp/.lock`` and tries every ``owner.lock`` without waiting: A's is
held, A is alive, its directory stays. C was killed.  The kernel released its lock; B gets it, so C is dead, and B
renames the directory to ``dead-…`` while it still holds ``tmp/.lock``.  What has that name belongs to nobody, and
whoever sees it may remove it, also at the same time as others. D is A, finished: it renames its own directory to
``dead-…`` too and removes it.  Killed half way, it leaves what C leaves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from poncho_wq.errors import CacheError, LockTimeout

if TYPE_CHECKING:
    import filelock

# What has a name that begins so belongs to nobody, and whoever sees it may remove it.
DEAD = "dead-"
_OWNER = "owner.lock"
# What flock says where it is not to be had: no such call (some FUSE), not supported, no lock daemon (NFS).
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}


@contextmanager
def held(path: Path, *, timeout: float | None = None, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` for the block.  The file stays when the lock is released, as it must.

    Processes exclude each other, and so do threads and two calls in one thread.  ``on_wait`` is called once, when
    somebody else holds it; ``timeout`` is in seconds, None waits as long as the holder lives.

    Raises ``LockTimeout``, and ``CacheError`` where the file system cannot lock or the file cannot be made.
    """
    lock = _acquired(path, timeout, on_wait)
    try:
        yield
    finally:
        _release(lock, path)


def _acquired(path: Path, timeout: float | None, on_wait: Callable[[], None] | None) -> filelock.BaseFileLock:
    import filelock

    # Not thread-local: the object may be released by another thread than the one that acquired it (a generator's end).
    try:
        lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    except TypeError:  # filelock 3, which cannot be told
        lock = filelock.FileLock(path, thread_local=False)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _probe(path)
            if on_wait is not None:
                on_wait()
            lock.acquire(timeout=-1 if timeout is None else timeout)
    except filelock.Timeout as error:
        raise LockTimeout(
            f"{path}: somebody else has held this lock for more than {timeout:g} seconds",
            lock=path,
            waited=timeout,
            advice="if that process is stopped or hung, end it; its lock goes with it",
        ) from error
    except (OSError, NotImplementedError) as error:
        raise _cannot_lock(path, error) from error
    if isinstance(lock, filelock.SoftFileLock):
        # filelock 3 replaces itself by a lock file's existence where flock is missing.
        _release(lock, path)
        raise _cannot_lock(path, OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)))
    return lock


def _probe(path: Path) -> None:
    """Raise the ``OSError`` of a file system without locks, which filelock 3 takes for a lock that somebody holds."""
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pass  # held; `stream` lets go of what it did get when it is closed


def _release(lock: filelock.BaseFileLock, path: Path) -> None:
    try:
        lock.release()
    except OSError as error:
        raise disk_error(error, path.parent, f"could not release the lock {path.name}") from error


def _cannot_lock(path: Path, error: Exception) -> CacheError:
    if isinstance(error, NotImplementedError) or (isinstance(error, OSError) and error.errno in _NO_LOCKS):
        return CacheError(
            f"{path.parent}: this file system cannot lock files ({error})",
            advice="set PONCHO_CACHE_DIR, or --cache-dir, to a directory on a local disk",
        )
    assert isinstance(error, OSError)
    return disk_error(error, path.parent, f"could not make the lock file {path.name}")


def disk_error(error: OSError, directory: Path, what: str, *, needed: int | None = None) -> CacheError:
    """An ``OSError`` of the cache as a ``CacheError``: what failed, how much was needed and is free, what to do.

    ``what`` is what was not possible ("could not store the tarball"), ``needed`` in bytes where known.
    """
    advice = "set PONCHO_CACHE_DIR, or --cache-dir, to a directory that you can write to"
    facts = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        facts += f": {space(directory, needed)}"
        advice = (
            "free some space there (poncho-wq cache gc --max-size SIZE removes what was not used for longest), or set "
            "PONCHO_CACHE_DIR, or --cache-dir, to a directory on a larger disk"
        )
    return CacheError(f"{directory}: {what}: {facts}", advice=advice)


def space(directory: Path, needed: int | None) -> str:
    """``"12.3 MB are needed and 4.5 MB are free"``, as far as either is known."""
    known = [] if needed is None else [f"{_bytes(needed)} are needed"]
    try:
        disk = os.statvfs(directory)
        known.append(f"{_bytes(disk.f_bavail * disk.f_frsize)} are free")
        if disk.f_files and disk.f_favail == 0:
            known.append("no more files can be made")
    except OSError:
        pass
    return " and ".join(known) or "no space left"


def _bytes(number: float) -> str:
    if number < 1000:
        return f"{number:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"


@contextmanager
def work_directory(tmp: Path) -> Iterator[Path]:
    """A new, empty directory under ``tmp``, mode 0700, removed at the end of the block, whatever ends it.

    When the process is killed instead, ``sweep`` removes it later.  Raises ``CacheError``.
    """
    directory = tmp / secrets.token_hex(8)
    with held(tmp / ".lock"):
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise disk_error(error, tmp, "could not make a working directory") from error
        try:
            owner = _acquired(directory / _OWNER, 0, None)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    try:
        yield directory
    finally:
        doomed = tmp / f"{DEAD}{directory.name}"
        try:
            directory.rename(doomed)
        except OSError:
            doomed = directory
        _release(owner, directory / _OWNER)
        shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def removed_beside(directory: Path) -> Iterator[Callable[[], None]]:
    """A function that begins to remove ``directory``, beside other work; the block ends when that is done."""
    with ThreadPoolExecutor(1, thread_name_prefix="poncho-remove") as pool:

        def begin() -> None:
            pool.submit(shutil.rmtree, directory, ignore_errors=True)

        yield begin


def sweep(tmp: Path) -> None:
    """Remove the working directories under ``tmp`` whose owners are dead.  Those of the living stay.

    Raises ``CacheError`` where locks do not work; what cannot be removed is left for the next time.
    """
    with held(tmp / ".lock"):
        for directory in _listed(tmp):
            if not directory.name.startswith(DEAD) and _is_ownerless(directory):
                try:
                    directory.rename(tmp / f"{DEAD}{directory.name}")
                except OSError:
                    continue
    # Not under the lock: removing gigabytes takes a while, and others need `tmp/.lock` only for an instant.
    for directory in _listed(tmp):
        if directory.name.startswith(DEAD):
            shutil.rmtree(directory, ignore_errors=True)


def _listed(tmp: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(tmp) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _is_ownerless(directory: Path) -> bool:
    try:
        _release(_acquired(directory / _OWNER, 0, None), directory / _OWNER)
    except CacheError:
        return False  # held, or not to be told: leave it
    return True
