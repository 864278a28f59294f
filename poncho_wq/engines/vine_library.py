"""Runs on a worker as a TaskVine library: loads functions once, then calls them as ``vine_worker`` asks.

    python3 ARCHIVE FUNCTIONS CODE INIT_STATUS --in-pipe-fd N --out-pipe-fd N --worker-pid N …

ARCHIVE is this file as ``__main__`` with the manager's cloudpickle under its own name, so that both ends of a pickle
agree whatever the environment has.  FUNCTIONS is a pickle, see ``_load``; CODE a zip of the user's own modules, or
``-``; INIT_STATUS the exit status of the shell text that ran before.  TaskVine's worker appends the rest.  The standard
library only, Python 3.7 or later.

What the worker and a library say to each other (lengths in bytes, everything ASCII but the paths):

    library → worker   LENGTH\\n{"name": …, "taskid": …, "exec_mode": …}   once: ready
    worker → library   LENGTH\\nID FUNCTION SANDBOX STDOUT   a call; SANDBOX has infile, and gets outfile
    library → worker   LENGTH\\nID STATUS   done; then SIGCHLD to wake the worker, as after the first message

A library that cannot start would be started again for ever, while its calls wait.  So whatever goes wrong here before
the first call is kept, and every call is answered with it.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    Call = tuple[int, str, str, str]

_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# How often to look whether the worker is still there, in seconds; anything else wakes us by itself.
_WATCH_SECONDS = 5
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class _Problem(Exception):
    """Something around the functions went wrong; the message is for the user."""


class _Library:
    """The functions by name, or why there are none."""

    def __init__(self) -> None:
        self.name = ""
        self.exec_mode = "fork"
        self.functions: dict[str, Callable[..., Any]] = {}
        self.problem: str | None = None
        self.trace = ""

    def fail(self, message: str, error: BaseException | None = None) -> None:
        self.problem, self.trace = message, _text_of(error)
        _say("poncho_wq: " + message + "\n" + self.trace)


def main(argv: list[str]) -> None:
    """Serve calls until the worker is gone."""
    parent = os.getppid()
    _lead_group()
    options = dict(zip(argv[3::2], argv[4::2]))  # noqa: B905 - strict= is of Python 3.10
    _share_threads(int(options.get("--library-cores", 1)), int(options.get("--function-slots", 1)))
    library = _Library()
    _load(library, argv[0], argv[1], int(argv[2]))
    worker = _Worker(options)
    worker.say_ready(library)
    # What is here now is never garbage: without this, the first collection in each child would copy it all.
    gc.collect()
    gc.freeze()
    if library.exec_mode == "direct":
        _serve_directly(library, worker, parent)
    else:
        _serve_with_forks(library, worker, parent)


def _lead_group() -> None:
    """Become the process group that ``vine_worker`` will kill.

    The worker makes it so itself, but too late when this process is quick to start; then its kill reaches nobody, it
    waits for us for ever, and does nothing else any more.  Seen whenever TaskVine ends one idle library for another.
    """
    try:
        os.setpgid(0, 0)
    except OSError:
        pass  # it leads a session, and so a group


def _share_threads(cores: int, slots: int) -> None:
    """Calls side by side share the cores.  Numerical libraries read these when they are loaded, which comes later."""
    if slots > 1:
        for name in _THREAD_VARIABLES:
            os.environ[name] = str(max(1, cores // slots))


# -- starting


def _load(library: _Library, path: str, code: str, init_status: int) -> None:
    """Read the header and the pickle: ``{"functions": {name: function}, "init": callable or None, …}``.

    The first line is ``poncho-library 1 PYTHON EXEC_MODE NAME``, readable even where the pickle is not.
    """
    with open(path, "rb") as file:
        words = file.readline().decode().rstrip("\n").split(" ", 4)
        library.exec_mode, library.name = words[3], words[4]
        if words[2] != _PYTHON:
            library.fail(f"the library was made by Python {words[2]} but its environment has Python {_PYTHON}")
            return
        if init_status != 0:
            library.fail(f"init of library {library.name} ended with exit status {init_status}")
            return
        _offer_variables({})
        try:
            _add_code(code)
            made = pickle.load(file)
        except BaseException as error:
            library.fail("the functions cannot be loaded in this environment: " + _one_line(error), error)
            return
    try:
        _hoist(made["hoist"])
        _hoist(made["wanted"], wanted=True)
        if made["init"] is not None:
            variables = made["init"]()
            if isinstance(variables, dict):
                _offer_variables(variables)
    except _Problem as problem:
        library.fail(str(problem), problem.__cause__)
    except BaseException as error:
        library.fail(f"init of library {library.name} raised {_one_line(error)}", error)
    else:
        library.functions = made["functions"]


def _add_code(code: str) -> None:
    """The user's modules and the library's own directory, after everything else, so that neither hides a package."""
    home = os.getcwd()
    if code != "-":
        import zipfile

        # Not imported from the zip: data beside a module could not be opened, extension modules not loaded.
        place = os.path.join(home, os.path.splitext(code)[0])
        with zipfile.ZipFile(code) as archive:
            for info in archive.infolist():
                path = archive.extract(info, place)
                if (info.external_attr >> 16) & 0o100:
                    os.chmod(path, os.stat(path).st_mode | 0o100)
        sys.path.append(place)
    sys.path.append(home)


def _hoist(modules: Iterable[str], wanted: bool = False) -> None:
    """Import now what calls would import each for itself.  Those that analysis found may well not be needed."""
    import importlib

    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            if wanted:
                raise _Problem(f"module {name} cannot be imported: {_one_line(error)}") from error
            _say(f"poncho_wq: not imported ahead: {name}: {_one_line(error)}\n")


_variables: dict[str, Any] = {}


def _load_variable(var_name: str) -> Any:
    return _variables[var_name]


def _offer_variables(variables: dict[str, Any]) -> None:
    """What ``init`` returned, by ``load_variable_from_library``, TaskVine's own name for it.

    An environment need not have TaskVine's Python package; then modules of that name stand in.
    """
    import types

    try:
        from ndcctools.taskvine.utils import load_variable_from_library
    except ImportError:
        _variables.update(variables)
        above: Any = None
        for name in ("ndcctools", "ndcctools.taskvine", "ndcctools.taskvine.utils"):
            module: Any = sys.modules.setdefault(name, types.ModuleType(name))
            module.__dict__.setdefault("__path__", [])
            if above is not None:
                module.load_variable_from_library = _load_variable
                setattr(above, name.rpartition(".")[2], module)
            above = module
    else:
        if load_variable_from_library is _load_variable:
            _variables.update(variables)
        else:
            load_variable_from_library.__globals__.update(variables)


# -- talking


class _Worker:
    """The two pipes to ``vine_worker``."""

    def __init__(self, options: dict[str, str]) -> None:
        self.input = int(options["--in-pipe-fd"])
        self._output = int(options["--out-pipe-fd"])
        self._pid = int(options["--worker-pid"])
        self._task = int(options.get("--task-id", -1))
        self._pending = b""
        # No process that a function starts may keep the pipes open.
        os.set_inheritable(self.input, False)
        os.set_inheritable(self._output, False)

    def say_ready(self, library: _Library) -> None:
        import json

        text = json.dumps({"name": library.name, "taskid": self._task, "exec_mode": library.exec_mode})
        self._send(text.encode())

    def say_done(self, call: int, status: int) -> None:
        self._send(b"%d %d" % (call, status))

    def _send(self, message: bytes) -> None:
        # Less than PIPE_BUF: written whole.
        os.write(self._output, b"%d\n%s" % (len(message), message))
        try:
            os.kill(self._pid, signal.SIGCHLD)
        except ProcessLookupError:
            pass

    def calls(self) -> list[Call] | None:
        """The calls that have come, as (id, function, sandbox, file for stdout); None when the worker is gone."""
        data = os.read(self.input, 65536)
        if not data:
            return None
        self._pending += data
        found: list[Call] = []
        while True:
            length, newline, rest = self._pending.partition(b"\n")
            if not newline or len(rest) < int(length):
                return found
            # No blank is in a path: a worker refuses a workspace that has one.
            number, name, sandbox, stdout = os.fsdecode(rest[: int(length)]).split(" ", 3)
            self._pending = rest[int(length) :]
            found.append((int(number), name, sandbox, stdout))


def _serve_directly(library: _Library, worker: _Worker, parent: int) -> None:
    """One call after the other in this process, which they may change."""
    home = os.getcwd()
    streams = os.dup(1), os.dup(2)
    while os.getppid() == parent:
        ready, _, _ = select.select([worker.input], [], [], _WATCH_SECONDS)
        if not ready:
            continue
        calls = worker.calls()
        if calls is None:
            return
        for number, name, sandbox, stdout in calls:
            status = 1
            try:
                os.chdir(sandbox)
                _redirect(stdout)
                status = _call(library, name)
            finally:
                _flush()
                os.dup2(streams[0], 1)
                os.dup2(streams[1], 2)
                os.chdir(home)
            worker.say_done(number, status)


def _serve_with_forks(library: _Library, worker: _Worker, parent: int) -> None:
    """Each call in a child, so that none can harm another; as many at a time as the worker sends."""
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    # A Python handler, even an empty one, makes the interpreter write to the pipe: no child's end goes unnoticed.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while os.getppid() == parent:
        ready, _, _ = select.select([worker.input, wake], [], [], _WATCH_SECONDS)
        if worker.input in ready:
            calls = worker.calls()
            if calls is None:
                break
            for call in calls:
                _flush()
                pid = os.fork()
                if pid == 0:
                    _child(library, call)
                running[pid] = call[0]
        if wake in ready:
            os.read(wake, 4096)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in running:
                ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                worker.say_done(running.pop(pid), ended)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _child(library: _Library, call: Call) -> NoReturn:
    """Run one call and end this process."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, name, sandbox, stdout = call
        os.chdir(sandbox)
        _redirect(stdout)
        _new_random_numbers()
        status = _call(library, name)
        _flush()
    finally:
        os._exit(status)


