"""Local modules against what an environment is known to hold: neither hides the other, the task is refused.

The runner looks again on the worker, where every environment can be looked into, whoever made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from poncho_wq.errors import EngineError, PonchoError

if TYPE_CHECKING:
    from poncho_wq.analysis.model import LocalModule
    from poncho_wq.prepare import Environment
    from poncho_wq.spec import EnvSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def refuse_shadowing(modules: tuple[LocalModule, ...], environment: Environment) -> None:
    """Raises ``EngineError`` when a package of the environment provides a module of the same name."""
    if environment.spec is not None:
        _refuse(modules, environment.spec, str(environment.tarball))


@lru_cache(maxsize=256)
def _refuse(modules: tuple[LocalModule, ...], spec: EnvSpec, tarball: str) -> None:
    from poncho_wq.distributions import Installed

    installed = Installed.here()
    held = frozenset((*_named(spec), *_locked(tarball)))
    for module in modules:
        if module.path.is_dir() and not (module.path / "__init__.py").exists():
            continue  # a namespace, which may have parts in both
        owners = [owner.name for owner in installed.owners(module.name)]
        if module.distribution is not None:
            owners.append(module.distribution.rpartition(" ")[0])
        for owner in owners:
            if canonicalize_name(owner) in held:
                raise EngineError(
                    f"the module {module.name!r} ({module.path}) is shipped with the task, but its environment has the "
                    f"package {owner}, which provides a module of that name",
                    advice="rename yours, leave that package out of the environment, or install the same package here",
                )


def _named(spec: EnvSpec) -> Iterator[str]:
    """The packages that a specification names, normalised (PEP 503)."""
    conda = spec.conda.packages if spec.conda is not None else ()
    for each in (*spec.pip, *(package.rpartition("::")[2] for package in conda)):
        found = _NAME.match(each)
        if found is not None:
            yield canonicalize_name(found[0])


def _locked(tarball: str) -> Iterator[str]:
    """All packages of an environment that we built: its lock lies beside it in the cache."""
    from pathlib import Path

    from poncho_wq.cache import LOCK_NAME
    from poncho_wq.lockfile import read_lockfile

    path = Path(tarball).with_name(LOCK_NAME)
    if not path.is_file():
        return
    try:
        lock = read_lockfile(path).lock
    except PonchoError:
        # Only a copy for people; that it is damaged is nothing against the environment.
        return
    for name in (*(each.name for each in lock.packages), *(each.name for each in lock.conda)):
        yield canonicalize_name(name)
