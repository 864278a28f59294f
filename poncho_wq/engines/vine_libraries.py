"""Functions → a TaskVine library: loaded once on a worker, called many times.

TaskVine hands calls to any program that speaks its protocol over two pipes.  Ours is ``vine_library``, which needs
nothing of the environment but Python: neither cloudpickle nor threadpoolctl nor TaskVine's own Python package, whose
absence makes the libraries that TaskVine itself generates fail on every worker again and again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq import local_code, payload, staging
from poncho_wq.engines import vine_manager
from poncho_wq.engines.core import check_python
from poncho_wq.engines.shadowing import refuse_shadowing
from poncho_wq.errors import EngineError

if TYPE_CHECKING:
    from poncho_wq.analysis.model import Reach
    from poncho_wq.prepare import Environment, EnvironmentLike

__all__ = ["library_from_functions"]

_EXEC_MODES = ("fork", "direct")

# Runs the text $1, then the library, in one shell: what the text exports is there for the functions.  However the text
# ends, the library starts, with its exit status: only a library that runs can tell its callers what went wrong.  The
# interpreter is found before, so that a changed PATH does not lead out of the environment.
_WITH_INIT = (
    "poncho_init=$1 poncho_python=$PONCHO_PREFIX/bin/python3; shift; poncho_rest=$*; "
    "trap 'poncho_status=$?; trap - EXIT; unset IFS; "
    'exec "$poncho_python" -s {call} $poncho_status $poncho_rest\' EXIT; '
    'eval "$poncho_init"'
)


def library_from_functions(
    manager: Any,
    name: str,
    *functions: Callable[..., Any],
    environment: EnvironmentLike | None = None,
    hoist: str | Iterable[str | types.ModuleType] | None = "auto",
    exec_mode: str = "fork",
    init: str | Callable[[], Any] | None = None,
    slots: int | None = None,
    cores: int | None = None,
    memory: int | None = None,
    disk: int | None = None,
    gpus: int | None = None,
) -> Any:
    """A library of ``functions`` for ``manager.install_library``; call them by ``FunctionCall(name, function, …)``.

    ``environment``: anything that ``poncho_wq.environment`` takes; default: analyzed from the functions (and ``init``).
    ``hoist``: modules to import before the first call rather than in each: "auto" are those that the functions import
    as far as they are there, names or modules of yours must be there, None are none.
    ``exec_mode``: "fork" runs each call in a child process, "direct" one after the other in the library's own.
    ``init``: a function to call once on each worker before the first call; what it assigns to its global variables is
    there for the functions of the same module, and a dictionary that it returns for ``load_variable_from_library``.  Or
    the text of a shell command to run before, inside the environment; what it exports is there for the functions.
    ``slots``: calls at a time (default: the library's cores).  ``cores``, ``memory`` (MB), ``disk`` (MB) and ``gpus``:
    the library's share of a worker (default: all of it).

    When ``init`` fails or the functions cannot be loaded on a worker, each call says so.

    Raises what ``poncho_wq.environment`` raises, ``EngineError`` for functions or an ``init`` that cannot be sent,
    ``ValueError`` and ``TypeError`` for arguments that make no sense.
    """
    _check_name(name)
    if exec_mode not in _EXEC_MODES:
        raise ValueError(f"exec_mode is {' or '.join(map(repr, _EXEC_MODES))}, not {exec_mode!r}")
    if slots is not None and (slots < 1 or (exec_mode == "direct" and slots != 1) or slots > (cores or slots)):
        raise ValueError("slots: at least 1, at most cores, and 1 for exec_mode='direct'")
    named = _by_name(functions)
    shell = _checked_text(init) if isinstance(init, str) else None
    called = init if callable(init) else None
    if init is not None and shell is None and called is None:
        raise TypeError(f"init is a function or the text of a shell command, not {type(init).__name__}")
    code = (*functions, *([called] if called else []))
    env = vine_manager.ready(environment) if environment is not None else _analyzed(code)
    check_python(env)
    reach = _reach(code)
    made = {"functions": named, "init": called, **_hoisted(hoist, reach)}
    task = _task(manager, name, env, exec_mode, made, reach, shell)
    if slots is not None:
        task.set_function_slots(slots)
    for setter, amount in (
        (task.set_cores, cores), (task.set_memory, memory), (task.set_disk, disk), (task.set_gpus, gpus),
    ):  # fmt: skip
        if amount is not None:
            setter(amount)
    return task


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or not name.isprintable() or " " in name:
        raise ValueError(f"a library's name is one word, not {name!r}")


def _by_name(functions: tuple[Callable[..., Any], ...]) -> dict[str, Callable[..., Any]]:
    if not functions:
        raise ValueError("a library needs at least one function")
    named: dict[str, Callable[..., Any]] = {}
    for function in functions:
        known = getattr(function, "__name__", None)
        if not callable(function) or not isinstance(known, str):
            raise TypeError(f"a library is made of functions, not {type(function).__name__}")
        if known in named:
            raise ValueError(f"two functions are called {known}; calls name them")
        named[known] = function
    return named


def _checked_text(init: str) -> str:
    """A shell text that is whole in itself: TaskVine's own ``init_command`` goes before another command instead."""
    if "\0" in init:
        raise EngineError("init cannot hold a NUL character")
    argv = ["/bin/sh", "-n", "-c", init]
    checked = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if checked.returncode != 0:
        raise EngineError(
            f"init is no complete shell command: {checked.stderr.strip()}",
            advice="it runs by itself, inside the environment, before the library starts: nothing follows it on its "
            "line, so that it ends neither in && nor in | and needs no exec",
        )
    return init


def _analyzed(code: tuple[Callable[..., Any], ...]) -> Environment:
    from poncho_wq.analyze import analyze
    from poncho_wq.engines import core

    return core.prepared(analyze(*code))


def _reach(code: tuple[Callable[..., Any], ...]) -> Reach:
    """What all the functions reach together."""
    from poncho_wq.analysis.memory import reach_of_call
    from poncho_wq.analysis.model import Reach

    each = [reach_of_call(function, (), {}) for function in code]
    return Reach(
        verdicts=tuple(verdict for one in each for verdict in one.verdicts),
        local_modules=tuple(dict.fromkeys(module for one in each for module in one.local_modules)),
        by_value=frozenset().union(*(one.by_value for one in each)),
        sources=tuple(dict.fromkeys(path for one in each for path in one.sources)),
    )


def _hoisted(hoist: Any, reach: Reach) -> dict[str, list[str]]:
    if hoist is None:
        return {"hoist": [], "wanted": []}
    if hoist == "auto":
        return {"hoist": sorted(_imports_of(reach)), "wanted": []}
    if isinstance(hoist, str):
        raise ValueError(f'hoist is "auto", None or a list of modules, not {hoist!r}')
    wanted = []
    for module in hoist:
        if not isinstance(module, (str, types.ModuleType)):
            raise TypeError(f"hoist names modules; functions and classes come with the functions: {module!r}")
        wanted.append(module if isinstance(module, str) else module.__name__)
    return {"hoist": [], "wanted": wanted}


def _imports_of(reach: Reach) -> set[str]:
    """The modules that calls will import, and that environments can have."""
    found = set()
    for verdict in reach.verdicts:
        module = verdict.imported.absolute()
        if not module or verdict.imported.optional or verdict.imported.never or verdict.status == "local":
            continue
        top = module.partition(".")[0]
        if top != "__future__" and (verdict.status != "out" or top in sys.stdlib_module_names):
            found.add(module)
    return found


def _task(
    manager: Any, name: str, env: Environment, exec_mode: str, made: dict[str, Any], reach: Reach, shell: str | None
) -> Any:
    """TaskVine's library task with its inputs."""
    vine = vine_manager.find_taskvine()
    declared = vine_manager.declared_to(manager)
    program = payload.program_archive("poncho-library", Path(__file__).with_name("vine_library.py"), "cloudpickle")
    # One pickle for all, so that functions of one module share their globals, as they do here.
    header = f"poncho-library 1 {payload.PYTHON} {exec_mode} {name}\n".encode()
    pickled = payload.pickled(made, f"library {name}", reach.by_value)
    inputs = [program, staging.share("poncho-functions", header + pickled)]
    code = local_code.pack_local(reach)
    if code is not None:
        refuse_shadowing(code.modules, env)
        inputs.append(code.file)
    call = f"./{program.name} {inputs[1].name} {'-' if code is None else code.file.name}"
    if shell is None:
        command = f"python3 -s {call} 0"
    else:
        command = f"/bin/sh -c {shlex.quote(_WITH_INIT.replace('{call}', call))} sh {shlex.quote(shell)}"
    task = vine.LibraryTask(command, name)
    task.add_execution_context(vine_manager.declare(manager, env))
    task.set_command(vine_manager.checked(task.command, vine_manager.mounted(task.command), env))
    shared = [(file, declared.share(manager, file.path)) for file in inputs]
    for file, known in shared:
        task.add_input(known.file, file.name)
    task.set_function_exec_mode_from_string(exec_mode)
    declared.libraries[name] = vine_manager.Library(by_value=reach.by_value, files=tuple(shared))
    return task
