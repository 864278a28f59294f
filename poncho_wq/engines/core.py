"""What every engine shares: a function or a command, and an environment → a command line and files.

An engine's own task class holds a ``Job``.  At submission the engine asks the job for its ``Plan`` and attaches what
that names by the engine's own means; when the task is done it asks for the ``outcome``.  Nothing about environments is
decided anywhere else.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from poncho_wq import local_code, payload, progress, recording, staging
from poncho_wq.analysis.memory import reach_of_call
from poncho_wq.chunks import Each, Sizes
from poncho_wq.engines.shadowing import refuse_shadowing
from poncho_wq.engines.shipping import Shipment, ship
from poncho_wq.engines.statistics import COLLECT, STATS_NAME, EnvironmentStats, read_stats
from poncho_wq.errors import EngineError
from poncho_wq.program import runner_program, warm_client
from poncho_wq.warm.wanted import Warm, checked_warm, group_of, modules_of, survives_fork
from poncho_wq.wrapper import wrapper_digest, wrapper_path

if TYPE_CHECKING:
    from poncho_wq.analysis.model import Reach
    from poncho_wq.prepare import Environment, EnvironmentLike

# One argument of an exec is at most 128 KiB on Linux (MAX_ARG_STRLEN), and the whole command is one argument of
# `sh -c`; quoting may lengthen it.  A longer command travels as a file.
COMMAND_LIMIT = 32 * 1024
_MARK = os.urandom(4).hex() + "."

UnpackTo = Literal["worker", "node"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to hand to an engine.

    ``words``: the shell line that ``command`` is, in pieces, of which tasks share most.  ``cached``: (local path,
    remote name) of inputs that all tasks share.  ``inputs``: the same for this task's alone.  ``buffers``: (text,
    remote name), ASCII.  ``outputs``: (local path, remote name);
    ``failure_outputs``: those that are there only when the exit status is not 0.
    ``before``: shell text, empty or ending with "; ", to run outside of the environment before the command.
    ``shipment``: in which files the environment goes to workers, where that is known.
    """

    environment: Environment
    words: tuple[str, ...]
    cached: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, str], ...] = ()
    buffers: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    failure_outputs: tuple[tuple[str, str], ...] = ()
    before: str = ""
    shipment: Shipment | None = None

    @property
    def command(self) -> str:
        """One shell line, put together when it is asked for: many plans may wait, and Work Queue keeps it as well."""
        return "".join(self.words)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What is the same for all calls of one function in one environment: the shared inputs, and the command around
    what a call adds to it."""

    environment: Environment
    attached: Attachment
    cached: tuple[tuple[str, str], ...]
    head: str
    tail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """An environment as seen by an engine: the shared inputs, and what goes before the command.

    Two words for the shell: ``python`` is the environment's interpreter, ``workspace`` a directory that lasts for as
    long as the worker, for what its tasks share; "." is a task's own, and shared by none.  ``warm``: the
    environment's name for warm interpreters, None where the engine cannot have them.  ``shipment``: in which files the
    environment goes to workers.  ``says_results``: whether a result may come on the task's stdout, since the engine
    fetches files of a task that failed, and of no other.
    """

    cached: tuple[tuple[str, str], ...]
    prefix: str
    python: str = "python3"
    workspace: str = "."
    warm: str | None = None
    shipment: Shipment | None = None
    says_results: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """How an engine gets from what the user gave to an environment, and from that to inputs and a command's prefix."""

    prepared: Callable[[EnvironmentLike], Environment]
    attach: Callable[[Environment], Attachment]


