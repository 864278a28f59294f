"""The ``pip`` part of a specification with a conda section: installed by uv into the conda prefix, beside its packages.

What conda has installed counts as installed, and is never replaced: its versions are constraints for uv, and no file of
it may be overwritten.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from poncho_wq.build import FileGroup
from poncho_wq.build.host import requirement_line
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.packages import settle_distributions
from poncho_wq.build.records import Distribution, named
from poncho_wq.build.uv import Uv, manylinux
from poncho_wq.errors import BuildError, SolveError
from poncho_wq.lock import Lock, LockedPackage, packages_from_pylock
from poncho_wq.progress import OnProgress, Progress
from poncho_wq.spec import EnvSpec

# A line of `uv pip install --dry-run`: ` + name==1.0`, or with `(from URL)` after it.
_ADDED = re.compile(r"^ \+ (?P<name>[A-Za-z0-9_.-]+)==(?P<version>[^\s]+)(?: \(from (?P<url>[^)]+)\))?$", re.MULTILINE)


class PrefixUv(Uv):
    """uv for a prefix that has packages already."""

    def additions(
        self,
        requirements: Sequence[str],
        *,
        python: Path,
        constraints: Path,
        glibc: str | None,
        platform: str,
        work: Path,
    ) -> list[str]:
        """What would have to be installed: requirements that each name one version, or one URL.

        Raises ``SolveError`` when it cannot be done within ``constraints``, ``FetchError``, ``BuildError``.
        """
        wanted = work / "wanted.in"
        wanted.write_text("".join(f"{each}\n" for each in requirements), encoding="utf-8")
        argv = ["pip", "install", "--dry-run", "--requirements", wanted.name, "--python", str(python)]
        # An argument hides the variable, where the constraints of the user and of the source are.
        for file in (constraints.name, *self._environment.get("UV_CONSTRAINT", "").split()):
            argv += ["--constraints", file]
        if glibc is not None:
            argv += ["--python-platform", manylinux(glibc, platform)]
        said = self._run(argv, cwd=work, what="resolve the packages")
        return [
            f"{m['name']} @ {m['url']}" if m["url"] else f"{m['name']}=={m['version']}" for m in _ADDED.finditer(said)
        ]


def lock(uv: PrefixUv, spec: EnvSpec, prefix: Path, *, work: Path, platform: str) -> tuple[LockedPackage, ...]:
    """What ``spec.pip`` adds to the linked ``prefix``.  ``work`` is a directory for uv's files."""
    python = prefix / "bin" / "python"
    have = dict(map(named, _site_packages(prefix).glob("*.dist-info")))
    constraints = work / "conda.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in have.items() if _is_version(version)))
    try:
        exact = uv.additions(
            spec.pip, python=python, constraints=constraints, glibc=spec.glibc, platform=platform, work=work
        )
    except SolveError as error:
        of_conda = [name for name in have if re.search(rf"\b{re.escape(name)}=={re.escape(have[name])}", error.message)]
        if not of_conda:
            raise
        ours = ", ".join(f"{name} {have[name]}" for name in of_conda)
        raise SolveError(
            error.message, command=error.command, log=error.log,
            advice=f"the conda section brings {ours}, which pip may not replace: ask for another version there, "
            "or leave it to pip altogether",
        ) from error  # fmt: skip
    if not exact:
        return ()
    solved = uv.compile(
        exact, preferred={}, python=python, glibc=spec.glibc, platform=platform, work=work, dependencies=False
    )
    return packages_from_pylock(solved)


def install(
    uv: PrefixUv, spec: EnvSpec, lock: Lock, prefix: Path, *, owned: Mapping[str, str], on_progress: OnProgress
) -> list[FileGroup]:
    """Install the locked packages of the index into the linked ``prefix``, made portable; returns their files.

    ``owned`` is path → conda package.  Raises ``BuildError`` when a file of one would be replaced.
    """
    site_packages = _site_packages(prefix)
    before = set(site_packages.glob("*.dist-info"))
    count = len(lock.packages)
    on_progress(Progress(stage="install", detail="packages of the index", done=0, total=count, unit="packages"))
    add(uv, spec, lock, prefix)
    added = sorted(set(site_packages.glob("*.dist-info")) - before)
    new = [Distribution(info, prefix) for info in added if (info / "RECORD").is_file()]
    _check_untouched(new, owned)
    private = [uv.cache, prefix, Path(tempfile.gettempdir())]
    settle_distributions(Interpreter.of(prefix / "bin" / "python"), prefix, new, os.environ, private=private)
    on_progress(Progress(stage="install", detail="packages of the index", done=count, total=count, unit="packages"))
    return [FileGroup(name=each.name, version=each.version, kind="pip", files=tuple(each.files)) for each in new]


def add(uv: PrefixUv, spec: EnvSpec, lock: Lock, prefix: Path) -> None:
    """Have uv install the locked packages of the index into the linked ``prefix``, as it leaves them."""
    with tempfile.TemporaryDirectory(prefix="poncho-uv-", ignore_cleanup_errors=True) as work:
        uv.install(
            [requirement_line(package, spec) for package in lock.packages],
            prefix=prefix,
            python=prefix / "bin" / "python",
            glibc=spec.glibc,
            platform=lock.platform,
            all_hashed=all(package.sha256 for package in lock.packages),
            work=Path(work),
        )
    (prefix / ".lock").unlink(missing_ok=True)  # uv's


def _check_untouched(new: Sequence[Distribution], owned: Mapping[str, str]) -> None:
    for distribution in new:
        clash = next((path for path in distribution.files if path in owned), None)
        if clash is not None:
            raise BuildError(
                f"{distribution.name} {distribution.version} of the pip section replaced {clash}, "
                f"a file of the conda package {owned[clash]}",
                advice=f"take both from conda, or leave {owned[clash]} out of the conda section",
            )


def _site_packages(prefix: Path) -> Path:
    """The one directory of packages.  Raises ``BuildError`` where conda brought no Python."""
    found = sorted((prefix / "lib").glob("python3*/site-packages"))
    if not found:
        raise BuildError("the conda packages bring no Python that packages of the index could be installed for")
    return found[-1]


def _is_version(text: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
