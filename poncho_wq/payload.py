"""A function and its arguments → the files and words that its task ships.

Functions of ``__main__`` and of the module that a task's function lives in travel by value: byte code, closure and the
globals they use.  Everything else travels by name and is imported on the worker, from an installed package or from the
local modules that the task ships (``local_code.py``).  Function, arguments and code are taken when the task is made, so
that what happens to them later changes nothing.

    function    a content-addressed file, a cached input: sent to a worker once
    arguments   base64 text in the command itself; a buffer when longer; a file when long
    result      a file that comes back, see ``runner.py``
    code        optional: an archive of local modules, a cached input
"""

from __future__ import annotations

import binascii
import copyreg
import importlib.util
import io
import os
import pickle
import site
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Literal

import cloudpickle

from poncho_wq import staging, unchanging
from poncho_wq.errors import EngineError

# A task's command is one argument of `sh -c`, at most 128 KiB on Linux, and Work Queue keeps it in memory and in its
# logs; a few kilobytes there are cheaper for everyone than one more file for each task.
INLINE_LIMIT = 2048
# Buffers live in the manager's memory, as base64, until the task is done.
BUFFER_LIMIT = 32 * 1024

_AT_ONCE = 64 * 1024

# Names in a task's sandbox.
ARGUMENTS_NAME = "poncho-arguments"
RESULT_NAME = "poncho-result"
# What the runner leaves on stdout instead of in a file, and its exit status when it did write the file.
_LINE = "\n=poncho-result= {} "
RESULT_IN_FILE = 120

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

_PROTOCOL = 5
_PRIVATE_CLOUDPICKLE = "_poncho_cloudpickle"  # the runner's
_registry_lock = threading.RLock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """Pickled arguments.  Exactly one of the three is not None.  ``modules`` are the top-level packages that the
    pickle names, by which alone arguments can change what environment a function needs."""

    inline: str | None = None
    text: str | None = None
    file: staging.OwnFile | None = None
    modules: frozenset[str] = frozenset()

    @property
    def word(self) -> str:
        """The runner's ARGUMENTS."""
        return self.inline if self.inline is not None else "@" + ARGUMENTS_NAME


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a function task left.

    ``kind``: ``value`` (``value`` is what the function returned), ``raised`` (``value`` is the exception; None when it
    could not be brought here), ``exit`` (``message`` is the argument of ``sys.exit``), ``failed`` (``message`` says
    what went wrong around the function), ``each`` (several calls: ``items`` has what each left, ``seconds`` is what
    they took together).  ``traceback`` is the worker's text.
    """

    kind: Literal["value", "raised", "exit", "failed", "each"]
    value: Any = None
    traceback: str = ""
    message: str = ""
    items: tuple[Outcome, ...] = ()
    seconds: float = 0.0


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """cloudpickle that takes the modules ``by_value`` by value, and notes which packages a pickle names."""

    def __init__(self, file: io.BytesIO, by_value: frozenset[str] | None) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self.by_value = by_value
        self.modules: set[str] = set()
        self.registered: list[types.ModuleType] = []

    def reducer_override(self, obj: Any) -> Any:
        """Called for every object that is not of a built-in type, before it is reduced."""
        # Functions and classes have a module of their own, every other object shows its class's.
        name = obj.__name__ if isinstance(obj, types.ModuleType) else getattr(obj, "__module__", None)
        if isinstance(name, str) and name != "__main__":
            if is_local(name) if self.by_value is None else name in self.by_value:
                self._take_by_value(name)
            else:
                self.modules.add(name.partition(".")[0])
        # Parsl has tblib register ways to pickle exceptions that need tblib on the worker, for the whole process.
        if isinstance(obj, BaseException | types.TracebackType) and _is_of_tblib(copyreg.dispatch_table.get(type(obj))):
            return obj.__reduce_ex__(_PROTOCOL)
        return super().reducer_override(obj)

    def _take_by_value(self, name: str) -> None:
        module = sys.modules.get(name)
        if module is not None and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self.registered.append(module)


def _is_of_tblib(reducer: Any) -> bool:
    return str(getattr(getattr(reducer, "func", reducer), "__module__", "")).startswith("tblib.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """A function that was pickled, and the file that it went to while that is there."""

    watch: unchanging.Watch
    told: tuple[frozenset[str] | None, tuple[str, ...]]
    file: weakref.ref[staging.SharedFile]


_MOST_KEPT = 64
_kept_functions: dict[int, _Kept] = {}


def _goes_by_value(by_value: frozenset[str] | None, module: str) -> bool:
    return (
        module == "__main__"
        or (is_local(module) if by_value is None else module in by_value)
        or any((module + ".").startswith(name + ".") for name in cloudpickle.list_registry_pickle_by_value())
    )


def pickle_function(
    function: Callable[..., Any], by_value: frozenset[str] | None = None, modules: tuple[str, ...] = ()
) -> staging.SharedFile:
    """The content-addressed file of a function.  ``modules`` are what it imports, for a warm interpreter to do before.

    ``by_value`` names the modules besides ``__main__`` whose functions and classes travel by value; None are all local
    ones, for who ships no local code.  Raises ``EngineError`` when it cannot be pickled.
    """
    kept = _kept_functions.get(id(function))
    if kept is not None and kept.told == (by_value, modules) and kept.watch.function is function and kept.watch.still():
        found = kept.file()
        if found is not None:
            return found
    # First, so that what changes while it is pickled is seen the next time.
    watched = unchanging.watch(function, partial(_goes_by_value, by_value))
    header = " ".join(["poncho-function 1", PYTHON, *modules]).encode() + b"\n"
    file = staging.share("poncho-function", header + pickled(function, f"the function {_name_of(function)}", by_value))
    if watched is not None:
        while len(_kept_functions) >= _MOST_KEPT:
            _kept_functions.pop(next(iter(_kept_functions)), None)
        _kept_functions[id(function)] = _Kept(watch=watched, told=(by_value, modules), file=weakref.ref(file))
    return file


def pickle_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], by_value: frozenset[str] | None = None
) -> Arguments:
    """Pickle the arguments of one call, ``by_value`` as for its function.

    Raises ``EngineError`` naming the argument that cannot be pickled.
    """
    if _are_plain(args) and _are_plain(kwargs.values()):
        return _shipped(pickle.dumps((args, kwargs), _PROTOCOL), frozenset())
    try:
        content, modules = _pickle((args, kwargs), "the arguments", by_value)
    except EngineError:
        for label, value in [*enumerate(args, 1), *kwargs.items()]:
            _pickle(value, f"argument {label!r}" if isinstance(label, str) else f"argument {label}", by_value)
        raise
    return _shipped(content, modules)


def pickle_calls(calls: list[tuple[Any, ...]], by_value: frozenset[str] | None = None) -> Arguments:
    """Pickle the positional arguments of several calls of one function, in the way of ``pickle_arguments``."""
    if all(map(_are_plain, calls)):
        return _shipped(pickle.dumps(calls, _PROTOCOL), frozenset())
    try:
        content, modules = _pickle(calls, "the arguments", by_value)
    except EngineError:
        for number, args in enumerate(calls, 1):
            _pickle(args, f"the arguments of call {number} of {len(calls)}", by_value)
        raise
    return _shipped(content, modules)


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether plain pickle does for them what cloudpickle would, at a tenth of the cost: no function, no class."""
    for value in values:
        if type(value) in (tuple, list):
            if len(value) > 100 or not unchanging.FROZEN.issuperset(map(type, value)):
                return False
        elif type(value) not in unchanging.FROZEN:
            return False
    return True