class Job:
    """What one task is to do, whatever the engine: made once, planned once, perhaps run several times.

    ``Job(function, args, kwargs)``, ``Job(Each(function), (calls,), {"environment": E})`` with a list of argument
    tuples, or ``Job("shell text", (), {"environment": E})``.  Raises ``TypeError`` for
    arguments that the function does not take, ``EngineError`` for what cannot be sent, ``AnalysisError`` for local code
    that is not Python.
    """

    __slots__ = (
        "_arguments", "_code", "_function_file", "_given", "_reach", "_result", "_sizes", "_stats", "before", "command",
        "function", "plan", "unpack_to", "warm",
    )  # fmt: skip

    def __init__(self, work: Callable[..., Any] | Each | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.plan: Plan | None = None
        self.before = ""
        self.command: str | None = None
        self.function: Callable[..., Any] | None = None
        self._reach: Reach | None = None
        self._code: local_code.LocalCode | None = None
        self._stats: staging.OwnFile | recording.Kept | None = None
        self._sizes: Sizes | None = None
        self.unpack_to: UnpackTo = "worker"
        self.warm: Warm = False
        if isinstance(work, str):
            self._given: Any = kwargs.pop("environment", None)
            self.set_unpack_to(kwargs.pop("unpack_to", "worker"))
            if args or kwargs:
                raise TypeError("a command task takes the command, environment= and unpack_to= only")
            self.set_command(work)
            return
        calls: list[tuple[Any, ...]] | None = None
        if isinstance(work, Each):
            self._sizes, calls = work.sizes, args[0]
            work = work.function
        if not callable(work):
            raise TypeError(f"PonchoTask takes a function or the text of a command, not {type(work).__name__}")
        if calls is None:
            ours = split_arguments(work, args, kwargs)
        else:
            ours, kwargs = kwargs, {}
            for call in calls:
                split_arguments(work, call, {})
        self._given = ours.get("environment")
        self.set_unpack_to(ours.get("unpack_to", "worker"))
        self.function = work
        if "warm" in ours:
            self.set_warm(ours["warm"])
        tell = progress.current()
        if tell is not progress.silent:
            tell(progress.Progress(stage="analyze", detail=self.name))
        self._reach = reach = reach_of_call(work, args if calls is None else (calls,), kwargs)
        self._function_file = payload.pickle_function(work, reach.by_value, modules_of(reach))
        if calls is None:
            self._arguments = payload.pickle_arguments(args, kwargs, reach.by_value)
        else:
            self._arguments = payload.pickle_calls(calls, reach.by_value)
        self._code = local_code.pack_local(reach)
        self._result = staging.OwnFile("-result")

    @property
    def mark(self) -> str:
        """By which this task's result is known among what it says on stdout."""
        return _MARK + self._result.name

    @property
    def code_size(self) -> int:
        """Bytes of the archive of local modules that the task ships; 0 when it ships none."""
        return 0 if self._code is None else self._code.size

    @property
    def name(self) -> str:
        """What a person calls the task: its function, or the beginning of its command."""
        if self.function is not None:
            return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))
        return " ".join((self.command or "").split())[:60]

    def set_command(self, command: str) -> None:
        """Replace a command task's text.  Raises ``EngineError`` for a function task, and for a text with a NUL."""
        if self.function is not None:
            raise EngineError("a function task has no command to specify")
        self._refuse_when_planned("its command")
        if "\0" in command:
            raise EngineError("a command cannot hold a NUL character")
        self.command = command

    def set_environment(self, E: EnvironmentLike) -> None:
        """The environment to run in.  Raises ``EngineError`` after submission."""
        self._refuse_when_planned("its environment")
        self._given = E

    def set_unpack_to(self, where: UnpackTo) -> None:
        """Where a worker unpacks the environment: ``"worker"``, its workspace, or ``"node"``, a cache that all workers
        of this user on the machine share.  Raises ``EngineError`` for anything else, and after submission."""
        if where not in ("worker", "node"):
            raise EngineError(f'an environment is unpacked to "worker" or "node", not {where!r}')
        self._refuse_when_planned("where its environment is unpacked")
        self.unpack_to = where

    def set_warm(self, warm: Warm) -> None:
        """Whether to use a warm interpreter.  Raises ``EngineError`` for a command and after submission."""
        checked_warm(warm)
        if self.function is None:
            raise EngineError("only a function task can have a warm interpreter; a command starts its own programs")
        self._refuse_when_planned("how it starts")
        self.warm = warm

    def collect_stats(self) -> None:
        """Have the wrapper's statistics come back.  Raises ``EngineError`` after submission."""
        self._refuse_when_planned("what it collects")
        if self._stats is None:
            self._stats = staging.OwnFile("-stats")

    def _refuse_when_planned(self, what: str) -> None:
        if self.plan is not None:
            raise EngineError(
                f"the task has been submitted: {what} can no longer change",
                advice="say it before submit, or submit a clone",
            )

    def stats(self) -> EnvironmentStats | None:
        """What came back of them, read and then removed; None when they were not asked for, or did not come."""
        if self._stats is None:
            return None
        found = read_stats(self._stats.path)
        self._stats.remove()
        shipment = None if self.plan is None else self.plan.shipment
        if found is None or shipment is None:
            return found
        return replace(found, parts=len(shipment.files), size=shipment.size, shared=shipment.shared)

    def clone(self) -> Job:
        """The same work, to be run again with a result of its own.  What was prepared or pickled is shared."""
        new = Job.__new__(Job)
        for name in ("before", "command", "function", "_given", "_reach", "_code", "_sizes", "unpack_to", "warm"):
            setattr(new, name, getattr(self, name))
        new.plan = None
        new._stats = None if self._stats is None else staging.OwnFile("-stats")
        if self.plan is not None:
            new._given = self.plan.environment
        if self.function is not None:
            new._function_file, new._arguments = self._function_file, self._arguments
            new._result = staging.OwnFile("-result")
        return new

    def prepare(self, means: Means | None = None) -> Plan:
        """The plan, worked out at the first call, which may analyze and build.

        ``means``: how the engine brings environments to its workers; default: a tarball and the wrapper.  Raises what
        ``prepare.environment`` raises, and ``EngineError`` when task and environment do not fit.
        """
        if self.plan is not None:
            return self.plan
        if means is None:
            means = _NODE if self.unpack_to == "node" else _WORKER
        elif self.unpack_to != "worker":
            raise EngineError("this engine unpacks environments by itself, once a worker", advice="leave out unpack_to")
        plan = self._plan_command(means) if self.function is None else self._plan_function(means)
        recorder = recording.current()
        if recorder is not None:
            # Where the task's own is asked for as well, both read the one file.
            files = plan.shipment.files if plan.shipment is not None else ()
            self._stats = recorder.add(self.name, plan.environment, files)
        before = self.before
        if self._stats is not None:
            before = COLLECT + before
            plan = replace(plan, outputs=(*plan.outputs, (self._stats.path, STATS_NAME)))
        self.plan = replace(plan, before=before) if before else plan
        return self.plan

    def outcome(self, said: str | None = None) -> payload.Outcome | None:
        """What the function left, read from ``said`` by its runner or else from the file that came back, which is then
        removed; None if there is nothing."""
        if said is not None:
            found: payload.Outcome | None = payload.load_said(said)
        else:
            found = payload.load_result(self._result.path)
            self._result.remove()
        if self._sizes is not None and found is not None and found.kind == "each":
            self._sizes.measured(len(found.items), found.seconds)
        return found

    def _plan_command(self, means: Means) -> Plan:
        if self._given is None:
            raise EngineError(
                "a command task needs an environment",
                advice="pass environment=… or call specify_environment(…) before submit",
            )
        env = means.prepared(self._given)
        attached = means.attach(env)
        text = self.command or ""
        if len(text) <= COMMAND_LIMIT:
            command = f"{attached.prefix}/bin/sh -c {shlex.quote(text)}"
            return Plan(environment=env, cached=attached.cached, words=(command,), shipment=attached.shipment)
        script = staging.share("poncho-command", text.encode(errors="surrogateescape"), ".sh")
        self._function_file = script
        command = f"{attached.prefix}/bin/sh ./{script.name}"
        cached = (*attached.cached, (script.path, script.name))
        return Plan(environment=env, cached=cached, words=(command,), shipment=attached.shipment)

    def _plan_function(self, means: Means) -> Plan:
        env = self._environment_of(means)
        check_python(env)  # before its files are made ready
        attached = means.attach(env)
        frame = self._frame(env, attached)
        arguments = self._arguments
        result = f"+{self.mark}:{payload.RESULT_NAME}" if attached.says_results else payload.RESULT_NAME
        left = ((self._result.path, payload.RESULT_NAME),)
        return Plan(
            environment=env,
            words=(frame.head, f"{arguments.word} {result}", frame.tail),
            cached=frame.cached,
            inputs=() if arguments.file is None else ((arguments.file.path, payload.ARGUMENTS_NAME),),
            buffers=() if arguments.text is None else ((arguments.text, payload.ARGUMENTS_NAME),),
            outputs=() if attached.says_results else left,
            failure_outputs=left if attached.says_results else (),
            shipment=attached.shipment,
        )

    def _frame(self, env: Environment, attached: Attachment) -> _Frame:
        """The frame for this function and environment, made once for all calls.  Raises ``EngineError`` when they do
        not fit."""
        warm = self._wants_warm(attached)
        code = None if self._code is None else self._code.file.path
        key = id(env), id(attached), self._function_file.path, code, warm
        found = _frames.get(key)
        if found is None:
            if len(_frames) >= _MOST_FRAMES:
                _frames.clear()
            found = _frames[key] = self._framed(env, attached, warm)
        return found

    def _framed(self, env: Environment, attached: Attachment, warm: bool) -> _Frame:
        runner, pickled = runner_program(), self._function_file
        cached = *attached.cached, (runner.path, runner.name), (pickled.path, pickled.name)
        more = place = ""
        if self._code is not None:
            refuse_shadowing(self._code.modules, env)
            code = self._code.file
            cached = (*cached, (code.path, code.name))
            more, place = f" {code.name}", f" {attached.workspace}"
        # -s: the packages of whoever owns the worker are not the environment's.
        start = f"{attached.prefix}{attached.python} -s ./{runner.name} "
        head, tail = f"{start}{pickled.name} ", more + place
        if warm:
            assert self._reach is not None
            server = f"{attached.warm}-{runner.digest[:8]}-{group_of(modules_of(self._reach))}"
            # The shell asks the warm server.  It goes on where there is none, and where that cannot do it.
            client = warm_client(server, f'{start}--warm "$_poncho_warm" "$@"{place}')
            cached = (*cached, (client.path, client.name))
            head, tail = f"set -- {client.name} {pickled.name} ", f"{more}; . ./$1"
        return _Frame(environment=env, attached=attached, cached=cached, head=head, tail=tail)

    def _wants_warm(self, attached: Attachment) -> bool:
        # What a shell does before a task, and what the wrapper says of it, is of a process of the task's own.
        if not self.warm or attached.warm is None or self.before or self._stats is not None:
            return False
        return self.warm is True or (self._reach is not None and survives_fork(modules_of(self._reach)))

    def _environment_of(self, means: Means) -> Environment:
        if self._given is not None:
            return means.prepared(self._given)
        from poncho_wq.analysis.resolve import refuse_unresolved

        assert self._reach is not None
        return prepared(refuse_unresolved(self._reach).spec)


