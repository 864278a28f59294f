"""The warm server and its children; part of the runner's program, whose names it uses.  See ``warm/__init__.py``."""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from poncho_wq.warm.child import ENDED, NOTHING, _live, _refresh, _rehearse
    from poncho_wq.warm.children import _Children
    from poncho_wq.warm.fitness import UNFIT, _can_fork, _is_fit, _shared_state
    from poncho_wq.warm.order import _TEMPORARY, _close, _content, _Odd, _order, _Start, _streams
    from poncho_wq.warm.settling import _first_use, _Generators, _Hooks
    from poncho_wq.warm.starting import ANY, unfit

SLOTS = 64
# Seconds without a task after which the server ends, and between looks at what no descriptor tells.
IDLE_VARIABLE = "PONCHO_WARM_IDLE"
IDLE = 120.0
LOOK = 2.0
# Seconds that imports, or one request, may take; who takes longer is ended by SIGALRM, and tasks run fresh.
IMPORT_LIMIT = 120
REQUEST_LIMIT = 60
# Megabytes that the idle server may have in memory.
MEMORY_VARIABLE = "PONCHO_WARM_MEMORY"
MEMORY = 1024
# After which CPython has replaced what it does often by what is cheaper, which all children have then.
TIMES = 16


class _Task:
    """A client, and the child that works for it."""

    __slots__ = ("child", "childfd", "client", "clientfd", "slot")

    def __init__(self, client: int, clientfd: int, slot: int) -> None:
        self.client, self.clientfd, self.slot = client, clientfd, slot
        self.child = 0
        self.childfd = -1


def serve(home: str, workspace: str, parent: int, modules: list[str]) -> None:
    """The server's whole life; ends the process."""
    # What a library does with temporary files when it is imported must not be in the directory of the first task.
    for name in _TEMPORARY:
        os.environb[name] = home.encode()
    server = _Server(home, workspace, parent)
    try:
        if server.may_import(modules) and server.learn(modules) and server.settle():
            server.publish()
            server.run()
    finally:
        # A child that has left files open comes by here on its way to the interpreter's ordinary end.
        if not server.is_child:
            server.end()
            os._exit(0)


