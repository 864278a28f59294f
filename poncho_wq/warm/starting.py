"""How the first task starts the server; part of the runner's program.  See ``warm/__init__.py``."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Servers of one worker, one for each environment, number of threads and group of packages.
MOST_SERVERS = 8
# A name that stands for every module, in the list of those that no server may import.
ANY = "*"


def start_server(home: str, program: str, workspace: str, modules: Sequence[str]) -> bool:
    """Start a server for the directory ``home``, unless there is one; False when there is none to be had.

    ``program`` is the runner's file, ``modules`` what to import.  Never raises: the task matters, the server does not.
    """
    if not hasattr(os, "pidfd_open") or os.path.exists(home + "/cur"):
        return False
    try:
        return _start(home, program, workspace, modules)
    except Exception:
        return False


def unfit(home: str) -> set[str]:
    """The modules that no server of this directory may import; ``ANY`` when there may be no server."""
    try:
        with open(home + "/unfit", encoding="utf-8") as file:
            return set(file.read().split())
    except OSError:
        return set()


def _start(home: str, program: str, workspace: str, modules: Sequence[str]) -> bool:
    import fcntl

    parent = os.getppid()
    if parent == 1:
        return False  # the worker has gone
    try:
        os.mkdir(home, 0o700)
    except FileExistsError:
        pass
    if os.stat(home).st_uid != os.getuid() or os.stat(home).st_mode & 0o077:
        return False
    no = unfit(home)
    if ANY in no or no & set(modules):
        return False
    lock = os.open(home + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False  # another task starts one
    try:
        _make_room(os.path.dirname(home))
        # Nothing of the server's may lie in the task's directory, which goes with the task.
        copy = home + "/" + os.path.basename(program)
        with open(program, "rb") as file, open(copy + ".new", "wb") as target:
            target.write(file.read())
        os.replace(copy + ".new", copy)
        argv = [sys.executable, "-s", copy, "--serve", home, workspace, str(parent), *modules]
        _spawn(argv, home, lock)
    finally:
        os.close(lock)
    return True


def _make_room(workspace: str) -> None:
    """Take the pointers to all but the most recently used servers away, which end when they see that."""
    used = []
    for name in os.listdir(workspace):
        if name.startswith("poncho-warm-"):
            try:
                used.append((os.stat(f"{workspace}/{name}/cur").st_mtime, name))
            except OSError:
                pass  # it has none
    used.sort(reverse=True)
    for _, name in used[MOST_SERVERS - 1 :]:
        try:
            os.unlink(f"{workspace}/{name}/cur")
        except OSError:
            pass  # another task was quicker


def _spawn(argv: list[str], home: str, lock: int) -> None:
    """As nobody's child, in its own process group, with the lock as its only descriptor from 3 up."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork():
            os._exit(0)
        os.setpgid(0, 0)
        os.chdir(home)
        os.umask(0o077)
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        # The lock as 3; a worker's tasks inherit its connection to the manager, which must end with the worker.
        os.dup2(lock, 3)
        os.set_inheritable(3, True)  # which it is not when it was 3 already
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 3:
                try:
                    os.close(int(name))
                except OSError:
                    pass
        # As this process was given it: Python itself may have changed it since (LC_CTYPE, PEP 538).
        with open("/proc/self/environ", "rb") as file:
            environ = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        os.execve(argv[0], argv, environ)
    finally:
        os._exit(127)
