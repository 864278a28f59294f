"""What Parsl hands to an executor → what a task of ours is made from: the call, its files, its resources.

Parsl wraps a Python app so that an exception comes back as a value, which needs Parsl on the worker.  Ours brings
exceptions back anyway, so the user's own function is called and Parsl is not imported, for half a second a task, unless
function or arguments refer to it: a bash app does, and so does a ``File`` among the arguments.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from parsl.app.errors import wrap_error
from parsl.data_provider.files import File
from parsl.executors.errors import InvalidResourceSpecification
from parsl.utils import get_std_fname_mode

from poncho_wq.engines.opened import Needs
from poncho_wq.errors import EngineError

__all__ = ["Call", "Staged", "app_call", "checked_init", "needs_of", "parsl_requirement"]

_RESOURCES = ("cores", "memory", "disk")


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """A file that travels with the task, under the same relative name on both sides."""

    name: str
    output: bool
    cache: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One invocation of an app: the function to call with its arguments, and the files that it needs."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    files: tuple[Staged, ...]
    name: str


def app_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, shared_fs: bool, cache_inputs: bool
) -> Call:
    """As Parsl's own executors read a call: relative paths are staged, absolute ones are on a shared file system."""
    files: dict[tuple[str, bool], Staged] = {}

    def note(name: str, *, output: bool, cached: bool = False) -> None:
        if not shared_fs and not os.path.isabs(name):
            files.setdefault((name, output), Staged(name=name, output=output, cache=cached))

    for file in (*kwargs.get("inputs", ()), *args, *(v for k, v in kwargs.items() if k not in ("stdout", "stderr"))):
        if isinstance(file, File) and _is_here(file):
            note(file.filepath, output=False, cached=cache_inputs)
    for file in kwargs.get("outputs", ()):
        if isinstance(file, File) and (file.scheme == "file" or file.local_path):
            note(file.filepath, output=True)
    for stream in ("stdout", "stderr"):
        if kwargs.get(stream):
            note(os.fspath(get_std_fname_mode(stream, kwargs[stream])[0]), output=True)
    if shared_fs:
        args, kwargs = _absolute(args, kwargs)
    name = str(getattr(function, "__name__", "app"))
    return Call(function=unwrapped(function), args=args, kwargs=kwargs, files=tuple(files.values()), name=name)


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function out of a Python app; anything else as it is."""
    inner = getattr(function, "__wrapped__", None)
    if inner is None or getattr(function, "__code__", None) is not _wrapper_code():
        return function
    # A bash app's is a partial of what runs the command: its errors are Parsl's own, and those are what it wraps.
    return inner if hasattr(inner, "__code__") else function


@cache
def _wrapper_code() -> Any:
    return getattr(wrap_error(len), "__code__", None)


def _is_here(file: File) -> bool:
    return file.scheme == "file" or bool(file.local_path and os.path.exists(file.local_path))


def _absolute(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with files by their absolute paths: a task runs in a sandbox, not here."""

    def moved(value: Any) -> Any:
        if not isinstance(value, File) or not (value.scheme == "file" or value.local_path):
            return value
        new = value.cleancopy()
        new.local_path = os.path.abspath(value.filepath)
        return new

    out: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in ("inputs", "outputs"):
            out[key] = [moved(each) for each in value]
        elif key in ("stdout", "stderr") and value:
            name, mode = get_std_fname_mode(key, value)
            out[key] = (os.path.abspath(name), mode)
        else:
            out[key] = moved(value)
    return tuple(moved(each) for each in args), out


def needs_of(specification: dict[str, Any], *, retries: int | None, strict: bool) -> Needs:
    """A ``parsl_resource_specification`` → what the task asks for.  Names none of cores, memory and disk: a whole
    worker, as with Parsl's own executors.

    ``strict``: as the Work Queue executor, which takes all three or none.  Raises ``InvalidResourceSpecification``.
    """
    keys = set(specification)
    if strict:
        known = {*_RESOURCES, "gpus", "priority", "running_time_min"}
        if not keys <= known:
            raise InvalidResourceSpecification(
                keys, f"Task resource specification only accepts these types of resources: {', '.join(sorted(known))}"
            )
        named = keys.intersection(_RESOURCES)
        if named and len(named) != len(_RESOURCES):
            raise InvalidResourceSpecification(
                keys,
                "Task resource specification requires three resources to be specified simultaneously: cores, memory, "
                "and disk",
            )
    return Needs(
        cores=specification.get("cores"),
        memory=specification.get("memory"),
        disk=specification.get("disk"),
        gpus=specification.get("gpus"),
        priority=specification.get("priority"),
        retries=retries,
    )


# Commands that switch to another Python or leave the task's directory or shell; what they are given matters for some.
_SWITCHES = frozenset({"conda", "mamba", "micromamba", "pyenv", "pixi", "poetry", "pipenv", "hatch", "deactivate"})
_LEAVES = frozenset({"cd", "pushd", "exec", "exit", "return"})
_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "WORK_QUEUE_SANDBOX")


def checked_init(text: str) -> str:
    """An ``init_command`` as shell text that may stand before a task's command, "" for none.

    It runs on the worker outside of the environment, whose Python is then called by its path.  Raises ``EngineError``
    for one that is meant to choose another Python, or would leave the task's directory: with an environment it could
    only mislead.
    """
    text = text.strip().rstrip(";").rstrip()
    if not text:
        return ""
    for command in re.split(r"[;&|\n(){}]+", text):
        try:
            words = shlex.split(command, comments=True)
        except ValueError as error:
            raise EngineError(f"init_command: {text!r} is not shell text: {error}") from None
        if words[:1] in (["export"], ["then"], ["do"], ["else"], ["command"], ["builtin"], ["eval"]):
            words = words[1:]
        if words and _moves_outside(words):
            raise EngineError(
                f"init_command: {shlex.join(words)!r} would run the app outside of its environment",
                advice="leave it out: the environment holds the Python and the packages; to choose them, pass "
                "environment=… (it takes a conda prefix, a venv, a requirements.txt, …)",
            )
    return text + "\n"


def _moves_outside(words: list[str]) -> bool:
    if any(word.startswith(tuple(name + "=" for name in _VARIABLES)) for word in words):
        return True
    first, rest = os.path.basename(words[0]), words[1:]
    if first in _SWITCHES | _LEAVES:
        return True
    if first in ("source", "."):
        return bool(rest) and "activate" in os.path.basename(rest[0])
    if first in ("module", "ml"):
        return any(re.search(r"python|conda|mamba", word, re.IGNORECASE) for word in rest)
    return False


@cache
def parsl_requirement() -> str:
    """This Parsl, as a requirement: what it pickles here is loaded by the same version there."""
    return f"parsl=={version('parsl')}"