# Each holds what its key has the ids of.
_frames: dict[tuple[int, int, str, str | None, bool], _Frame] = {}
_MOST_FRAMES = 256

_OURS = ("environment", "unpack_to", "warm")


def split_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Check the call and take what is ours out of ``kwargs``, unless the function has a parameter of that name.

    Returns what was there of ``environment``, ``unpack_to``, ``warm``.  Raises ``TypeError`` as the call itself would.
    """
    if not (kwargs and any(name in kwargs for name in _OURS)) and _fits_plainly(function, args, kwargs):
        return {}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some built-in functions have none; they find out on the worker what they were given.
        return {name: kwargs.pop(name) for name in _OURS if name in kwargs}
    ours = {name: kwargs.pop(name) for name in _OURS if name in kwargs and not _takes(signature, name)}
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise TypeError(f"{name}{signature}: {error}") from None
    return ours


def _fits_plainly(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a plain function surely takes these; False says nothing.  `inspect` would need a good part of all the
    time that making a task takes."""
    if type(function) is not types.FunctionType or function.__dict__:
        return False
    code, given = function.__code__, len(args)
    first, end = code.co_argcount - len(function.__defaults__ or ()), code.co_argcount + code.co_kwonlyargcount
    if given > code.co_argcount and not code.co_flags & inspect.CO_VARARGS:
        return False
    if not kwargs:
        return given >= first and (
            end == code.co_argcount or len(function.__kwdefaults__ or ()) == code.co_kwonlyargcount
        )
    names = code.co_varnames
    wanted = names[given:first] + names[code.co_argcount : end]
    return all(name in kwargs or name in (function.__kwdefaults__ or ()) for name in wanted) and all(
        name in names[max(given, code.co_posonlyargcount) : end] for name in kwargs
    )


