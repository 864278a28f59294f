"""The host builder: an environment around a copy of the interpreter that runs the manager, with packages by uv.

``HostBuilder.build`` tells the story.  The prefix it makes needs nothing of this machine and runs wherever it is put.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from poncho_wq.build import FileGroup, Prefix, builds, elf
from poncho_wq.build.builds import Builds, Outcome, own_files
from poncho_wq.build.interpreter import Interpreter, installed_versions
from poncho_wq.build.interpreters import Interpreters, Sought
from poncho_wq.build.packages import Binaries, settle_packages
from poncho_wq.build.records import Distribution
from poncho_wq.build.stdlib import loader_of
from poncho_wq.build.uv import Uv
from poncho_wq.errors import BuildError, SpecError
from poncho_wq.lock import Lock, LockedPackage, packages_from_pylock
from poncho_wq.platforms import host_platform
from poncho_wq.progress import OnProgress, Progress, silent
from poncho_wq.spec import EnvSpec


class HostBuilder:
    """Builds specifications without a conda section; see ``Builder`` for what each method promises.

    ``cache_root`` is where downloads are kept (in ``uv/``, unless ``$UV_CACHE_DIR`` says otherwise); ``python`` the
    interpreter to copy (default: the one that runs this).  ``offline`` forbids the network.  ``environment``
    are the variables that uv gets (default: those of the process).
    """

    def __init__(
        self,
        *,
        cache_root: Path | None = None,
        python: Interpreter | None = None,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._environment = environment
        self._python = python or Interpreter.running()
        self._offline = offline
        self._cache_root = cache_root
        self._sought: Sought | None = None

    def interpreter(self) -> str:
        return self._python.identity

    def lock(self, spec: EnvSpec, on_progress: OnProgress) -> Lock:
        self._check_python(spec)
        packages: tuple[LockedPackage, ...] = ()
        if spec.pip:
            try:
                # Before anybody waits, and may press Ctrl-C: in the middle of making it, nobody would remove it.
                with _work_directory() as work:
                    on_progress(Progress(stage="resolve", detail=_count(len(spec.pip), "requirement")))
                    packages = self._solve(spec, work, on_progress)
            except OSError as error:  # a full disk, as a rule
                raise BuildError(f"could not resolve the packages: {error}") from error
        return Lock(
            python=self._python.version, interpreter=self._python.identity, platform=host_platform(), packages=packages
        )

    def _solve(self, spec: EnvSpec, work: Path, on_progress: OnProgress) -> tuple[LockedPackage, ...]:
        # What is built next wants a copy of the interpreter; whether there is one is known before uv has answered.
        with ThreadPoolExecutor(1, thread_name_prefix="poncho-seek") as pool:
            seeking = pool.submit(self._interpreters().seek, self._python, os.environ)
            solved = self._uv(on_progress).compile(
                spec.pip,
                preferred=installed_versions(),
                python=self._python.executable,
                glibc=spec.glibc,
                platform=host_platform(),
                work=work,
            )
            with suppress(OSError, BuildError):  # building says what is wrong with it
                self._sought = seeking.result()
        return packages_from_pylock(solved)

    def build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        self._check_python(spec)
        self._check_lock(lock)
        try:
            return self._build(spec, lock, prefix, on_progress)
        except OSError as error:  # a full disk, as a rule
            raise BuildError(f"could not build the environment in {prefix}: {error}") from error

    def _build(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix:
        python = self._python
        on_progress(Progress(stage="install", detail=f"Python {python.version}"))
        sought, self._sought = self._sought or self._interpreters().seek(python, os.environ), None
        certificates = self._interpreters().place(python, prefix, os.environ, sought)
        of_interpreter = list_files(prefix)
        check_glibc(spec.glibc, highest_glibc(prefix, of_interpreter), what=f"Python {python.version} of this machine")

        installed, binaries, files = self._installed(spec, lock, prefix, on_progress)
        highest = highest_glibc(prefix, files, binaries.facts)
        check_glibc(spec.glibc, highest, what="a package")
        glibc = None if highest is None else highest[0]
        groups = group_files(python, files, of_interpreter, installed)
        outcome = None
        with suppress(OSError, BuildError):  # what later builds miss is not missed here
            lines = _lines(lock, spec)
            if lines and _are_usual(installed, files):
                earlier = builds.earlier(lines, groups, binaries, loader_of(python, os.environ), prefix, glibc)
                if earlier is not None:
                    outcome = Outcome(builds=self._builds(), key=self._key(spec, lock, sought), earlier=earlier)
        return self._prefix(prefix, glibc, groups, certificates, outcome)

    def rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix | None:
        self._check_python(spec)
        self._check_lock(lock)
        try:
            return self._rebuild(spec, lock, prefix, on_progress)
        except OSError as error:
            raise BuildError(f"could not build the environment in {prefix}: {error}") from error

    def _rebuild(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> Prefix | None:
        """As ``_build``, of the packages that the nearest earlier build did not have, and of some more."""
        python = self._python
        lines = _lines(lock, spec)
        if not lines:
            return None
        try:
            sought = self._sought = self._sought or self._interpreters().seek(python, os.environ)
            key = self._key(spec, lock, sought)
            earlier = self._builds().nearest(key, lines)
            if earlier is None or not builds.applies(earlier, lines, loader_of(python, os.environ)):
                return None
        except (OSError, BuildError):  # building the whole says what is wrong, if anything is
            return None

        on_progress(Progress(stage="install", detail=f"Python {python.version}"))
        certificates = self._interpreters().place(python, prefix, os.environ, sought)
        of_interpreter = list_files(prefix)
        wanted = builds.to_install(earlier, lines)
        some = replace(lock, packages=tuple(package for package in lock.packages if package.name in wanted))
        installed, _binaries, files = self._installed(spec, some, prefix, on_progress)
        if not _are_usual(installed, files):
            return None
        there = group_files(python, files, of_interpreter, installed)
        groups = builds.combined(earlier, lines, there, prefix, f"lib/{python.library}/site-packages/")
        if groups is None:
            return None
        outcome = Outcome(builds=self._builds(), key=key, earlier=replace(earlier, lines=lines, groups=groups))
        return self._prefix(prefix, earlier.glibc, groups, certificates, outcome)

    def _installed(
        self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress
    ) -> tuple[list[Distribution], Binaries, list[str]]:
        """Install the packages of ``lock``; they, what their binaries say, and all files that ``prefix`` has then."""
        self._install(spec, lock, prefix, on_progress)
        private = [self._uv().cache, Path(tempfile.gettempdir())]
        installed, binaries = settle_packages(self._python, prefix, os.environ, private=private)
        return installed, binaries, list_files(prefix)

    def _prefix(
        self, path: Path, glibc: str | None, groups: tuple[FileGroup, ...], certificates: tuple[str, ...],
        outcome: Outcome | None,
    ) -> Prefix:  # fmt: skip
        return Prefix(
            path=path,
            python=self._python.version,
            platform=host_platform(),
            glibc=glibc,
            groups=groups,
            certificates=certificates,
            outcome=outcome,
        )

    def _builds(self) -> Builds:
        return Builds(self._root())

    def _key(self, spec: EnvSpec, lock: Lock, sought: Sought) -> str:
        return builds.key_of(sought.key, self._uv().settings(), spec.glibc or "", lock.platform)

    def _install(self, spec: EnvSpec, lock: Lock, prefix: Path, on_progress: OnProgress) -> None:
        total = len(lock.packages)
        if not total:
            return
        on_progress(Progress(stage="install", detail=_count(total, "package"), done=0, total=total, unit="packages"))
        with _work_directory() as work:
            self._uv(on_progress).install(
                [requirement_line(package, spec) for package in lock.packages],
                prefix=prefix,
                python=self._python.executable,
                glibc=spec.glibc,
                platform=lock.platform,
                all_hashed=all(package.sha256 for package in lock.packages),
                work=work,
            )
        on_progress(
            Progress(stage="install", detail=_count(total, "package"), done=total, total=total, unit="packages")
        )

    def _root(self) -> Path:
        if self._cache_root is not None:
            return self._cache_root
        from poncho_wq.cache import default_root

        return default_root()

    def _interpreters(self) -> Interpreters:
        return Interpreters(self._root())

    def _uv(self, on_progress: OnProgress = silent) -> Uv:
        given = os.environ if self._environment is None else self._environment
        environment = {**given, "UV_OFFLINE": "1"} if self._offline else given
        return Uv(cache=self._root() / "uv", environment=environment, on_progress=on_progress)

    def _check_python(self, spec: EnvSpec) -> None:
        have = self._python.version
        if spec.python is not None and have != spec.python and not have.startswith(f"{spec.python}."):
            raise SpecError(
                f"the environment takes the interpreter that runs the manager, which is {have}, not {spec.python}",
                path="python",
                advice=f'run the manager with Python {spec.python}, or take out "python", or ask conda for it: '
                f'"conda": {{"channels": ["conda-forge"], "packages": ["python={spec.python}"]}}',
            )

    def _check_lock(self, lock: Lock) -> None:
        mine = (self._python.version, host_platform())
        if (lock.python, lock.platform) != mine:
            raise BuildError(
                f"the lock is for Python {lock.python} on {lock.platform}, and this is Python {mine[0]} on {mine[1]}",
                advice="build it with the Python that it was locked for, or lock the environment again",
            )


def _are_usual(installed: Iterable[Distribution], files: Iterable[str]) -> bool:
    """Whether all packages came as they were published, and none has a file of another: they can come and go alone."""
    return not any(each.built_here for each in installed) and own_files(installed, files)


def _lines(lock: Lock, spec: EnvSpec) -> dict[str, str]:
    """Package → digest of what is installed; empty where the lock leaves open what that is."""
    if not all(package.sha256 for package in lock.packages):
        return {}
    lines = {package.name: requirement_line(package, spec) for package in lock.packages}
    # Digests, since a line may have a password in it.
    return {name: hashlib.sha256(line.encode()).hexdigest() for name, line in lines.items()}


def requirement_line(package: LockedPackage, spec: EnvSpec) -> str:
    """``package`` as a line of a requirements file, with its hashes.  Local files are found by the specification."""
    from packaging.requirements import Requirement

    if package.url is None:
        line = f"{package.name}=={package.version}"
    else:
        given = {_normal(each.name): each.url for each in map(Requirement, spec.pip) if each.url}
        url = given.get(package.name) or package.url
        if package.commit:
            address, hash_mark, fragment = url.partition("#")
            scheme, _, rest = address.partition("://")
            path, at, _reference = rest.rpartition("@")
            rest = path if at and "/" in path else rest  # not the @ of user@host
            url = f"{scheme}://{rest}@{package.commit}{hash_mark}{fragment}"
        line = f"{package.name} @ {url}"
    return " ".join([line, *(f"--hash=sha256:{digest}" for digest in package.sha256)])


def _normal(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def list_files(prefix: Path) -> list[str]:
    """Everything in ``prefix``, relative to it and sorted: files, symbolic links, empty directories with a ``/``."""
    found = []
    root = os.fspath(prefix)
    for directory, subdirectories, files in os.walk(root):
        here = directory[len(root) :].lstrip("/")
        base = f"{here}/" if here else ""
        links = [name for name in subdirectories if os.path.islink(os.path.join(directory, name))]
        found += [base + name for name in (*files, *links)]
        if not files and not subdirectories and here:
            found.append(base)
    return sorted(found)


def group_files(
    python: Interpreter, files: Iterable[str], of_interpreter: Iterable[str], installed: Iterable[Distribution]
) -> tuple[FileGroup, ...]:
    """Each of ``files`` in the group of the distribution that lists it, of the interpreter, or of neither."""
    left = set(files)
    groups = []
    for distribution in installed:
        mine = distribution.among(left)
        left -= mine
        groups.append(
            FileGroup(name=distribution.name, version=distribution.version, kind="pip", files=tuple(sorted(mine)))
        )
    # Empty without packages and not there with any: a layer that has it would change with the first package.
    base = left.intersection(of_interpreter) - {f"lib/{python.library}/site-packages/"}
    groups.insert(0, FileGroup(name="python", version=python.version, kind="interpreter", files=tuple(sorted(base))))
    if left - base:
        groups.append(FileGroup(name="other", version=None, kind="other", files=tuple(sorted(left - base))))
    return tuple(groups)


def highest_glibc(
    prefix: Path, files: Iterable[str] | None = None, known: Mapping[str, elf.Elf] | None = None
) -> tuple[str, str] | None:
    """The highest glibc that any binary in ``prefix`` for this machine asks for, and that binary; None if none does.

    ``files`` are all that it holds, when that is known; of some, ``known`` has what was read before.  What is done to
    binaries here changes where they look for libraries, and never which of glibc they ask for.
    """
    known = known or {}
    names = list_files(prefix) if files is None else files
    read = elf.among(prefix, (name for name in names if name not in known and not name.endswith("/")))
    highest: tuple[tuple[int, ...], str] | None = None
    for name, facts in (*known.items(), *read):
        if not facts.glibc or not facts.for_this_machine:
            continue
        # Of several, the first by name: which one is told must not depend on what was known.
        if highest is None or facts.glibc > highest[0] or (facts.glibc == highest[0] and name < highest[1]):
            highest = (facts.glibc, name)
    return None if highest is None else (".".join(map(str, highest[0])), highest[1])


def check_glibc(allowed: str | None, needed: tuple[str, str] | None, *, what: str) -> None:
    """Raise ``BuildError`` when ``needed`` is newer than what the specification allows."""
    if allowed is None or needed is None or _numbers(needed[0]) <= _numbers(allowed):
        return
    raise BuildError(
        f"{what} needs glibc {needed[0]}, and the specification allows {allowed} at most (file {needed[1]})",
        advice='build on a machine with an older C library, take Python from conda ("conda" section), or raise "glibc"',
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def _work_directory() -> Iterator[Path]:
    """A private directory for uv's input and output, gone afterwards.  Nothing above it is a project of the user's."""
    # Python removes it at its end, too, should a Ctrl-C come before the block is entered.
    with tempfile.TemporaryDirectory(prefix="poncho-uv-", ignore_cleanup_errors=True) as path:
        yield Path(path)
