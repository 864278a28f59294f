"""Dask graphs on TaskVine in prepared environments: TaskVine's ``DaskVine``, taught two things.

Since Dask 2025.4 a collection hands its scheduler an expression rather than a graph, on which TaskVine's own fails; and
``environment=`` takes whatever ``poncho_wq.environment`` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import cloudpickle
from packaging.version import Version

from poncho_wq.engines import core
from poncho_wq.engines.tarballs import validated
from poncho_wq.engines.vine_manager import PACKAGES, declare, find_taskvine
from poncho_wq.errors import EngineError, EngineNotInstalled

if TYPE_CHECKING:
    from poncho_wq.prepare import EnvironmentLike

__all__ = ["DaskVine"]

# The first with the task objects that TaskVine's executor is written for.
OLDEST_DASK = Version("2024.12.0")


def _stock() -> Any:
    """TaskVine's class.  Raises ``EngineNotInstalled`` where TaskVine or a Dask that it can work with is missing."""
    try:
        dask = Version(version("dask"))
    except PackageNotFoundError as missing:
        raise EngineNotInstalled("Dask is not installed", engine="dask", advice="pip install dask") from missing
    if dask < OLDEST_DASK:
        raise EngineNotInstalled(
            f"Dask {dask} is older than what TaskVine's executor works with",
            engine="dask",
            advice=f"pip install 'dask>={OLDEST_DASK}'",
        )
    find_taskvine()
    try:
        from ndcctools.taskvine.dask_executor import DaskVine as stock
    except ImportError as error:
        raise EngineNotInstalled(
            f"TaskVine's Dask executor does not work with Dask {dask}: {error}",
            engine="taskvine",
            advice="conda install -c conda-forge ndcctools brings a newer one",
        ) from error
    return stock


if TYPE_CHECKING:
    _DaskVine: Any
else:
    _DaskVine = _stock()


class DaskVine(_DaskVine):  # type: ignore[misc] # the base is TaskVine's
    """``with dask.config.set(scheduler=DaskVine(port=0).get): x.compute(environment=E)``.

    Everything else is as in TaskVine's own ``DaskVine``.
    """

    def get(self, dsk: Any, keys: Any, *, environment: Any = None, **options: Any) -> Any:
        """Compute ``keys`` of a graph or of an expression.

        ``environment``: anything that ``poncho_wq.environment`` takes, or a file that was declared to this manager
        already; this version of Dask is added to a description.  It is declared once for all computations of this
        manager, and a worker unpacks it once.

        Raises what ``poncho_wq.environment`` raises, ``EngineError`` for what is neither graph nor expression.
        """
        if environment is not None and not hasattr(environment, "_file"):
            environment = declare(self, validated(_ready(environment)))
        with _by_value():
            return super().get(_graph_of(dsk), keys, environment=environment, **options)

    def _task_priority(self, dag: Any, cat: str, key: Any) -> Any:
        """TaskVine's own, which takes every input of a task for a file that has a size; a plain value has none."""
        try:
            return super()._task_priority(dag, cat, key)
        except AttributeError:
            return 0.0


@contextmanager
def _by_value() -> Iterator[None]:
    """TaskVine's function that runs a part of a graph is sent itself: only conda's environments could have TaskVine.

    It prints by what its module calls ``print``, which is rich's, and that an environment may lack as well.
    """
    from ndcctools.taskvine import dask_executor

    if dask_executor.__name__ in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    printing = vars(dask_executor).get("print", print)
    dask_executor.print = print
    cloudpickle.register_pickle_by_value(dask_executor)
    try:
        yield
    finally:
        dask_executor.print = printing
        cloudpickle.unregister_pickle_by_value(dask_executor)


def _ready(E: EnvironmentLike) -> Any:
    return core.prepared(E, (f"dask=={version('dask')}", *PACKAGES))


def _graph_of(dsk: Any) -> dict[Any, Any]:
    """The graph as a dictionary of keys and tasks."""
    # An expression is lowered before it says what it consists of; `optimize` has been called by Dask.
    graph = dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk
    if not isinstance(graph, Mapping):
        raise EngineError(f"DaskVine.get takes a Dask graph or expression, not {type(dsk).__name__}")
    return dict(graph)
