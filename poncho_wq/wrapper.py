"""Where the run wrapper is: the sh script that a worker unpacks and runs environments with.

It lies in ``worker_wrapper/`` beside this package, since a worker needs it without the package.  An installed wheel
carries it as the data of ``poncho_wq.worker_wrapper`` as well as on PATH.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from poncho_wq.errors import EngineError

NAME = "poncho_package_run"


@cache
def wrapper_path() -> Path:
    """The script's file on this machine.  Raises ``EngineError`` when the installation lacks it."""
    here = Path(__file__).resolve().parent
    # An installed package has it inside; in a checkout it lies beside the package.
    for candidate in (here / "worker_wrapper" / NAME, here.parent / "worker_wrapper" / NAME):
        if candidate.is_file():
            return candidate
    raise EngineError(
        f"{NAME}: the run wrapper is missing from this installation of poncho_wq",
        advice="install poncho_wq again: pip install --force-reinstall poncho_wq",
    )


@cache
def wrapper_digest() -> str:
    """sha256 of the script, 64 hexadecimal digits: part of its name wherever an engine caches it."""
    return hashlib.sha256(wrapper_path().read_bytes()).hexdigest()