def _shipped(content: bytes, modules: frozenset[str]) -> Arguments:
    if len(content) <= INLINE_LIMIT * 3 // 4:
        return Arguments(inline=binascii.b2a_base64(content, newline=False).decode(), modules=modules)
    if len(content) <= BUFFER_LIMIT:
        return Arguments(text=binascii.b2a_base64(content, newline=False).decode(), modules=modules)
    return Arguments(file=staging.OwnFile("-arguments", content), modules=modules)


def split_said(said: str, mark: str) -> tuple[str, str | None]:
    """A task's stdout without the runner's line, and that line's base64 text; None when there is none.

    ``mark`` is the task's own, so that nothing that a function prints is taken for its result.
    """
    line = _LINE.format(mark)
    start = said.rfind(line)
    end = said.find("\n", start + len(line))
    if start < 0 or end < 0:
        return said, None
    return said[:start] + said[end + 1 :], said[start + len(line) : end]


def load_said(text: str) -> Outcome:
    """The outcome in a line of stdout; raises nothing, as ``load_result``."""
    try:
        return _read_outcome(io.BytesIO(binascii.a2b_base64(text)))
    except ValueError as error:
        return Outcome(kind="failed", message=f"the result cannot be read: {error}")


def load_result(path: str | os.PathLike[str]) -> Outcome | None:
    """Read what the runner left in ``path``; None when there is no such file.

    Raises nothing for what is in it: a result that cannot be loaded here is an ``Outcome`` of kind ``failed``.
    """
    try:
        # Most results are a hundred bytes, which are read at once and without ceremony.
        with open(path, "rb", buffering=0) as file:
            start = file.read(_AT_ONCE)
            if len(start) < _AT_ONCE:
                return _read_outcome(io.BytesIO(start))
            file.seek(0)
            with io.BufferedReader(file) as stream:
                return _read_outcome(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Outcome(kind="failed", message=f"the result file cannot be read: {error}")


def _read_outcome(file: IO[bytes]) -> Outcome:
    """Raises ``ValueError`` for a file that is not one of the runner's."""
    words = file.readline(128).split()
    if len(words) != 5 or words[:2] != [b"poncho-result", b"1"]:
        raise ValueError("it was not written by poncho_wq's runner")
    trace, message = (file.read(int(size)).decode(errors="replace") for size in words[3:])
    kind = words[2].decode()
    if kind != "each":
        return _outcome(kind, trace, message, file)
    try:
        seconds, found = _Unpickler(file).load()
    except Exception as error:
        raise ValueError(f"its results cannot be told apart: {type(error).__name__}: {error}") from error
    items = tuple(_outcome(how, text, said, io.BytesIO(content)) for how, text, said, content in found)
    return Outcome(kind="each", items=items, seconds=seconds)


def _outcome(kind: str, trace: str, message: str, file: IO[bytes]) -> Outcome:
    match kind:
        case "exit":
            return Outcome(kind="exit", traceback=trace, message=message)
        case "failed":
            return Outcome(kind="failed", traceback=trace, message=message)
        case "raised":
            try:
                return Outcome(kind="raised", value=_Unpickler(file).load(), traceback=trace, message=message)
            except Exception:
                # Its class cannot be made here, or it could not be pickled there: its text has to do.
                return Outcome(kind="raised", traceback=trace, message=message)
        case "value":
            try:
                return Outcome(kind="value", value=_Unpickler(file).load())
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                return Outcome(kind="failed", message=f"the result cannot be loaded on the manager: {said}")
    raise ValueError(f"kind {kind!r} is none of poncho_wq's runner")


@cache
def program_archive(name: str, main: Path, cloudpickle_name: str) -> staging.SharedFile:
    """The zip that runs ``main`` on a worker and holds this cloudpickle as the package ``cloudpickle_name``."""
    sources = {"__main__.py": main.read_bytes()}
    package = Path(cloudpickle.__file__).parent
    for source in sorted(package.glob("*.py")):
        sources[f"{cloudpickle_name}/{source.name}"] = source.read_bytes()
    return staging.share(name, _zip(sources), ".zip")


def _zip(sources: dict[str, bytes]) -> bytes:
    """A deterministic zip of Python files, stored rather than deflated: zlib costs more than these bytes do."""
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sources.items():
            for member, content in ((name + "c", _compile(name, source)), (name, source)):
                info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                archive.writestr(info, content)
    return data.getvalue()


def _compile(name: str, source: bytes) -> bytes:
    """A .pyc that is never compared with its source (PEP 552)."""
    import importlib._bootstrap_external as external

    code = compile(source, name, "exec", dont_inherit=True)
    return bytes(external._code_to_hash_pyc(code, importlib.util.source_hash(source), False))  # type: ignore[attr-defined]


def pickled(value: Any, what: str, by_value: frozenset[str] | None = None) -> bytes:
    """``value`` as functions and arguments are pickled; ``what`` names it in the error.

    Raises ``EngineError`` when it cannot be pickled.
    """
    return _pickle(value, what, by_value)[0]


def _pickle(value: Any, what: str, by_value: frozenset[str] | None) -> tuple[bytes, frozenset[str]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, by_value)
    try:
        with _registrations(pickler):
            pickler.dump(value)
    except Exception as error:
        raise EngineError(
            f"{what} cannot be sent to a worker: {type(error).__name__}: {error}",
            advice="open files, connections and locks inside the function instead of passing them to it",
        ) from error
    return buffer.getvalue(), frozenset(pickler.modules)


@contextmanager
def _registrations(pickler: _Pickler) -> Iterator[None]:
    """cloudpickle's registry is the process's: leave it as it was, and let no other thread of ours in between."""
    with _registry_lock:
        try:
            yield
        finally:
            for module in pickler.registered:
                cloudpickle.unregister_pickle_by_value(module)


class _Unpickler(pickle.Unpickler):
    """Loads what the runner dumped: its private cloudpickle is ours."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_PRIVATE_CLOUDPICKLE):
            module = "cloudpickle" + module[len(_PRIVATE_CLOUDPICKLE) :]
        return super().find_class(module, name)


def is_local(module: str) -> bool:
    """Whether no environment can provide this module: not of the standard library, nor below a ``site-packages``.

    An editable install is local: its files are the user's.  So is this package, which no environment holds.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    if top == "poncho_wq":
        return True
    return _is_local_file(getattr(sys.modules.get(module), "__file__", None))


@cache
def _is_local_file(file: str | None) -> bool:
    if file is None:
        # Built in, a namespace, or made by hand; cloudpickle sends the last kind by value itself.
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _installed_places())


@cache
def _installed_places() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += site.getsitepackages()
    paths.append(site.getusersitepackages())
    paths += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return tuple({Path(path).resolve() for path in paths if path})


def _forget() -> None:
    """In a forked child: a thread of the parent's may have held the lock."""
    global _registry_lock
    _registry_lock = threading.RLock()
    # The files are the parent's.
    _kept_functions.clear()


os.register_at_fork(after_in_child=_forget)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)