def _takes(signature: inspect.Signature, name: str) -> bool:
    parameters = signature.parameters.values()
    return any(p.kind is p.VAR_KEYWORD or (p.name == name and p.kind is not p.POSITIONAL_ONLY) for p in parameters)


_prepared: dict[Any, Environment] = {}


def prepared(E: EnvironmentLike, packages: tuple[str, ...] = ()) -> Environment:
    """``prepare.environment(E, packages=…)``, asked once for what has not changed: thousands of tasks may share it."""
    prepare = _preparing()
    if type(E) is prepare.Environment:
        return E  # type: ignore[return-value] # that it is one
    key = _key(E)
    found = None if key is None else _prepared.get((key, packages))
    if found is None or not os.path.exists(found.tarball):
        found = prepare.environment(E, packages=packages)
        if key is not None:
            _prepared[key, packages] = found
    return found


@cache
def _preparing() -> Any:
    """The module, imported when first needed and then no more: the statement takes a microsecond for every task."""
    from poncho_wq import prepare

    return prepare


def _key(E: EnvironmentLike) -> Any:
    """Something that changes whenever what ``E`` stands for may have changed; None when that cannot be said cheaply."""
    from poncho_wq.spec import EnvSpec

    where = os.environ.get("PONCHO_CACHE_DIR")
    if isinstance(E, EnvSpec):
        return E, where
    try:
        if isinstance(E, Mapping):
            return json.dumps(E, sort_keys=True), where
        if isinstance(E, (str, os.PathLike)) and not os.path.isdir(E):
            return os.path.abspath(E), _stat_key(E), where
    except (OSError, TypeError, ValueError):
        # No such file, no JSON: whoever prepares it says so better.
        pass
    return None


