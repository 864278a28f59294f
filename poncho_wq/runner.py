"""Runs on the worker: loads a function and its arguments, calls it, and leaves what came of it in a file.

    python3 PROGRAM [--warm HOME] FUNCTION ARGUMENTS RESULT [CODE [PLACE]]

PROGRAM is the file that ``poncho_wq.program`` makes: this module as ``__main__`` and the manager's cloudpickle under
the private name ``_poncho_cloudpickle``.  FUNCTION is a file; ARGUMENTS either ``@file`` or base64 text; CODE an
archive (zip) of the user's own modules, which is unpacked in the directory PLACE (default: here) under its own name,
once for all tasks that name the same place.  The standard library only, Python 3.7 or later: nothing of the manager's
is installed here.

``--warm HOME``: start a warm server there, unless there is one; see ``poncho_wq/warm/__init__.py``.

RESULT is a file.  ``+MARK:RESULT``: or, when the process ends with status 0, a line of stdout,
``=poncho-result= MARK BASE64``, which costs the manager and the worker much less.  A result that is too long for that,
or of a function that has put something else in the place of stdout, is in the file, and the status is 120 then.

A result is written whole or not at all.  Its first line is ``poncho-result 1 KIND A B``, then A bytes of traceback and
B bytes of message (both UTF-8), then a pickle.  Kinds, and this process's exit status:

    value     the pickle is what the function returned          0, or 120
    each      the pickle is (seconds, what became of each call)   0, or 120
    raised    the pickle is the exception, or empty if it has none     1
    exit      the function called sys.exit(); message is the argument  as Python would
    failed    message says what went wrong around the function          1

Why a private name: a pickle made by one version of cloudpickle names that version's inner functions, so it must be
loaded by the same one, whatever version (or none) the environment has for the function's own use.

What a task costs is mostly Python's start, so this does little besides: `typing`, `pathlib`, `json`, `pickle` and
`importlib` would each cost every task a few milliseconds.  Hence `_pickle`, os.path and plain text here.
"""

from __future__ import annotations

import os
import sys

if "functools" in sys.modules:
    import _pickle
