"""Builders around builders: what a source demands of the lock, and data beside the packages.

Each takes any builder, so that neither the host nor the conda builder has to know of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from poncho_wq.build import Builder, Prefix
from poncho_wq.build.data import lock_data, place_data
from poncho_wq.build.datastore import DataStore
from poncho_wq.importing.model import Conditions
from poncho_wq.lock import Lock
from poncho_wq.progress import OnProgress
from poncho_wq.spec import EnvSpec


class WithConditions:
    """A builder whose locks hold only what ``conditions`` allow; constraints are the resolver's to keep."""

    def __init__(self, builder: Builder, conditions: Conditions) -> None:
        self._builder = builder
        self._conditions = conditions

    def interpreter(self) -> str | None:
        return self._builder.interpreter()

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        return self._conditions.restrict(self._builder.lock(spec, on_progress))

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        return self._builder.build(spec, lock, prefix, on_progress)

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix | None:
        return self._builder.rebuild(spec, lock, prefix, on_progress)


class WithData:
    """A builder whose environments also hold data; the packages are ``builder``'s work."""

    def __init__(self, builder: Builder, store: DataStore) -> None:
        self._builder = builder
        self._store = store

    def interpreter(self) -> str | None:
        return self._builder.interpreter()

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        # Packages first: they fail for more reasons, and data is what takes long.
        lock = self._builder.lock(spec, on_progress)
        return replace(lock, data=lock_data(spec, self._store, on_progress))

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        return self._with_data(self._builder.build(spec, lock, prefix, on_progress), spec, lock, on_progress)

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix | None:
        built = self._builder.rebuild(spec, lock, prefix, on_progress)
        return None if built is None else self._with_data(built, spec, lock, on_progress)

    def _with_data(self, built: Prefix, spec: EnvSpec, lock: Lock, on_progress: OnProgress) -> Prefix:
        groups = place_data(spec, lock.data, self._store, built.path, on_progress)
        return replace(built, groups=(*built.groups, *groups))
