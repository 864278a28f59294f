"""The interpreter that an environment without a conda section takes along: the one that runs the manager."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.build.describe import describe
from poncho_wq.command import run
from poncho_wq.errors import BuildError


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A CPython on this machine, as far as copying it needs.

    ``executable`` is the program itself, no symlink and no script.  ``version`` is full (``"3.11.7"``), ``build`` what
    ``sys.version`` says.  ``stdlib`` and ``platstdlib`` hold the standard library (the same directory, mostly),
    ``prefix`` and ``exec_prefix`` are what the program was configured with.  ``platlibdir`` is ``lib`` or ``lib64``.
    """

    executable: Path
    version: str
    build: str
    soabi: str
    stdlib: Path
    platstdlib: Path
    prefix: Path
    exec_prefix: Path
    platlibdir: str

    @classmethod
    def running(cls) -> Interpreter:
        """The base interpreter of this process: inside a virtual environment, the one it was made from.

        Raises ``BuildError`` for what cannot be copied: another implementation, a program that embeds Python.
        """
        return cls._from_facts(describe())

    @classmethod
    def of(cls, program: Path) -> Interpreter:
        """The base interpreter that ``program`` starts.  Raises ``BuildError`` as ``running`` does, and if it fails."""
        script = Path(__file__).with_name("describe.py")
        said = run([program, "-I", "-B", script], what=f"ask {program} about itself").stdout
        return cls._from_facts(json.loads(said))

    @classmethod
    def _from_facts(cls, facts: dict[str, str]) -> Interpreter:
        if facts["implementation"] != "cpython":
            raise BuildError(
                f"an environment can carry CPython only, and the manager runs {facts['implementation']}",
                advice="run the manager with CPython, or give the specification a conda section",
            )
        stdlib, program = Path(facts["stdlib"]), Path(facts["executable"])
        if not (stdlib / "os.py").is_file() or not program.name.startswith("python"):
            raise BuildError(
                f"cannot find the interpreter and library behind {program.name}: Python seems to be embedded in it",
                advice="run the manager with an ordinary python3, or give the specification a conda section",
            )
        return cls(
            executable=program,
            version=facts["version"],
            build=facts["build"],
            soabi=facts["soabi"],
            stdlib=stdlib,
            platstdlib=Path(facts["platstdlib"]),
            prefix=Path(facts["prefix"]),
            exec_prefix=Path(facts["exec_prefix"]),
            platlibdir=facts["platlibdir"],
        )

    @property
    def minor(self) -> str:
        """``"3.11"``."""
        return ".".join(self.version.split(".")[:2])

    @property
    def program(self) -> str:
        """The name in ``bin/`` that is the program itself: ``python3.11``."""
        return f"python{self.minor}"

    @property
    def library(self) -> str:
        """The standard library's directory in ``lib/``: ``python3.11``; ``python3.13t`` when free-threaded."""
        return self.stdlib.name

    @property
    def identity(self) -> str:
        """What tells this interpreter from others of the same version, without a path: ``cpython-3.11.7-<12 hex>``."""
        digest = hashlib.sha256(f"{self.build}\n{self.soabi}".encode()).hexdigest()
        return f"cpython-{self.version}-{digest[:12]}"


def installed_versions(path: Iterable[str] | None = None) -> dict[str, str]:
    """Name → version of the distributions on ``path`` (default: ``sys.path``), read from directory names alone.

    They only guide the resolver, so what cannot be read is left out.  The first of two wins, as with ``import``.
    """
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    found: dict[str, str] = {}
    for directory in sys.path if path is None else path:
        try:
            names = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for item in names:
            name, dash, version = item.removesuffix(".dist-info").partition("-")
            if not item.endswith(".dist-info") or not dash:
                continue
            try:
                found.setdefault(canonicalize_name(name), str(Version(version)))
            except InvalidVersion:
                continue
    return found
