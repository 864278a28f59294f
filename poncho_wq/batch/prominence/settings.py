"""Where PROMINENCE's jobs are kept and what runs them: environment variables, else ``[prominence]`` in config.toml.

| variable, key                       | what it says, and its default |
|-------------------------------------|--------------------------------------------------------------------------------|
| ``PONCHO_PROMINENCE_SPOOL``, spool  | directory of jobs and results (the user's data directory) |
| ``…_ENGINE``, engine                | ``local`` (this machine), ``work_queue``, ``taskvine`` |
|                                     | (``local``, or ``work_queue`` with a port or name) |
| ``…_PORT``, port; ``…_NAME``, name  | the manager's port (any); the project name for the catalog (none) |
| ``…_WORKERS``, workers              | how many workers to start on this machine (0) |
| ``…_CORES``, cores                  | cores of each (1; with ``local``, all of this machine's) |
| ``…_FEATURES``, features            | what these workers offer, comma-separated (the container runtimes on PATH) |
| ``…_ADDRESS``, address              | where workers reach this machine for ``execute`` and the like (its name; |
|                                     | 127.0.0.1 when all workers are here) |
| ``…_IDLE``, idle                    | seconds without work after which the service ends (300) |
| ``…_STALL``, stall                  | seconds after which a job that no connected worker takes is given up (300) |

The service reads them when it starts; they make no difference to one that runs, and who hands over to that is warned.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from poncho_wq.batch.settings import section
from poncho_wq.engines.opened import KINDS
from poncho_wq.errors import SpecError

_PREFIX = "PONCHO_PROMINENCE_"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """See the module.  ``address`` is what the channel of running jobs listens on, and is told to them."""

    spool: Path
    engine: str
    port: int
    name: str | None
    workers: int
    cores: int
    features: tuple[str, ...]
    address: str
    idle: float
    stall: float

    @property
    def is_all_here(self) -> bool:
        """Whether no worker can be on another machine, so that what they offer is known."""
        return self.engine == "local" or (self.workers > 0 and not self.port and self.name is None)


def settings() -> Settings:
    """As they are now.  Raises ``SpecError`` for a value that makes no sense."""
    configured = section("prominence", {}) or {}

    def value(name: str, convert: Callable[[str], _T], default: _T) -> _T:
        text = os.environ.get(_PREFIX + name.upper()) or configured.get(name)
        if not text:
            return default
        try:
            return convert(text)
        except ValueError as error:
            raise SpecError(f"{error}", path=f"{_PREFIX}{name.upper()}") from error

    port, name = value("port", _whole, 0), value("name", str, None)
    engine = value("engine", _engine, "work_queue" if port or name else "local")
    workers = value("workers", _whole, 0)
    here = engine == "local" or (workers > 0 and not port and name is None)
    return Settings(
        spool=value("spool", lambda text: Path(os.path.expanduser(text)).absolute(), _default_spool()),
        engine=engine, port=port, name=name, workers=workers,
        cores=value("cores", _positive, len(os.sched_getaffinity(0)) if engine == "local" and not workers else 1),
        features=value("features", _words, _runtimes()),
        address=value("address", str, "127.0.0.1" if here else socket.getfqdn()),
        idle=value("idle", _seconds, 300.0), stall=value("stall", _seconds, 300.0),
    )  # fmt: skip


def _default_spool() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("poncho_wq")) / "prominence"


def _runtimes() -> tuple[str, ...]:
    """The container runtimes of this machine, as features; apptainer serves for singularity, as in ``containers``."""
    found = [each for each in ("singularity", "apptainer", "udocker") if shutil.which(each)]
    if "apptainer" in found and "singularity" not in found:
        found.append("singularity")
    return tuple(found)


def _engine(text: str) -> str:
    if text not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {text!r}")
    return text


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise ValueError("expected a number from 1, got 0")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ValueError(f"expected a number of seconds, got {text!r}")
    return number


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def facts_of(given: Settings) -> dict[str, Any]:
    """What a service says of itself."""
    return {
        "pid": os.getpid(),
        "engine": given.engine,
        "features": list(given.features),
        "is_all_here": given.is_all_here,
        "settings": _shown(given),
    }


def differences(given: Settings, facts: dict[str, Any]) -> list[str]:
    """What ``given`` says and a service that told ``facts`` does not do: ``engine=work_queue (it has local)``."""
    has = facts.get("settings", {})
    return [f"{name}={value} (it has {has[name]})" for name, value in _shown(given).items() if value != has.get(name)]


def _shown(given: Settings) -> dict[str, str]:
    told = {"engine": given.engine, "port": given.port or "any", "name": given.name, "workers": given.workers,
            "cores": given.cores, "features": ",".join(given.features)}  # fmt: skip
    return {name: str(value) if value else "none" for name, value in told.items()}
