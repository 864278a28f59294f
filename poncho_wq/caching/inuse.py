"""Who uses what in a cache: one byte of one file for each thing that can be in use.

``v1/in-use`` is empty for ever; what counts are the kernel's locks on its bytes, far beyond its end.  A generation, a
hash that is being built and the layers have a byte each.  Users lock it shared, whoever removes the thing exclusively,
and never waits.  They are locks of an open file (Linux's "OFD" locks, 3.15 and later): they end with the process that
opened it, however it ends, a forked child has its parent's, and threads need no care.  A process needs one open file
for any number of environments, and `flock` would need one for each.

**Story.**  C looks up a hash; E evicts.

C reads ``entry.json``, locks the byte of the generation that it names, and only then looks whether the tarball is
there.  It is: from now on, until C ends, it stays, since E asks for the same byte.  It is not, or E has the byte: a
miss.  C goes to build, and there waits until E is done, on the byte of the hash, which E holds all the while.

E locks the byte of the hash: nobody builds it or is about to.  Then those of its generations: nobody uses one.  If any
is refused, E lets go and takes the next victim.  Otherwise one ``rename`` moves the whole entry out of sight, and the
bytes are free again.  E killed before the rename has done nothing; after it, what is left lies in ``tmp/dead-…``, which
anybody may remove (see scratch.py).  F, who collects at the same time, is refused what E has just locked, and finds
nothing afterwards.

B builds: it shares the byte of its hash, and that of the layers, until its entry is there.  Layers that no entry names
are removed only by who has the latter alone, so that no layer goes between B's finding it and B's packing it.

Where the file system has no such locks, or the file cannot be made, using works as ever and is not known to anybody;
collectors then leave alone what was of use in the last ``GRACE`` seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from poncho_wq.scratch import disk_error

FILE_NAME = "in-use"
# Where locks do not work: how long after its last use something may still be in use. In seconds.
GRACE = 24 * 3600.0

# struct flock: type, whence, start, length, pid (which must be 0 for locks of an open file).
_FLOCK = "hhqqi4x"
_SPAN = 1 << 61
LAYERS = 2 * _SPAN
COLLECTOR = 2 * _SPAN + 1


def generation_byte(generation: str) -> int:
    """The byte of a generation, whose name is at most 16 hexadecimal digits at random."""
    return int(generation[:16], 16) % _SPAN


def hash_byte(spec_hash: str) -> int:
    """The byte of a hash.  That two of them share one is as good as impossible, and would only delay a collector."""
    return _SPAN + int(spec_hash[:16], 16) % _SPAN


def keep(home: Path, generation: str) -> bool:
    """This process uses a generation of the cache ``home`` from now on, until it ends.

    False when somebody is just removing it.  True means that it stays if it is there now, or that the file system
    cannot tell.
    """
    path = os.fspath(home)
    with _guard:
        kept = _kept.get(path)
        try:
            if kept is None or kept.is_gone():
                _close_those_gone()
                kept = _kept[path] = _Kept(_open(home))
            if generation not in kept.names:
                if not _lock(kept.handle, fcntl.F_RDLCK, generation_byte(generation)):
                    return False
                kept.names.add(generation)
        except (OSError, ValueError):
            pass
    return True


@contextlib.contextmanager
def building(home: Path, spec_hash: str) -> Iterator[None]:
    """Nobody removes the entry of a hash, or any layer, during the block.  Waits for who is doing it just now."""
    handle = -1
    try:
        try:
            handle = _open(home)
            _lock(handle, fcntl.F_RDLCK, hash_byte(spec_hash), wait=True)
            _lock(handle, fcntl.F_RDLCK, LAYERS, wait=True)
        except OSError:
            pass
        yield
    finally:
        if handle >= 0:
            os.close(handle)


class Claims:
    """What a collector has to itself.  ``locks`` is False where nobody can tell what is in use.  ``any_used``
    says whether anything was when this was opened.

    ``writable=False`` only asks: nothing is made or locked.  Raises ``CacheError`` when the cache is read-only.
    """

    def __init__(self, home: Path, *, writable: bool = True) -> None:
        self.locks = True
        self.any_used = False
        self._handle = -1
        try:
            how = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
            self._handle = os.open(home / FILE_NAME, how | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return  # nobody has ever said so, hence nobody uses anything
        except OSError as error:
            if writable:
                raise disk_error(error, home, "nothing can be removed here") from error
            self.locks = False
            return
        try:
            self.any_used = self._asked(0, LAYERS)
        except OSError:
            self.locks = False

    def close(self) -> None:
        """Let go of everything."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_used(self, byte: int) -> bool:
        """Whether any process uses it, as of now; whoever removes it must ``claim`` it."""
        return self.locks and self._handle >= 0 and self._asked(byte, 1)

    def claim(self, byte: int) -> bool:
        """Have it alone, if nobody uses it; without waiting.  True where locks do not work."""
        if not self.locks:
            return True
        try:
            return _lock(self._handle, fcntl.F_WRLCK, byte)
        except OSError:
            self.locks = False
            return True

    def let_go(self, byte: int) -> None:
        """The opposite of ``claim``."""
        with contextlib.suppress(OSError):
            _lock(self._handle, fcntl.F_UNLCK, byte)

    def let_go_of_all(self) -> None:
        """The opposite of every ``claim`` so far, at the price of one."""
        with contextlib.suppress(OSError):
            _lock(self._handle, fcntl.F_UNLCK, 0, length=0)

    def _asked(self, start: int, length: int) -> bool:
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(self._handle, fcntl.F_OFD_GETLK, request)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


class _Kept:
    """What this process uses of one cache."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.names: set[str] = set()

    def is_gone(self) -> bool:
        """Whether the cache was removed."""
        return os.fstat(self.handle).st_nlink == 0


def _close_those_gone() -> None:
    """Locks in a cache that was removed protect nothing; open files are few."""
    for path in [path for path, kept in _kept.items() if kept.is_gone()]:
        os.close(_kept.pop(path).handle)


_guard = threading.Lock()
_kept: dict[str, _Kept] = {}


def _after_fork() -> None:
    """A child has the open files of its parent, and so its locks; but perhaps a thread held the guard."""
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _open(home: Path) -> int:
    """The file, made where it is missing and can be made.  To share a lock, reading it is enough."""
    path = home / FILE_NAME
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(handle: int, kind: int, byte: int, *, length: int = 1, wait: bool = False) -> bool:
    """False when somebody else's lock is in the way; a ``length`` of 0 is up to the end, wherever that may be.

    Raises ``OSError`` where locks do not work.
    """
    request = struct.pack(_FLOCK, kind, os.SEEK_SET, byte, length, 0)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):  # EAGAIN and EACCES: POSIX allows both
        return False
    return True
