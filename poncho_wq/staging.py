"""The files that waiting tasks need on this machine: one private directory for each process, gone when it ends.

``SharedFile``: content-addressed, one for any number of tasks, such as a pickled function.  ``OwnFile``: one task's,
such as its result.  Both unlink their file when the last object that refers to it goes.  Content is part of every name,
since Work Queue knows a cached file by its path: another content under the same path would never be sent.

A forked child gets a directory of its own, and never removes a file of its parent.

A process that is killed removes nothing: A makes its directory, and locks a file in it that only then is called
``.owner``.  A is killed, and the kernel lets go of the lock.  B, when it makes a directory of its own, tries the
``.owner`` of every other of this user; it gets A's, so nobody uses that directory, and removes it.  Of C, who has just
made his and has no ``.owner`` yet, and of D, who lives, it gets none.  A forked child of A that lives on holds the lock
with its copy of the descriptor.  What another machine has made, or this one before it was started anew, is nobody's to
judge: some network file systems keep locks to themselves.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

from poncho_wq.errors import EngineError

# Enough that two contents never meet under one name in a process, short enough to read in a listing.
DIGEST_LENGTH = 16

_lock = threading.RLock()
# Another object in a forked child, whatever its text.
_directory: str | None = None
_shared: weakref.WeakValueDictionary[str, SharedFile] = weakref.WeakValueDictionary()
_links: dict[str, str] = {}
_numbers = itertools.count(1)


class OwnFile:
    """A path in the staging directory that belongs to whoever holds this object.  The file need not exist."""

    __slots__ = ("_directory", "name")

    def __init__(self, suffix: str, content: bytes | None = None) -> None:
        self._directory = _directory or directory()
        self.name = f"{next(_numbers)}{suffix}"
        if content is not None:
            _write(Path(self.path), content)

    @property
    def path(self) -> str:
        """The file on this machine."""
        # Made when asked for: thousands of them may wait.
        return f"{self._directory}/{self.name}"

    def remove(self) -> None:
        """Unlink the file now."""
        if self._directory is _directory:
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def __del__(self) -> None:
        # At interpreter exit modules may be half gone; the directory is removed whole then.
        try:
            self.remove()
        except Exception:
            pass


class SharedFile:
    """A file named by its content.  Get one with ``share``."""

    __slots__ = ("__weakref__", "_own", "digest", "name")

    def __init__(self, name: str, digest: str, content: bytes) -> None:
        self.name = name
        self.digest = digest
        # A number of its own besides: a task may die, and its file with it, just while the same content comes again.
        self._own = OwnFile(f"-{name}", content)

    @property
    def path(self) -> str:
        """The file on this machine."""
        return self._own.path


def share(prefix: str, content: bytes, suffix: str = "") -> SharedFile:
    """The file ``PREFIX-DIGESTSUFFIX`` with this content, written once while anyone refers to it.

    Raises ``EngineError`` when it cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    name = f"{prefix}-{digest}{suffix}"
    with _lock:
        found = _shared.get(name)
        if found is None:
            found = SharedFile(name, digest, content)
            _shared[name] = found
        return found


def link(name: str, target: Path) -> str:
    """Another path for ``target``, called ``name``: the same file by a path that holds its content hash.

    A hard link where that can be made, so that the cache may drop the file while tasks wait for it; else a symbolic
    one.  It stays for as long as the process does.  Raises ``EngineError`` when it cannot be made.
    """
    with _lock:
        path = _links.get(name)
        if path is not None and _same_file(path, target):
            return path
        path = os.path.join(directory(), name)
        fresh = f"{path}.{next(_numbers)}"
        try:
            try:
                os.link(target.resolve(), fresh)
            except OSError:
                os.symlink(target.resolve(), fresh)
            os.replace(fresh, path)
        except OSError as error:
            raise _cannot_write(error) from error
        _links[name] = path
        return path


def cut(name: str, source: Path, pieces: Iterable[tuple[int, int]]) -> str:
    """A file called ``name`` of pieces of ``source``, each (offset, length), written once, for as long as the process
    lives.

    Its content must follow from its name.  Raises ``EngineError`` when it cannot be written.
    """
    with _lock:
        path = os.path.join(directory(), name)
        if _links.get(name) == path and os.path.exists(path):
            return path
        fresh = f"{path}.{next(_numbers)}"
        try:
            with source.open("rb", buffering=0) as there, open(fresh, "xb", buffering=0) as here:
                for offset, length in pieces:
                    done = 0
                    while done < length:
                        step = os.sendfile(here.fileno(), there.fileno(), offset + done, length - done)
                        if not step:
                            raise OSError(errno.EIO, "is cut short", str(source))
                        done += step
            os.replace(fresh, path)
        except OSError as error:
            Path(fresh).unlink(missing_ok=True)
            raise _cannot_write(error) from error
        _links[name] = path
        return path


def _same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def directory() -> str:
    """This process's staging directory, made when first asked for, readable by this user only.

    Raises ``EngineError`` when it cannot be made.
    """
    global _directory
    with _lock:
        if _directory is None:
            try:
                made = Path(tempfile.mkdtemp(prefix=f"poncho-{os.getpid()}-"))
                _sweep(made.parent)
                _sign(made)
            except OSError as error:
                raise _cannot_write(error) from error
            atexit.register(_remove, made, os.getpid())
            _directory = str(made)
        return _directory


_OWNER = ".owner"
_NAME = re.compile(r"poncho-[0-9]+-[^/.]+")


def _sign(directory: Path) -> None:
    """Hold the lock that says that somebody uses the directory, for as long as this process lives."""
    unnamed = directory / f"{_OWNER}.new"
    descriptor = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks: without that file nobody removes it but we
        os.close(descriptor)
        unnamed.unlink()
        return
    os.write(descriptor, _boot())
    unnamed.rename(directory / _OWNER)


def _boot() -> bytes:
    """Which start of which machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return b"unknown"


def _sweep(parent: Path) -> None:
    """Remove what processes of this user have left that were killed."""
    me = os.geteuid()
    with os.scandir(parent) as entries:
        found = [Path(each.path) for each in entries if _NAME.fullmatch(each.name)]
    for each in found:
        try:
            facts = each.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != me:
                continue
            owner = os.open(each / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(owner, 100) == _boot():
                    shutil.rmtree(each, ignore_errors=True)
            finally:
                os.close(owner)
        except OSError:
            continue  # in use, or gone


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _cannot_write(error) from error


def _cannot_write(error: OSError) -> EngineError:
    return EngineError(
        f"cannot write the files of a task: {error.filename or tempfile.gettempdir()}: {error.strerror or error}",
        advice="free some space there, or set TMPDIR to a directory with more",
    )


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)


def _forget() -> None:
    """In a forked child: the directory and the files in it are the parent's."""
    global _directory, _lock, _shared
    _lock = threading.RLock()
    _directory = None
    _shared = weakref.WeakValueDictionary()
    _links.clear()


os.register_at_fork(after_in_child=_forget)