def _redirect(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _new_random_numbers() -> None:
    """Python seeds ``random`` anew in a child; numpy does not, and all calls would draw the same numbers."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


# -- calling


def _call(library: _Library, name: str) -> int:
    """Call a function with the arguments in ``infile``, leave the result in ``outfile``; returns the exit status."""
    if library.problem is not None:
        return _failed("failed", library.problem, library.trace)
    function = library.functions.get(name)
    if function is None:
        return _failed("failed", f"library {library.name} has no function {name}")
    try:
        args, kwargs = _arguments()
    except BaseException as error:
        message = "the arguments cannot be loaded in this environment: " + _one_line(error)
        return _failed("failed", message, _text_of(error))
    try:
        value = function(*args, **kwargs)
    except SystemExit as stop:
        return _exited(stop)
    except BaseException as error:
        _say(_text_of(error))
        return _failed("raised", _one_line(error), _text_of(error), error)
    try:
        _write({"Success": True, "Result": value, "Reason": None})
    except BaseException as error:
        message = "the result cannot be written: " if isinstance(error, OSError) else "the result cannot be pickled: "
        return _failed("failed", message + _one_line(error), _text_of(error))
    return 0


def _arguments() -> Any:
    with open("infile", "rb") as file:
        event = pickle.load(file)
    given, kwargs = event.get("fn_args", ()), event.get("fn_kwargs", {})
    if "poncho" in event:
        given, kwargs = pickle.loads(event["poncho"])
    # A result of an earlier call that stayed on the workers is named here instead of sent.
    args = []
    for arg in given:
        if isinstance(arg, dict) and "VineFutureFile" in arg:
            with open(arg["VineFutureFile"], "rb") as file:
                arg = pickle.load(file)["Result"]
        args.append(arg)
    return args, kwargs


def _exited(stop: SystemExit) -> int:
    """What the interpreter does with SystemExit: None is 0, a number is itself, anything else is printed and is 1."""
    code = 0 if stop.code is None else stop.code
    if not isinstance(code, int):
        _say(str(code) + "\n")
    _failed("exit", str(code), _text_of(stop))
    return int(code) & 0xFF if isinstance(code, int) else 1


def _failed(kind: str, message: str, trace: str = "", error: BaseException | None = None) -> int:
    """Leave why there is no result: for TaskVine a text, for poncho_wq's own FunctionCall all that is known."""
    if kind == "failed":
        _say(f"poncho_wq: {message}\n{trace}")
    facts: dict[str, Any] = {"kind": kind, "message": message, "traceback": trace, "error": None}
    if error is not None:
        try:
            facts["error"] = _dumps(error)
        except BaseException:
            pass  # it cannot be pickled: its text has to do
    try:
        _write({"Success": False, "Result": None, "Reason": trace or message, "poncho": facts})
    except OSError as problem:
        _say(f"poncho_wq: cannot write the result: {_one_line(problem)}\n")
    return 1


def _write(result: dict[str, Any]) -> None:
    """Publish the result by rename: a process that is killed while writing leaves none."""
    with open("outfile.partial", "wb") as file:
        file.write(_dumps(result))
    os.rename("outfile.partial", "outfile")


def _dumps(value: Any) -> bytes:
    """Plain pickle, which most results are made for; cloudpickle for functions and classes that came by value."""
    protocol = min(pickle.HIGHEST_PROTOCOL, 5)
    try:
        buffer = io.BytesIO()
        pickle.Pickler(buffer, protocol).dump(value)
        return buffer.getvalue()
    except Exception:
        import cloudpickle

        return bytes(cloudpickle.dumps(value, protocol))


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
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {text}" if text else name


def _say(text: str) -> None:
    """To stderr, if the function has left one, after what it printed."""
    try:
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
    except Exception:
        pass


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
