"""Finding Work Queue's Python binding.

It is on no package index.  conda's ``ndcctools`` brings ``ndcctools.work_queue``, Debian's ``python3-workqueue`` the
module ``work_queue`` in the system Python's directory, where a virtual environment does not look.  There it is loaded
file by file, since the whole directory on ``sys.path`` would bring in every other Debian package as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

from poncho_wq.errors import EngineNotInstalled

MODULES = ("ndcctools.work_queue", "work_queue")
DEBIAN = Path("/usr/lib/python3/dist-packages")

_ADVICE = """\
Debian, Ubuntu: apt-get install coop-computing-tools python3-workqueue   (for the distribution's own python3 version)
conda:          conda install -c conda-forge ndcctools
Without it, poncho_wq.LocalQueue runs the same tasks on this machine."""


@cache
def find_work_queue() -> ModuleType:
    """The binding's module.

    Looks for ``ndcctools.work_queue``, then ``work_queue``, then Debian's files for this minor version of Python.
    Raises ``EngineNotInstalled`` when there is none, saying what was tried and how to get it.
    """
    return _search(MODULES)


def find_other_work_queue() -> ModuleType:
    """The same without ``ndcctools.work_queue``, for what stands in for that."""
    return _search(MODULES[1:])


def _search(names: tuple[str, ...]) -> ModuleType:
    tried = []
    for name in names:
        try:
            with _no_warnings():
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            tried.append(str(error))
        except ImportError as error:
            tried.append(f"{name}: {error}")
    try:
        with _no_warnings():
            return _load_debian(DEBIAN)
    except ImportError as error:
        tried.append(str(error))
    raise EngineNotInstalled(
        f"Work Queue's Python binding was not found ({'; '.join(tried)})", engine="work_queue", advice=_ADVICE
    )


def _load_debian(directory: Path) -> ModuleType:
    """Debian's ``work_queue`` from ``directory``, under its usual name.

    Raises ``ImportError`` when it is not there, is for another version of Python, or cannot be loaded.
    """
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    source = directory / "work_queue.py"
    libraries = [directory / f"_work_queue{suffix}" for suffix in EXTENSION_SUFFIXES]
    library = next((path for path in libraries if path.is_file()), None)
    if not source.is_file() or library is None:
        others = ", ".join(sorted(path.name for path in directory.glob("_work_queue*.so")))
        raise ImportError(f"{directory} has none for {python}" + (f", only {others}" if others else ""))
    before = {name: sys.modules.get(name) for name in ("_work_queue", "work_queue")}
    try:
        # The binding imports its library by name, so both have to be in sys.modules.
        _load("_work_queue", library)
        return _load("work_queue", source)
    except BaseException as error:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
        if isinstance(error, Exception):
            raise ImportError(f"{source}: {error}") from error
        raise


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Debian's binding imports ``distutils``, which warns; that is nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
