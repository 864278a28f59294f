"""TaskVine's binding, and what has been declared to each of its managers: environments, and files that tasks share.

Nothing here keeps a manager alive, and what was declared to it is forgotten with it.
"""

from __future__ import annotations

import importlib
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from poncho_wq.engines import core
from poncho_wq.engines.shipping import Shipment
from poncho_wq.engines.tarballs import validated
from poncho_wq.engines.vine_parts import ship_in_parts
from poncho_wq.errors import EngineError, EngineNotInstalled

if TYPE_CHECKING:
    from poncho_wq.prepare import Environment, EnvironmentLike
    from poncho_wq.staging import SharedFile

MODULE = "ndcctools.taskvine"
_ADVICE = "conda install -c conda-forge ndcctools   (TaskVine is on no other package index)"

# What TaskVine's own PythonTask imports on a worker.  It is added to every description that is prepared for TaskVine,
# so that tasks, PythonTasks and libraries of one description share one environment.
PACKAGES = ("cloudpickle",)

# Shared files that stay declared although no task has them now: a manager that waits for each task before it makes the
# next would otherwise send them again each time.
_KEPT = 16


@cache
def find_taskvine() -> ModuleType:
    """The binding's module.  Raises ``EngineNotInstalled``, saying how to get it."""
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise EngineNotInstalled(
            f"TaskVine's Python binding was not found ({error})", engine="taskvine", advice=_ADVICE
        ) from error


class Shared:
    """A file declared to one manager, for as long as anybody refers to this object."""

    __slots__ = ("__weakref__", "_manager", "file")

    def __init__(self, manager: Any, file: Any) -> None:
        self._manager = weakref.ref(manager)
        self.file = file

    def __del__(self) -> None:
        # At interpreter exit modules may be half gone; the manager takes everything with it then.
        try:
            manager = self._manager()
            if manager is not None:
                manager.undeclare_file(self.file)
        except Exception:
            pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A library of ours: the modules that it has by value, and so must its arguments; the files (ours and as declared)
    that it needs for as long as the manager may start another one."""

    by_value: frozenset[str]
    files: tuple[tuple[SharedFile, Shared], ...]


class Declared:
    """Everything of ours that one manager knows."""

    def __init__(self) -> None:
        self.environments: dict[str, Any] = {}
        self.libraries: dict[str, Library] = {}
        self._shared: weakref.WeakValueDictionary[str, Shared] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, Shared] = OrderedDict()

    def share(self, manager: Any, path: str) -> Shared:
        """A file that many tasks use.  Its content must never change; the path is its name."""
        found = self._shared.get(path)
        if found is None:
            found = self._shared[path] = Shared(manager, manager.declare_file(path, cache=True, peer_transfer=True))
        self._kept[path] = found
        self._kept.move_to_end(path)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found


_declared: weakref.WeakKeyDictionary[Any, Declared] = weakref.WeakKeyDictionary()


def declared_to(manager: Any) -> Declared:
    """What this manager knows of ours.  Raises ``TypeError`` for what is no TaskVine manager."""
    if not callable(getattr(manager, "declare_poncho", None)):
        raise TypeError(f"a TaskVine manager is needed, not {type(manager).__name__}")
    found = _declared.get(manager)
    if found is None:
        found = _declared[manager] = Declared()
    return found


def declare_environment(manager: Any, E: EnvironmentLike) -> Any:
    """Declare an environment to a TaskVine manager, once however often it is asked; returns TaskVine's file object.

    The file is for any task's ``add_environment`` (or ``add_poncho_package``, the same), also of TaskVine's own
    ``PythonTask``.  ``E`` is anything that ``poncho_wq.environment`` takes; cloudpickle, which ``PythonTask`` needs on
    the worker, is added to a description that lacks it, while an ``Environment`` or a tarball is taken as it is.

    A worker gets the tarball once, from the manager or from another worker, in parts that it may have from another
    environment, and unpacks it once, for all tasks and libraries of all managers that it works for.

    Raises what ``poncho_wq.environment`` raises, ``EngineError`` for a tarball that TaskVine could not run, and
    ``TypeError`` for what is no TaskVine manager.
    """
    return declare(manager, ready(E))


def declare(manager: Any, environment: Environment) -> Any:
    """The same for an environment that is known to be fit."""
    environments = declared_to(manager).environments
    found = environments.get(environment.identity)
    if found is None:
        if not environment.tarball.is_file():
            raise EngineError(
                f"{environment.tarball}: the environment's tarball is not there", advice="prepare the environment again"
            )
        shipment = ship_in_parts(environment.tarball, environment.identity)
        found = environments[environment.identity] = _declared_files(manager, shipment)
    return found


def _declared_files(manager: Any, shipment: Shipment) -> Any:
    """TaskVine's file object for an environment that is unpacked from the files of ``shipment``.

    With cache=True all would get names at random.  "worker" names them by content: the same environment, and the same
    part of another one, is the same file, whoever declares it.
    """
    inputs = [(manager.declare_file(path, cache="worker", peer_transfer=True), name) for path, name in shipment.files]
    if len(inputs) == 1:
        return manager.declare_poncho(inputs[0][0], cache="worker", peer_transfer=True)
    # As declare_poncho does it.  Who reads the parts stops at the first that is missing, and then the file that every
    # task looks for, which is in the last of them, does not come.
    parts = " && ".join(f"cat {name}" for _, name in inputs)
    command = f"mkdir output && {{ {parts}; }} | tar xzf - -C output && output/bin/run_in_env"
    unpacking = find_taskvine().Task(command)
    for file, name in inputs:
        unpacking.add_input(file, name)
    return manager.declare_minitask(unpacking, "output", cache="worker", peer_transfer=True)


_RUN = "/bin/run_in_env "


def mounted(command: str) -> str:
    """Where an environment is in a task's sandbox, from the command that TaskVine has just put it before."""
    return command.partition(_RUN)[0]


def checked(command: str, directory: str, environment: Environment) -> str:
    """``command``, with all of TaskVine's prefixes, for an ``environment`` mounted as ``directory``.

    TaskVine takes no notice when unpacking fails, on a full disk for example, and mounts what there is; an empty
    ``run_in_env`` would even succeed.  So the file that was unpacked last is looked for.  Then the command replaces the
    shell: what the worker kills and waits for is the task itself, and a signal that ended it is told as such.
    """
    # A tarball with a manifest is ours, and ends with this file.
    last = "poncho/spec.json" if environment.platform is not None else "bin/run_in_env"
    complaint = "poncho_wq: the environment could not be unpacked on this worker"
    return f"[ -s {directory}/{last} ] || {{ echo '{complaint}' >&2; exit 125; }}; exec {command}"


def ready(E: EnvironmentLike) -> Environment:
    """What the user gave → an environment that is fit for TaskVine."""
    return validated(core.prepared(E, PACKAGES))


def means() -> core.Means:
    """For ``Job.prepare``: TaskVine mounts the environment and puts ``run_in_env`` before the command itself."""

    def attach(environment: Environment) -> core.Attachment:
        shipment = ship_in_parts(environment.tarball, environment.identity)
        return core.Attachment(cached=(), prefix="", shipment=shipment)

    return core.Means(prepared=ready, attach=attach)
