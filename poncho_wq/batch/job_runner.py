"""Runs on the worker: the steps of one job in one home, and what they leave → one file.

    python3 poncho-job-runner.py JOB.json RESULT.tar

The standard library only, Python 3.7 or later.  JOB.json is made by ``poncho_wq.batch.tasks``.  RESULT.tar, written
whole or not at all, holds ``result.json``, ``stdout.txt`` and ``stderr.txt`` of the steps, and below ``files/`` the
outputs, which are collected whatever became of the steps.  The exit status is 0 whenever there is a RESULT.tar: how the
job ended is in it.

``result.json``: ``outcome`` is ``ended`` (every step that was to run has; look at ``steps``), ``walltime`` (they were
ended by the limit) or ``inputs`` (they could not begin; ``problem`` says why); ``missing`` are patterns of required
outputs that matched nothing, ``problem`` also tells of outputs that could not be collected.  A step's ``exit_code`` is
None when ``signal`` ended it.

Story.  Everything that steps start stays below this process (it is their *subreaper*) and holds the job's lock open.
Should this process lose its parent, because a manager or a worker was killed, it ends them all and itself, so that a
manager that resumes the batch waits for the lock and then knows that nothing of the job runs any more.  A process group
of their own they do not get: the worker ends a task by its group.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

TICK = 0.5  # seconds between looks at the parent
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


class Problem(Exception):
    """Something around the steps went wrong; the message is for the user."""


class Running:
    """A job that runs: what a companion (see ``_attach``) is handed.  Paths are absolute."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.sandbox = os.getcwd()
        self.home = os.path.join(self.sandbox, "home")
        self.stdout = os.path.join(self.sandbox, "stdout.txt")
        self.stderr = os.path.join(self.sandbox, "stderr.txt")
        self.lock = None  # type: int | None

    def environ(self, step: dict[str, Any] | None = None) -> dict[str, str]:
        """The variables of a step, or of a command that joins the job."""
        job = self.job
        facts = dict(job["facts"], home=self.home, host=socket.gethostname())
        environ = dict(os.environ, PONCHO_JOB_HOME=self.home)
        for name, fact in job["exports"].items():
            environ[name] = str(facts[fact])
        environ.update((step or {}).get("env", {}))
        return environ

    def command(self, step: dict[str, Any]) -> list[str]:
        """What is executed: the step's words, behind the wrapper where it has an environment of its own."""
        own = step.get("environment")
        words = [*step.get("inside", ()), *step["argv"]]
        if not own:
            return words
        # Shared by the worker's tasks where the engine has such a place.
        shared = os.environ.get("WORK_QUEUE_SANDBOX") or os.path.join(self.sandbox, "environments")
        parts = [word for name in own["parts"] for word in ("-e", os.path.join(self.sandbox, name))]
        if own["ranges"]:
            parts += ["--ranges", own["ranges"]]
        return [
            "/bin/sh", os.path.join(self.sandbox, own["wrapper"]), *parts, "--id", own["identity"],
            "--unpack-to", os.path.join(shared, "poncho-env-" + own["identity"][:32]), "--", *words,
        ]  # fmt: skip

    def start(self, step: dict[str, Any], stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        """Start a command in the job.  Raises ``OSError`` when there is no such command."""
        place = os.path.join(self.home, step.get("cwd", "."))
        os.makedirs(place, exist_ok=True)
        return subprocess.Popen(
            self.command(step), cwd=place, env=self.environ(step), stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=stderr, pass_fds=() if self.lock is None else (self.lock,),
        )  # fmt: skip


class Children:
    """Waits for processes, and ends them; notices when this process has lost its parent."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        _become_subreaper()

    def wait(self, process: subprocess.Popen[bytes], deadline: float | None) -> bool:
        """Wait until it ends (True) or the deadline, of the monotonic clock, passes (False)."""
        while process.poll() is None:
            left = TICK if deadline is None else min(TICK, deadline - time.monotonic())
            if left <= 0:
                return False
            self.sleep(left)
        return True

    def sleep(self, seconds: float) -> None:
        """For so long, or until some process ends."""
        if select.select([self._read], [], [], seconds)[0]:
            os.read(self._read, 4096)
        if os.getppid() != self._parent:
            self.end_all(grace=0)
            os._exit(1)

    def end_all(self, grace: float = GRACE) -> None:
        """End everything below this process: SIGTERM, and SIGKILL for what is left after ``grace`` seconds."""
        _signal_all(signal.SIGTERM)
        until = time.monotonic() + grace
        pause = 0.01
        while _descendants():
            if time.monotonic() >= until:
                # New ones may be born between two looks.
                _signal_all(signal.SIGKILL)
            time.sleep(pause)
            pause = min(0.1, pause * 2)


def _become_subreaper() -> None:
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # then a daemon that a step leaves behind is only found by its process group


def _descendants() -> list[int]:
    """The living processes below this one, or in the process group that it leads; not itself, nor those above it."""
    me, group = os.getpid(), os.getpgid(0)
    parents, groups = {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/" + name + "/stat", "rb") as file:
                # The command's name, in parentheses, may hold anything.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            parents[int(name)] = int(fields[1])
            groups[int(name)] = int(fields[2])
    above, at = set(), me
    while at and at not in above:
        above.add(at)
        at = parents.get(at, 0)
    found = []
    for pid in parents:
        if pid in above:
            continue
        at, seen = pid, set()
        while at not in (0, 1, me) and at not in seen:
            seen.add(at)
            at = parents.get(at, 0)
        if at == me or groups[pid] == group == me:
            found.append(pid)
    return found


def _signal_all(number: int) -> None:
    for pid in _descendants():
        try:
            os.kill(pid, number)
        except OSError:
            pass


def main(argv: list[str]) -> int:
    """Run one job; returns the exit status."""
    with open(argv[0], encoding="utf-8") as file:
        job = json.load(file)
    running = Running(job)
    children = Children()
    signal.signal(signal.SIGTERM, lambda number, frame: _terminated(children))
    started = time.time()
    result = {"format": 1, "outcome": "ended", "problem": None, "steps": [], "missing": []}  # type: dict[str, Any]
    companion = None
    try:
        running.lock = _take_lock(job.get("lock"))
        _prepare(running)
        companion = _attach(running)
        _run_steps(running, children, result)
    except Problem as problem:
        result.update(outcome="inputs", problem=str(problem))
    finally:
        if companion is not None:
            companion.close()
        children.end_all()
    result.update(
        host=socket.gethostname(), worker=os.path.basename(os.environ.get("WORK_QUEUE_SANDBOX", "")),
        started=started, ended=time.time(),
    )  # fmt: skip
    _leave(running, result, argv[1])
    return 0


def _terminated(children: Children) -> None:
    children.end_all(grace=1)
    os._exit(128 + signal.SIGTERM)


def _take_lock(given: list[str] | None) -> int | None:
    """Hold the job's lock file open, where it is of this machine."""
    if not given:
        return None
    boot, path = given
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            if file.read().strip() != boot:
                return None
        import fcntl

        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None  # another machine, or a container that does not see the path
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Problem("an earlier attempt of this job still runs on this machine") from None
    return lock


# -- before


def _prepare(running: Running) -> None:
    """The home with its inputs, in their order; copies, since tasks of one worker share what the engine brought."""
    home = running.home
    open(running.stdout, "wb").close()
    open(running.stderr, "wb").close()
    os.makedirs(home)
    for item in running.job["inputs"]:
        source = os.path.join(running.sandbox, item["file"])
        try:
            # Not through a link that an archive before it has brought.
            target = home if item["name"] == "." else _place(home, item["name"])
            if item.get("unpack"):
                _unpack(source, target)
            else:
                _make_way(target)
                shutil.copyfile(source, target)
                os.chmod(target, 0o755 if item.get("executable") else 0o644)
        except Exception as error:  # whatever a damaged archive makes its reader raise
            raise Problem("the input " + item["name"] + " could not be put in place: " + str(error)) from error
    for name in running.job.get("directories", ()):
        try:
            os.makedirs(_place(home, name), exist_ok=True)
        except (OSError, ValueError) as error:  # an archive has put something else there
            raise Problem("the directory " + name + " could not be made: " + str(error)) from error


# How files begin that are compressed by themselves, and the module that reads them.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}


def _unpack(archive: str, directory: str) -> None:
    room = _Room(os.path.dirname(os.path.abspath(archive)))
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if entry.is_dir():
                    _place(directory, entry.filename + "/x")
                    continue
                with zipped.open(entry) as content:
                    _write(_place(directory, entry.filename), content, room, bool(entry.external_attr >> 16 & 0o111))
        return
    if not tarfile.is_tarfile(archive):
        with open(archive, "rb") as file:
            begin = file.read(6)
        name = next((name for magic, name in _COMPRESSED.items() if begin.startswith(magic)), None)
        if name is None or os.path.isdir(directory):
            raise ValueError("it is no tar or zip archive")
        with importlib.import_module(name).open(archive, "rb") as packed:
            _write(directory, packed, room, False)
        return
    os.makedirs(directory, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            _extract(tar, member, directory, room)


# Archives come from URLs as well as from users: nothing is written but below their directory, whatever they say.
# Python's own filters for that are not in all versions that run here.


class _Room:
    """Counts what is written, and stops while there is still room for others: an archive may unpack to anything."""

    def __init__(self, directory: str) -> None:
        disk = os.statvfs(directory)
        self._left = disk.f_bavail * disk.f_frsize * 19 // 20

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("it unpacks to more than there is room for")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: str, room: _Room) -> None:
    if member.isdir():
        _place(directory, member.name + "/x")
        return
    path = _place(directory, member.name)
    content = tar.extractfile(member) if member.isreg() else None
    if content is not None:
        _write(path, content, room, bool(member.mode & 0o111))
    elif member.issym():
        _make_way(path)
        os.symlink(member.linkname, path)  # wherever it leads: nothing is written through it
    elif member.islnk():
        source = _place(directory, member.linkname)
        if os.path.islink(source) or not os.path.isfile(source):
            raise ValueError(member.name + " is a hard link to " + member.linkname + ", which is no file of it")
        if source != path:
            _make_way(path)
            os.link(source, path)
    else:
        raise ValueError(member.name + " is a device, a pipe or something else that is no file")


def _place(directory: str, name: str) -> str:
    """Where a member goes; the directories above it are made, and none of them is a link of the archive's."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise ValueError(name + " leaves the directory")
    path = directory
    for part in ["", *parts[:-1]]:
        path = os.path.join(path, part) if part else path
        if os.path.islink(path) and path != directory:
            raise ValueError(name + " goes through a link")
        os.makedirs(path, exist_ok=True)
    return os.path.join(path, parts[-1])


def _make_way(path: str) -> None:
    if os.path.islink(path) or os.path.exists(path):
        os.unlink(path)


def _write(path: str, content: Any, room: _Room, executable: bool) -> None:
    _make_way(path)
    with open(path, "xb") as file:
        for piece in iter(lambda: content.read(1 << 20), b""):
            room.take(len(piece))
            file.write(piece)
    os.chmod(path, 0o755 if executable else 0o644)


def _attach(running: Running) -> Any:
    """The companion: a Python file that came with the job, ``attach(running)`` of which is called before the steps and
    returns an object with ``close()``.  It may talk to the manager, run commands in the job, look at its files."""
    name = running.job.get("companion")
    if not name:
        return None
    path = os.path.join(running.sandbox, name)
    spec = importlib.util.spec_from_file_location("poncho_companion", path)
    if spec is None or spec.loader is None:
        raise Problem("the companion " + name + " is no Python module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.attach(running)
    except Exception as error:
        raise Problem("the companion could not start: " + type(error).__name__ + ": " + str(error)) from error


# -- the steps


def _run_steps(running: Running, children: Children, result: dict[str, Any]) -> None:
    job = running.job
    steps = list(enumerate(job["steps"]))
    deadline = None if job["walltime"] is None else time.monotonic() + job["walltime"]
    with open(running.stdout, "ab") as stdout, open(running.stderr, "ab") as stderr:
        for index, step in steps:
            if step.get("sidecar"):
                record = _record(index)
                result["steps"].append(record)
                try:
                    running.start(step, stdout, stderr)
                except OSError as error:
                    _not_started(record, step, error, stderr)
        for index, step in steps:
            if step.get("sidecar"):
                continue
            record = _record(index)
            result["steps"].append(record)
            while True:
                in_time = _run_step(running, children, step, record, deadline, stdout, stderr)
                if not in_time:
                    result["outcome"] = "walltime"
                    return
                if record["exit_code"] == 0 or record["tries"] > job["step_retries"]:
                    break
            if record["exit_code"] != 0 and not job["ignore_step_failures"]:
                return


def _record(index: int) -> dict[str, Any]:
    return {"step": index, "exit_code": None, "signal": None, "tries": 0, "started": time.time(), "ended": None}


def _run_step(
    running: Running, children: Children, step: dict[str, Any], record: dict[str, Any], deadline: float | None,
    stdout: Any, stderr: Any,
) -> bool:  # fmt: skip
    """Run it once and note how it ended; False when the deadline passed."""
    record.update(tries=record["tries"] + 1, exit_code=None, signal=None)
    try:
        process = running.start(step, stdout, stderr)
    except OSError as error:
        _not_started(record, step, error, stderr)
        return True
    in_time = children.wait(process, deadline)
    if not in_time:
        children.end_all()
        process.wait()
    record["ended"] = time.time()
    code = process.returncode
    record["exit_code"], record["signal"] = (code, None) if code >= 0 else (None, -code)
    return in_time


def _not_started(record: dict[str, Any], step: dict[str, Any], error: OSError, stderr: Any) -> None:
    """As a shell says it: 127 for no such command, 126 for one that cannot be executed."""
    found = not isinstance(error, FileNotFoundError)
    words = error.strerror if found else "command not found"
    stderr.write((step["argv"][0] + ": " + str(words) + "\n").encode("utf-8", "surrogateescape"))
    stderr.flush()
    record.update(exit_code=126 if found else 127, ended=time.time(), tries=max(1, record["tries"]))


# -- after


def _leave(running: Running, result: dict[str, Any], path: str) -> None:
    """Write RESULT.tar.  Where outputs cannot be collected (a full disk), what is left out is said in it."""
    partial = path + ".partial"
    try:
        with tarfile.open(partial, "w", dereference=True) as tar:
            _collect(running, result, tar)
            _finish(running, result, tar)
    except OSError as error:
        result["problem"] = "outputs could not be collected: " + str(error)
        os.unlink(partial)
        with tarfile.open(partial, "w") as tar:
            _finish(running, result, tar)
    os.replace(partial, path)


def _finish(running: Running, result: dict[str, Any], tar: tarfile.TarFile) -> None:
    for name, path in (("stdout.txt", running.stdout), ("stderr.txt", running.stderr)):
        if os.path.exists(path):
            tar.add(path, name)
    text = json.dumps(result).encode()
    info = tarfile.TarInfo("result.json")
    info.size, info.mtime = len(text), int(time.time())
    tar.addfile(info, io.BytesIO(text))


def _collect(running: Running, result: dict[str, Any], tar: tarfile.TarFile) -> None:
    home, added = running.home, set()  # type: Any, set[str]
    if not os.path.isdir(home):
        return
    for output in running.job["outputs"]:
        pattern = output["pattern"]
        found = sorted(glob.glob(os.path.join(glob.escape(home), pattern), recursive=True))
        if output.get("contents"):
            found = [path for path in found if os.path.isdir(path)]
        if not found and output.get("required", True):
            result["missing"].append(pattern)
        for path in found:
            if output.get("archive") and os.path.isdir(path):
                _add_archive(running, output, path, tar, added)
            else:
                for each in _files(path):
                    name = os.path.relpath(each, path if output.get("contents") else home)
                    if name not in added:
                        added.add(name)
                        tar.add(each, "files/" + name, recursive=False)


def _files(path: str) -> Iterator[str]:
    """The regular files at or below ``path``, through links to files, and directories that are empty."""
    if not os.path.isdir(path):
        if os.path.isfile(path):
            yield path
        return
    for directory, folders, files in os.walk(path):
        folders.sort()
        if not folders and not files:
            yield directory
        for name in sorted(files):
            each = os.path.join(directory, name)
            if os.path.isfile(each):
                yield each


def _add_archive(running: Running, output: dict[str, Any], path: str, tar: tarfile.TarFile, added: set[str]) -> None:
    name = output.get("as_name") or os.path.relpath(path, running.home) + ".tar.gz"
    if name in added:
        return
    added.add(name)
    packed = os.path.join(running.sandbox, "archive.tar.gz")
    # The fastest: it crosses a local network once.
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        top = "" if os.path.samefile(path, running.home) else os.path.basename(path) + "/"
        for each in sorted(os.listdir(path)):
            if each not in output.get("exclude", ()):
                archive.add(os.path.join(path, each), top + each)
    tar.add(packed, "files/" + name)
    os.unlink(packed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