else:
    # All that `_pickle` wants of functools is `partial`, which this has; importing it takes longer than all else here.
    import _functools  # type: ignore[import-not-found]

    sys.modules["functools"] = _functools
    try:
        import _pickle
    finally:
        del sys.modules["functools"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FORMAT = b"poncho-result 1 %s %d %d\n"
_LINE = b"\n=poncho-result= %s %s"
IN_FILE = 120
# Bytes of a result on stdout: the manager holds them in memory, and the worker sends them with its news.
_INLINE = 16 * 1024
# Who has written so much may have it cut.
_MOST_SAID = 1 << 26
_PRIVATE = "_poncho_cloudpickle"
# Where somebody wants to know what the task cost; `engines.statistics` has the manager's side.
_STATS = "poncho-environment-stats"


class _Loader(_pickle.Unpickler):
    """An unpickler that takes cloudpickle's own helpers from the program."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "cloudpickle.cloudpickle" and name in _lean_helpers():
            return _lean_helpers()[name]
        if module == "cloudpickle" or module.startswith("cloudpickle."):
            _provide_cloudpickle()
            module = _PRIVATE + module[len("cloudpickle") :]
        return super().find_class(module, name)


_helpers: dict[str, Any] = {}


def _lean_helpers() -> dict[str, Any]:
    """What `program.lean_cloudpickle` found, by name; nothing where this file is not run from the program."""
    if not _helpers and "_lean" in globals():
        _helpers["__name__"] = _PRIVATE + ".lean"
        exec(globals()["_lean"], _helpers)
    return _helpers


class _Whole:
    """Finds the private cloudpickle, whose code is a line of the program."""

    def __init__(self, code: dict[str, Any]) -> None:
        self.code = code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top, _, inner = name.partition(".")
        if top != _PRIVATE or (inner or "__init__") not in self.code:
            return None
        # By the names that need no import.
        return sys.modules["_frozen_importlib"].ModuleSpec(name, self, origin="poncho_wq", is_package=not inner)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(self.code[module.__name__.partition(".")[2] or "__init__"], module.__dict__)


def _provide_cloudpickle() -> None:
    if _PRIVATE not in sys.modules:
        sys.meta_path.append(_Whole(globals()["_tail"](globals()["_whole"])))
        __import__(_PRIVATE)


class _Problem(Exception):
    """Something around the function went wrong; the message is for the user."""


def main(argv: list[str]) -> int:
    """Run one task; returns the exit status."""
    if not os.path.exists(_STATS):
        return _task(argv)
    times = _Times()
    try:
        return _task(argv)
    finally:
        times.tell()


class _Times:
    """Where a task's time went, for who wants to know: a line in the file that the task's shell has begun.

    ``poncho-run 1 at=… start=… load=… import=… call=…``: the time of day at which this program began and seconds, all
    in microseconds.  ``start`` is Python's own, from the wrapper's last line to here; ``load`` that of the function and
    its arguments; ``import`` that part of load and call which was spent on imports.
    """

    def __init__(self) -> None:
        import builtins
        import time

        self.now, self.builtins, self.do_import = time.time, builtins, builtins.__import__
        self.begun = self.since = self.now()
        self.parts = {"start": max(0.0, self.begun - os.stat(_STATS).st_mtime), "import": 0.0}
        self.thread = sys.modules["_thread"].get_ident()
        self.inside = False
        builtins.__import__ = self.timed_import
        globals()["_loaded"] = lambda: self.part("load")

    def part(self, name: str) -> None:
        """What has passed since the last part was this one's."""
        now = self.now()
        self.parts[name], self.since = now - self.since, now

    def timed_import(self, *args: Any, **kwargs: Any) -> Any:
        if self.inside or sys.modules["_thread"].get_ident() != self.thread:
            return self.do_import(*args, **kwargs)
        begun, self.inside = self.now(), True
        try:
            return self.do_import(*args, **kwargs)
        finally:
            self.inside = False
            self.parts["import"] += self.now() - begun

    def tell(self) -> None:
        self.builtins.__import__ = self.do_import
        self.part("call" if "load" in self.parts else "load")
        parts = "".join(f" {name}={seconds * 1e6:.0f}" for name, seconds in self.parts.items())
        try:
            with open(_STATS, "a", encoding="ascii") as file:
                file.write(f"poncho-run 1 at={self.begun * 1e6:.0f}{parts}\n")
        except OSError:
            pass  # nobody's result depends on it


def _loaded() -> None:
    """The function is about to be called."""


def _task(argv: list[str]) -> int:
    function_file, arguments, result_file = argv[:3]
    _note_stdout()
    try:
        _set_path(*argv[3:5])
        function, given = _load(function_file, arguments)
    except _Problem as problem:
        return _leave(result_file, b"failed", _text_of(problem.__cause__), str(problem))
    except BaseException as error:
        return _leave(result_file, b"failed", _text_of(error), "could not be started: " + _one_line(error))
    _loaded()
    if type(given) is list:
        return _each(result_file, function, given)
    args, kwargs = given
    try:
        value = function(*args, **kwargs)
    except SystemExit as stop:
        return _exited(result_file, stop)
    except BaseException as error:
        return _raised(result_file, error)
    return _returned(result_file, value)


def _set_path(code: str | None = None, place: str = ".") -> None:
    """The task's own directory can be imported from, after everything else, so that no file in it hides a package."""
    if code is not None:
        directory = _unpacked(code, place)
        _refuse_shadowing(directory, sys.path)
        sys.path.append(directory)
    sys.path.append(os.getcwd())


def _unpacked(code: str, place: str) -> str:
    """The directory with what the archive holds.

    Not imported from the zip itself, where data beside a module could not be opened and extension modules not loaded.
    It gets its name by one rename when it is whole, so that whoever finds it can use it.
    """
    directory = os.path.join(os.path.abspath(place), os.path.splitext(os.path.basename(code))[0])
    if os.path.isdir(directory):
        return directory
    try:
        partial = _new_directory(directory)
        try:
            _unpack(code, partial)
            os.rename(partial, directory)
        except BaseException:
            import shutil

            shutil.rmtree(partial, ignore_errors=True)
            # Another task was quicker.
            if not os.path.isdir(directory):
                raise
    except Exception as error:
        raise _Problem("the task's local code cannot be unpacked: " + _one_line(error)) from error
    return directory


def _new_directory(directory: str) -> str:
    # Containers may share a disk and yet count their processes each by themselves.
    for number in range(10000):
        try:
            partial = f"{directory}.{os.getpid()}.{number}"
            os.mkdir(partial)
            return partial
        except FileExistsError:
            continue
    raise FileExistsError(directory)


def _unpack(code: str, directory: str) -> None:
    import zipfile

    with zipfile.ZipFile(code) as archive:
        for info in archive.infolist():
            path = archive.extract(info, directory)
            # Which zipfile leaves to others; a package may have programs among its data.
            if (info.external_attr >> 16) & 0o100:
                os.chmod(path, os.stat(path).st_mode | 0o111 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _refuse_shadowing(directory: str, path: list[str], package: str = "") -> None:
    """Refuse modules that the environment, searched at ``path``, has as well; of a namespace both may have parts."""
    from importlib.machinery import PathFinder

    for name in sorted(os.listdir(directory)):
        module, dot, _ = name.partition(".")
        if not module.isidentifier() or (dot and not name.endswith((".py", ".so"))):
            continue
        # By its last name, whatever package it is in: a dotted one would be looked for among what is imported.
        found = PathFinder.find_spec(module, path)
        if found is None:
            continue
        inner = os.path.join(directory, name)
        if found.origin is None and os.path.isdir(inner) and not os.path.exists(os.path.join(inner, "__init__.py")):
            _refuse_shadowing(inner, [os.path.join(each, module) for each in path], package + module + ".")
            continue
        raise _Problem(
            f"the module {package + module!r} is shipped with the task, but the environment has another one "
            f"({found.origin or 'a package of several parts'}); rename yours, leave that package out of the "
            "environment, or have the manager use the same package"
        )


def _load(function_file: str, arguments: str) -> tuple[Callable[..., Any], Any]:
    """The function and ``(args, kwargs)``, or a list with the positional arguments of each of several calls."""
    with open(function_file, "rb") as file:
        _check_header(file.readline())
        try:
            function = _Loader(file).load()
        except BaseException as error:
            raise _Problem("the function cannot be loaded in this environment: " + _one_line(error)) from error
    try:
        given = _load_arguments(arguments)
    except BaseException as error:
        raise _Problem("the arguments cannot be loaded in this environment: " + _one_line(error)) from error
    return function, given


def _check_header(line: bytes) -> None:
    """``poncho-function 1 3.11 MODULE…``: by-value functions are byte code, good for the same minor version only."""
    made_by = line.split()[2].decode()
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if made_by != here:
        raise _Problem(
            f"the function was submitted from Python {made_by} but its environment has Python {here}; use an "
            f"environment with Python {made_by}, or run the manager with Python {here}"
        )


def _load_arguments(word: str) -> Any:
    import binascii
    import io

    if not word.startswith("@"):
        return _Loader(io.BytesIO(binascii.a2b_base64(word))).load()
    with open(word[1:], "rb") as file:
        # A pickle begins with the byte 0x80, which no base64 text holds.
        if file.read(1) != b"\x80":
            file.seek(0)
            return _Loader(io.BytesIO(binascii.a2b_base64(file.read()))).load()
        file.seek(0)
        return _Loader(file).load()


def _returned(result_file: str, value: Any) -> int:
    try:
        return _write(result_file, b"value", "", "", value)
    except BaseException as error:
        if isinstance(error, OSError):
            message = "the result could not be written: " + _one_line(error)
        else:
            message = _not_pickled(value, error)
        return _leave(result_file, b"failed", _text_of(error), message)


def _not_pickled(value: Any, error: BaseException) -> str:
    return f"the result, of type {_type_name(value)}, cannot be pickled: {_one_line(error)}"


def _each(result_file: str, function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> int:
    """Every call as if it were alone in its task: kind, traceback, message and pickle of each."""
    import time

    start = time.perf_counter()
    found = [_one_of_them(function, args) for args in calls]
    seconds = time.perf_counter() - start
    try:
        return _write(result_file, b"each", "", "", (seconds, found))
    except BaseException as error:
        return _leave(result_file, b"failed", _text_of(error), "the results could not be written: " + _one_line(error))


def _one_of_them(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, str, str, bytes]:
    try:
        value = function(*args)
    except SystemExit as stop:
        return "exit", _text_of(stop), str(0 if stop.code is None else stop.code), b""
    except BaseException as error:
        text, line = _text_of(error), _one_line(error)
        try:
            return "raised", text, line, _dumped(error)
        except BaseException:
            return "raised", text, line, b""
    try:
        return "value", "", "", _dumped(value)
    except BaseException as error:
        return "failed", _text_of(error), _not_pickled(value, error), b""


def _dumped(value: Any) -> bytes:
    file = _Short("", sys.maxsize)
    _dump(value, file)
    return bytes(file.content)


def _raised(result_file: str, error: BaseException) -> int:
    text, line = _text_of(error), _one_line(error)
    _say(text)
    try:
        return _write(result_file, b"raised", text, line, error, status=1)
    except BaseException:
        # It cannot be pickled: its text has to do.
        return _leave(result_file, b"raised", text, line)


def _exited(result_file: str, stop: SystemExit) -> int:
    """What the interpreter does with SystemExit: None is 0, a number is itself, anything else is printed and is 1."""
    code = stop.code
    if code is None:
        code = 0
    if not isinstance(code, int):
        _say(str(code) + "\n")
        return _leave(result_file, b"exit", _text_of(stop), str(code))
    return _leave(result_file, b"exit", _text_of(stop), str(int(code)), int(code) & 0xFF)


def _leave(result_file: str, kind: bytes, text: str, message: str, status: int = 1) -> int:
    """Leave a result without a pickle; returns the status to end with.

    When even that cannot be written, stderr has it; the manager sees no result.
    """
    if kind == b"failed":
        _say("poncho_wq: " + message + "\n")
    try:
        return _write(result_file, kind, text, message, status=status)
    except OSError as error:
        _say(f"poncho_wq: cannot write the result: {_one_line(error)}\n")
    return status


def _write(result_file: str, kind: bytes, text: str, message: str, *value: Any, status: int = 0) -> int:
    """Leave a result, and return the status to end with, which is ``status`` if that is not 0.

    A file is published by rename: a process that is killed while writing leaves none.
    """
    trace, words = text.encode("utf-8", "replace"), message.encode("utf-8", "replace")
    mark, _, name = result_file.rpartition(":")
    inline = bool(mark) and not status
    file = _Short(name, _INLINE if inline else 0)
    try:
        file.write(_FORMAT % (kind, len(trace), len(words)) + trace + words)
        for item in value:
            _dump(item, file)
        if inline and _print_result(mark, file):
            return 0
        file.publish()
    except BaseException:
        file.forget()
        raise
    return IN_FILE if inline else status


class _Short:
    """What may become a file: bytes in memory while they are few, then in NAME.partial."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most = name, most
        self.content = bytearray()
        self.file: Any = None
        if not most:
            self.file = open(name + ".partial", "wb")  # noqa: SIM115

    def write(self, data: Any) -> int:
        if self.file is None:
            size = memoryview(data).nbytes
            if len(self.content) + size <= self.most:
                self.content += data
                return size
            self.spill()
        return self.file.write(data)  # type: ignore[no-any-return]

    def spill(self) -> None:
        self.file = open(self.name + ".partial", "wb")  # noqa: SIM115
        self.file.write(self.content)

    def tell(self) -> int:
        return len(self.content) if self.file is None else self.file.tell()

    def cut(self, end: int) -> None:
        """Forget all after ``end``."""
        if self.file is None:
            del self.content[end:]
        else:
            self.file.seek(end)
            self.file.truncate()

    def publish(self) -> None:
        if self.file is None:
            self.spill()
        self.file.close()
        os.replace(self.name + ".partial", self.name)

    def forget(self) -> None:
        try:
            if self.file is not None:
                self.file.close()
                os.unlink(self.name + ".partial")
        except OSError:
            pass


def _print_result(mark: str, file: _Short) -> bool:
    """Whether the result is on stdout now: in one piece, since the function may have left others who write there."""
    if file.file is not None:
        return False
    import binascii

    try:
        found = os.fstat(1)
        if _is_other_stdout(found) or found.st_size > _MOST_SAID:
            return False
        line = _LINE % (mark[1:].encode(), binascii.b2a_base64(bytes(file.content)))
        return os.write(1, line) == len(line)
    except OSError:
        return False


_stdout: list[tuple[int, int]] = []


def _note_stdout() -> None:
    """Remember which file stdout is, before the function can change that."""
    del _stdout[:]
    try:
        found = os.fstat(1)
    except OSError:
        return
    # What is written to a regular file is not torn apart, nor waits for anyone to read it.
    if found.st_mode & 0o170000 == 0o100000:
        _stdout.append((found.st_dev, found.st_ino))


def _is_other_stdout(now: os.stat_result) -> bool:
    return (now.st_dev, now.st_ino) not in _stdout


def _dump(value: Any, file: Any) -> None:
    """Plain pickle, which most results are made for; cloudpickle for functions and classes that came by value."""
    protocol = 5 if sys.version_info >= (3, 8) else 4
    start = file.tell()
    try:
        _pickle.Pickler(file, protocol).dump(value)
    except OSError:
        raise
    except Exception:
        file.cut(start)
        _provide_cloudpickle()
        sys.modules[_PRIVATE].dump(value, file, protocol)


def _text_of(error: BaseException | None) -> str:
    if error is None:
        return ""
    import traceback

    # The first frames are this file's, which say nothing to the user.
    here, frames = _text_of.__code__.co_filename, error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == here:
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception:
        return _one_line(error) + "\n"


def _one_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(its str() fails)"
    return f"{_type_name(error)}: {text}" if text else _type_name(error)


def _type_name(value: Any) -> str:
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _say(text: str) -> None:
    """To stderr, if the function has left one, after what it printed."""
    try:
        sys.stdout.flush()
    except Exception:
        pass
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except Exception:
        pass


def _open_descriptors() -> set[str]:
    """Those of this process, with the one that lists them."""
    return set(os.listdir("/proc/self/fd"))


def _leaving(status: int) -> None:
    """Nothing is left to do but to end."""


def _has_no_threads(threading: Any) -> bool:
    """Whether there is nothing that ``threading`` would wait for, or call, before the interpreter ends.

    To have it look costs a warm task a twentieth of all that it does.
    """
    try:
        calls = [threading._shutdown, *(call.func for call in threading._threading_atexits)]
        known = ("threading", "concurrent.futures.thread")  # others put theirs in place of Python's
        return not sys.modules["_thread"]._count() and all(call.__module__ in known for call in calls)
    except (AttributeError, KeyError):
        return False


def _end(status: int, before: set[str] | None) -> None:
    """End as the interpreter does: threads, exit functions, streams; but do not take every module apart.

    That takes longer than starting did, and matters only to what has been left open, whose data may not be written yet:
    then it is done after all.
    """
    try:
        if before is not None and _open_descriptors() <= before:
            threading, atexit = sys.modules.get("threading"), sys.modules.get("atexit")
            if threading is not None and not _has_no_threads(threading):
                threading._shutdown()
            if atexit is not None:
                atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            if _open_descriptors() <= before:
                _leaving(status)
                os._exit(status)
    except BaseException:
        # Whatever it is, the interpreter will meet it again, and knows what to do.
        pass
    sys.exit(status)


def _run(words: list[str]) -> None:
    # Python put the program's directory first, unless $PYTHONSAFEPATH forbids it.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    if words[0] == "--serve":
        _warm_code("starting", "fitness", "settling", "order", "children", "child", "server")
        globals()["serve"](words[1], words[2], int(words[3]), words[4:])
    if os.getpgrp() != os.getpid():
        _lead()
    try:
        before: set[str] | None = _open_descriptors()
    except OSError:
        before = None
    if words[0] == "--warm":
        home = words[1]
        del words[:2]
        if home and not os.path.exists(home + "/cur"):
            _start_server(home, words[0])
    _end(main(words), before)


def _lead() -> None:
    """Be the leader of a process group, if a worker has started this process.

    A worker kills the groups of its tasks.  It makes them leaders from outside, which fails when a task is quicker to
    run its shell (EACCES, setpgid(2)): then it kills nothing, and waits for the task to end, and does nothing else.
    """
    try:
        with open(f"/proc/{os.getppid()}/comm", encoding="utf-8", errors="replace") as file:
            parent = file.read()
        if parent.startswith(("work_queue_work", "vine_worker")):
            os.setpgid(0, 0)
    except OSError:
        pass


def _start_server(home: str, function_file: str) -> None:
    """Have a server do what this process does, from the next task on; whether it can be had is no task's concern."""
    try:
        with open(function_file, "rb") as file:
            modules = file.readline().decode().split()[3:]
        _warm_code("starting")
        globals()["start_server"](home, os.path.abspath(__file__), os.path.dirname(home), modules)
    except (OSError, ValueError):
        pass


def _warm_code(*names: str) -> None:
    """The modules of ``poncho_wq.warm``, which are a line of the program and become part of this one."""
    code = globals()["_tail"]("# WARM ")
    for name in names:
        exec(code[name], globals())


if __name__ == "__main__":
    _run(sys.argv[1:])