class _Server:
    def __init__(self, home: str, workspace: str, parent: int) -> None:
        self.home, self.workspace = home, workspace
        self.place = f"{home}/{os.getpid()}"
        self.prefix = os.environ["PONCHO_PREFIX"]
        # A child imports nothing for itself: that would cost it as much as all the rest.
        import gc
        import marshal

        self.gc, self.marshal = gc, marshal
        self.start = _Start(self.prefix)
        self.lock = 3  # held for as long as this process lives
        self.parent = os.pidfd_open(parent)
        self.requests = -1
        self.replies: list[int] = []
        self.said = _shared_bytes(SLOTS)
        self.seen: set[bytes] = set()
        self.imported: set[str] = set()
        self.used_first: set[str] = set()
        self.hooks = _Hooks()
        self.generators = _Generators()
        self.tasks: dict[int, _Task] = {}
        self.poll = select.poll()
        self.children = _Children(self.live, self.poll)
        self.leaving = self.is_child = False
        self.used = time.monotonic()
        self.served = self.refused = 0
        self.buffer = b""
        self.reported = -1
        self.own = _shared_state()

    # -- before the first task

    def may_import(self, modules: list[str]) -> bool:
        """Whether none of them is known not to survive a fork."""
        no = unfit(self.home)
        known = [name for name in modules if name.partition(".")[0] in UNFIT]
        if known and not no.issuperset(known):
            self.condemn(known)
        return not (known or ANY in no or no & set(modules))

    def learn(self, modules: list[str]) -> bool:
        """Import modules; False when this process is no longer fit to be forked.  Failures are the task's to report."""
        for name in modules:
            if name in self.imported:
                continue
            self.imported.add(name)
            signal.alarm(IMPORT_LIMIT)
            try:
                __import__(name)
            except ModuleNotFoundError as missing:
                # The function may do without; and it did nothing to this process.
                if missing.name != name:
                    self.condemn([name])
                    return False
            except BaseException:
                # A task that needs it says so better.  But what it did to this process, nobody knows.
                self.condemn([name])
                return False
            signal.alarm(0)
            # After each, so that it is known which one it was.
            if not _is_fit(self.own) or _megabytes() > _number(MEMORY_VARIABLE, MEMORY):
                self.condemn([name])
                return False
        return True

    def settle(self) -> bool:
        """Be ready to be forked often: what there is now is not to be looked at, and so copied, by every child."""
        signal.alarm(IMPORT_LIMIT)
        _first_use(self.used_first)
        signal.alarm(0)
        try:
            self.generators.settled()
            for _ in range(TIMES):
                _refresh(self.generators)
                _rehearse()
        except Exception:
            # Something that was imported has changed Python so that no child could.
            self.condemn([ANY])
            return False
        self.start.settled()
        self.gc.collect()
        self.gc.freeze()
        self.gc.disable()
        if _is_fit(self.own) and _can_fork():
            return True
        self.condemn([ANY])
        return False

    def condemn(self, modules: list[str]) -> None:
        """Note that no later server of this directory shall import these."""
        with open(self.home + "/unfit", "a", encoding="utf-8") as file:
            file.write("".join(name + "\n" for name in modules))

    def publish(self) -> None:
        """Make the FIFOs, and then the pointer to them."""
        os.mkdir(self.place, 0o700)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        for name in ("requests", *(f"reply.{slot}" for slot in range(SLOTS))):
            os.mkfifo(f"{self.place}/{name}", 0o600)
            fd = os.open(f"{self.place}/{name}", flags)
            if name == "requests":
                self.requests = fd
            else:
                self.replies.append(fd)
        for fd in (self.requests, self.parent):
            self.poll.register(fd, select.POLLIN)
        self.report()
        partial = f"{self.place}/cur"
        with open(partial, "w", encoding="utf-8") as file:
            file.write(os.path.basename(self.place) + "\n")
        os.rename(partial, self.home + "/cur")

    def report(self) -> None:
        """What there is to know about this server, for who looks."""
        if self.reported == self.served + self.refused:
            return
        self.reported = self.served + self.refused
        limit = _number(MEMORY_VARIABLE, MEMORY)
        text = (
            f"poncho-warm 1 pid={os.getpid()} megabytes={_megabytes():.0f} limit={limit:.0f} "
            f"served={self.served} refused={self.refused} modules={','.join(sorted(self.imported)) or '-'}\n"
        )
        with open(self.place + "/status", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(self.place + "/status", self.home + "/status")

    # -- tasks

    def run(self) -> None:
        """Serve until there is a reason not to."""
        looked = time.monotonic()
        while not (self.leaving and not self.tasks):
            asked = False
            for fd, _ in self.poll.poll(LOOK * 1000):
                if fd == self.parent:
                    return
                if fd == self.requests:
                    asked = True
                elif fd in self.tasks:
                    self.look_after(fd)
                elif self.children.spare is not None and fd == self.children.spare.fd:
                    self.children.forget()
            if asked:
                # Last: it opens descriptors, whose numbers others had for which there was something to say.
                self.read()
            if not self.leaving:
                self.children.have_spare()
            now = time.monotonic()
            if self.tasks:
                self.used = now
            if now - looked >= LOOK:
                looked = now
                if not self.is_wanted(now):
                    self.leave()

    def is_wanted(self, now: float) -> bool:
        """What no descriptor tells."""
        try:
            with open(self.home + "/cur", encoding="utf-8") as file:
                mine = file.read().strip() == str(os.getpid())
                if mine and now - self.used < LOOK:
                    os.utime(file.fileno())  # by which the least recently used one is found
            self.sweep()
            self.report()
        except OSError:
            return False
        return (
            mine
            and now - self.used < _number(IDLE_VARIABLE, IDLE)
            and _megabytes() <= _number(MEMORY_VARIABLE, MEMORY)
            and self.environment_is_there()
        )

    def environment_is_there(self) -> bool:
        """Whether nobody has removed it from the worker's disk."""
        return os.path.exists(self.prefix + "/poncho/ready")

    def sweep(self) -> None:
        """Free the slots of those who died before they were heard."""
        busy = {task.slot for task in self.tasks.values()}
        for slot in range(SLOTS):
            path = f"{self.place}/claim.{slot}"
            if slot in busy:
                continue
            try:
                if time.time() - os.stat(path).st_mtime < 2 * LOOK:
                    continue
                with open(path, encoding="utf-8") as file:
                    pid = int(file.read() or "0")
                if not os.path.exists(f"/proc/{pid}"):
                    self.free(slot)
            except (FileNotFoundError, ValueError):
                continue

    def read(self) -> None:
        try:
            self.buffer += os.read(self.requests, 65536)
        except BlockingIOError:
            return
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            signal.alarm(REQUEST_LIMIT)
            try:
                self.handle(line.split(b" "))
            except (OSError, ValueError, IndexError):
                # Not one of our clients' lines, or one whose client has gone; another sees the end of its FIFO.
                pass
            finally:
                signal.alarm(0)

    def handle(self, words: list[bytes]) -> None:
        """``run PID SLOT FUNCTION ARGUMENTS RESULT [CODE]`` or ``free PID SLOT``."""
        client, slot = int(words[1]), int(words[2])
        if not 0 <= slot < SLOTS or self.claimed_by(slot) != client:
            return
        if words[0] == b"free":
            self.free(slot)
            return
        self.used = time.monotonic()
        task = _Task(client, os.pidfd_open(client), slot)
        fds = [task.clientfd]
        try:
            if self.leaving or not self.environment_is_there() or not self.know(client, words[3]):
                raise _Odd("leaving, or unfit for the function")
            order = _order(client, self.start)
            fds += _streams(client, task.clientfd, self.start.getfd)
            order["slot"], order["words"] = slot, [word.decode() for word in words[3:]]
            self.said[slot] = NOTHING
            child = self.children.sent(self.marshal.dumps(order), fds)
        except (OSError, ValueError, _Odd) as odd:
            self.note(odd)
            self.refuse(task)
            _close(fds)
            return
        _close(fds[1:])
        child.line.close()
        task.child, task.childfd = child.pid, child.fd
        for fd in (task.childfd, task.clientfd):
            self.tasks[fd] = task
            self.poll.register(fd, select.POLLIN)

    def live(self, line: socket, ours: int) -> None:
        """In a child: what it does.  Never returns."""
        self.is_child = True
        _live(self, line, max(ours, self.parent, self.requests, *self.replies, *self.tasks))

    def note(self, odd: BaseException) -> None:
        """The last reason for a task to run fresh, for who looks."""
        with open(self.home + "/refused", "w", encoding="utf-8") as file:
            file.write(f"{type(odd).__name__}: {odd}\n")

    def know(self, client: int, function: bytes) -> bool:
        """Import what a function's file names, when it comes for the first time."""
        if function in self.seen:
            return True
        if b"/" in function:
            return False
        with open(f"/proc/{client}/cwd/".encode() + function, "rb") as file:
            modules = file.readline(4096).decode().split()[3:]
        if not self.may_import(modules):
            return False
        if self.imported.issuperset(modules):
            self.seen.add(function)
            return True
        self.children.forget()
        # Clients and children come and go.
        self.own = _shared_state()
        if not (self.learn(modules) and self.settle()):
            # Tasks of other functions find another server.
            self.leave()
            return False
        self.seen.add(function)
        return True

    def look_after(self, fd: int) -> None:
        """A child has ended, or a client."""
        task = self.tasks[fd]
        if fd == task.clientfd:
            self.poll.unregister(fd)
            del self.tasks[fd]
            os.close(fd)
            task.clientfd = -1
            if task.childfd < 0:
                self.free(task.slot)
                return
            if self.said[task.slot] == ENDED:
                return  # and will be gone in a moment
            # The child is not reaped yet, so that its group cannot be another's.
            self.kill(task)
            return
        ended = os.waitid(os.P_PID, task.child, os.WEXITED | os.WNOHANG)
        if ended is None:
            return
        self.poll.unregister(fd)
        del self.tasks[fd]
        os.close(fd)
        task.childfd = -1
        if self.said[task.slot] == NOTHING:
            self.refuse(task)
        else:
            self.served += 1
            how = "exit" if ended.si_code == os.CLD_EXITED else "signal"
            # Also where the child has said it: it may have been killed while it did. A client hears one.
            self.reply(task, f"{how} {ended.si_status}")
        if task.clientfd < 0:
            self.free(task.slot)

    def kill(self, task: _Task) -> None:
        try:
            group = os.getpgid(task.child)
        except OSError:
            group = 0
        for kill, target in ((os.killpg, group), (os.kill, task.child)):
            try:
                if target in (task.client, task.child):
                    kill(target, signal.SIGKILL)
            except OSError:
                pass

    def refuse(self, task: _Task) -> None:
        self.refused += 1
        self.reply(task, "fresh 0")

    def reply(self, task: _Task, words: str) -> None:
        try:
            os.write(self.replies[task.slot], f"{task.client} {words}\n".encode())
        except OSError:
            pass

    def claimed_by(self, slot: int) -> int:
        return int(_content(f"{self.place}/claim.{slot}"))

    def free(self, slot: int) -> None:
        """Let the next client have a slot, with nothing in its FIFO."""
        for fd in [fd for fd, task in self.tasks.items() if task.slot == slot]:
            if self.tasks[fd].childfd >= 0:
                return
            self.poll.unregister(fd)
            del self.tasks[fd]
            os.close(fd)
        try:
            while os.read(self.replies[slot], 4096):
                pass
        except BlockingIOError:
            pass
        os.unlink(f"{self.place}/claim.{slot}")

    # -- the end

    def leave(self) -> None:
        """Take no more tasks; those that run are looked after to their end."""
        if not self.leaving:
            self.leaving = True
            self.children.forget()
            self.unpublish()

    def unpublish(self) -> None:
        try:
            with open(self.home + "/cur", encoding="utf-8") as file:
                if file.read().strip() == os.path.basename(self.place):
                    os.unlink(self.home + "/cur")
        except OSError:
            pass

    def end(self) -> None:
        """Kill what runs, and remove what is ours."""
        self.children.forget()
        for task in set(self.tasks.values()):
            if task.childfd >= 0:
                self.kill(task)
        self.unpublish()
        try:
            # By one step, so that no client makes a file where a FIFO was.
            os.rename(self.place, self.place + ".gone")
            for name in os.listdir(self.place + ".gone"):
                os.unlink(f"{self.place}.gone/{name}")
            os.rmdir(self.place + ".gone")
        except OSError:
            pass


def _shared_bytes(size: int) -> Any:
    import mmap

    return mmap.mmap(-1, size)


def _megabytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _number(variable: str, default: float) -> float:
    """What the worker's owner says; a worker's variables are its tasks'."""
    try:
        return float(os.environ.get(variable) or default)
    except ValueError:
        return default