def _stat_key(path: str | os.PathLike[str]) -> tuple[int, ...]:
    info = os.stat(path)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


_attachments: dict[tuple[str, str, int, UnpackTo], Attachment] = {}


def attach(environment: Environment) -> Attachment:
    """The files and the command prefix that run a command in this environment.

    Raises ``EngineError`` when the tarball is not there.
    """
    return _attached(environment, "worker")


def attach_to_node(environment: Environment) -> Attachment:
    """The same for an environment that is unpacked into the node's cache, once for all workers there."""
    return _attached(environment, "node")


def _attached(environment: Environment, unpack_to: UnpackTo) -> Attachment:
    key = str(environment.tarball), environment.identity, os.getpid(), unpack_to
    found = _attachments.get(key)
    if found is None:
        found = _attachments[key] = _attach(environment.tarball, environment.identity, unpack_to)
    return found


def _attach(tarball: Path, identity: str, unpack_to: UnpackTo) -> Attachment:
    if not tarball.is_file():
        raise EngineError(f"{tarball}: the environment's tarball is not there", advice="prepare the environment again")
    shipment = ship(tarball, identity)
    short = identity[: staging.DIGEST_LENGTH]
    workspace = '"$WORK_QUEUE_SANDBOX"'
    prefix = f"{workspace}/poncho-env-{identity[:32]}"
    wrapper_name = f"poncho_package_run-{wrapper_digest()[:12]}"
    # Where a node's cache is only the wrapper knows, on the worker; it takes @/ for the environment's directory.
    place, inside = ("--node-cache", "@") if unpack_to == "node" else (f"--unpack-to {prefix}", prefix)
    return Attachment(
        # By links: their names hold the content hash, and so does the path that Work Queue knows a file by.
        cached=(
            *shipment.files,
            (staging.link(wrapper_name, wrapper_path()), wrapper_name),
        ),
        prefix=f"exec sh ./{wrapper_name} {shipment.options} --id {identity} {place} -- ",
        # By its path: where the environment has none, the worker's own would be found on PATH.
        python=f"{inside}/bin/python3",
        workspace=workspace,
        # A node's environment may be evicted when no wrapper's command uses it any more; a server is none.
        warm=short if unpack_to == "worker" else None,
        shipment=shipment,
        says_results=True,
    )


_WORKER = Means(prepared=prepared, attach=attach)
_NODE = Means(prepared=prepared, attach=attach_to_node)


def check_python(environment: Environment) -> None:
    """Refuse a function task whose environment has another minor version of Python than the manager's, or none.

    Raises ``EngineError``.  Byte code is only good for the version that made it.
    """
    version = environment.python
    # Of another tool's tarball neither is known.
    if version is None and environment.platform is not None:
        raise EngineError(
            "the function's environment has no Python",
            advice=f"add python={payload.PYTHON} to its specification, or submit a command task",
        )
    if version is None or ".".join(version.split(".")[:2]) == payload.PYTHON:
        return
    minor = ".".join(version.split(".")[:2])
    raise EngineError(
        f"the function runs on Python {payload.PYTHON} here, but its environment has Python {version}",
        advice=f"use an environment with Python {payload.PYTHON}, run the manager with Python {minor}, "
        "or submit a command task",
    )
