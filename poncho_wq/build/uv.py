"""uv: the one place that runs it, and that turns what it says into our errors."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poncho_wq.build import index
from poncho_wq.command import run
from poncho_wq.errors import BuildError, FetchError, PonchoError, SolveError, redact
from poncho_wq.progress import OnProgress, Progress, silent

# What would send packages elsewhere, or switch off what we rely on; and whose Python it is has been decided.
_NOT_FOR_UV = frozenset(
    {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_PROJECT"}
    | {"UV_WORKING_DIR", "UV_PROJECT_ENVIRONMENT", "UV_NO_VERIFY_HASHES", "UV_COMPILE_BYTECODE", "UV_LINK_MODE"}
    | {"UV_NO_INSTALLER_METADATA", "UV_NO_PROGRESS"}
)
# Variables that may hold paths, several with this between them (`uv help`, "Environment variables").
_PATHS = {
    **dict.fromkeys(("UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_BUILD_CONSTRAINT", "UV_INDEX"), " "),
    **dict.fromkeys(("UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_CONFIG_FILE"), " "),
    **dict.fromkeys(("SSL_CERT_FILE", "SSL_CLIENT_CERT"), "\n"),
    "UV_FIND_LINKS": ",",
}
# These say where files come from, and not which.
_WHERE = frozenset({"UV_CACHE_DIR", "UV_OFFLINE", "UV_PYTHON_DOWNLOADS"})
# The manylinux policies that uv knows as platforms (`uv help pip compile`), as glibc 2.x.
_POLICIES = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
_MACHINES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
# The ornaments of uv's error chains, in this and earlier versions.
_ORNAMENT = re.compile(r"^\s*(?:[×│╰├]─?▶?\s*|error:\s*|cause:\s*|Caused by:\s*)*")
_URL = re.compile(r"(?:https?|file|git\+\w+|ssh)://[^\s`'\")]+")


class Uv:
    """uv with one cache and one configuration: the user's, pip's where they have none for uv.

    ``cache`` is its directory.  ``environment`` is that of the process (default: this one).
    ``on_progress`` is told of downloads.
    """

    def __init__(
        self, *, cache: Path, environment: Mapping[str, str] | None = None, on_progress: OnProgress = silent
    ) -> None:
        given = dict(os.environ if environment is None else environment)
        self.cache = Path(os.path.abspath(given.get("UV_CACHE_DIR") or cache))
        self._on_progress = on_progress
        self._arguments = index.uv_arguments(given)
        given.update(index.uv_variables(given))
        self._environment = {name: value for name, value in given.items() if name not in _NOT_FOR_UV}
        self._environment |= _absolute_paths(self._environment)
        self._environment |= {
            "UV_CACHE_DIR": str(self.cache),
            "UV_PYTHON_DOWNLOADS": "never",
            "NO_COLOR": "1",
        }

    def compile(
        self,
        requirements: Sequence[str],
        *,
        preferred: Mapping[str, str],
        python: Path,
        glibc: str | None,
        platform: str,
        work: Path,
        dependencies: bool = True,
    ) -> dict[str, Any]:
        """Solve ``requirements`` for the interpreter ``python``: the contents of a pylock.toml (PEP 751).

        ``preferred`` versions are taken where nothing speaks against them.  ``glibc`` is the oldest C library that the
        files chosen may need.  ``work`` is a directory for the files in between.  Without ``dependencies`` only what is
        named is solved for.
        Raises ``SolveError``, ``FetchError``, ``BuildError``.
        """
        wanted, solved = work / "requirements.in", work / "pylock.toml"
        wanted.write_text("".join(f"{each}\n" for each in requirements), encoding="utf-8")
        if preferred:  # uv takes the versions of an output file that is there already, where it can
            entries = [f'[[packages]]\nname = "{name}"\nversion = "{preferred[name]}"\n' for name in sorted(preferred)]
            solved.write_text('lock-version = "1.0"\ncreated-by = "poncho_wq"\n' + "".join(entries), encoding="utf-8")
        argv = [
            "pip",
            "compile",
            wanted.name,
            "--format",
            "pylock.toml",
            "--output-file",
            solved.name,
            "--python",
            str(python),
        ]
        if glibc is not None:
            argv += ["--python-platform", manylinux(glibc, platform)]
        if not dependencies:
            argv.append("--no-deps")
        self._run(argv, cwd=work, what="resolve the packages")
        return _toml(solved.read_text(encoding="utf-8"))

    def install(
        self,
        lines: Sequence[str],
        *,
        prefix: Path,
        python: Path,
        glibc: str | None,
        platform: str,
        all_hashed: bool,
        work: Path,
    ) -> None:
        """Install exactly the requirements ``lines`` (with their ``--hash``) into ``prefix``, laid out as a venv is.

        Source distributions are built by ``python``, which has the headers.  ``all_hashed`` demands a hash of each.
        Raises ``FetchError``, ``BuildError``.
        """
        locked = work / "requirements.txt"
        locked.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        argv = [
            "pip",
            "install",
            "--no-deps",
            "--requirements",
            locked.name,
            "--prefix",
            os.path.abspath(prefix),
            "--python",
            str(python),
        ]
        argv += ["--link-mode", "hardlink"]
        if all_hashed:
            argv.append("--require-hashes")
        if glibc is not None:
            argv += ["--python-platform", manylinux(glibc, platform)]
        self._run(argv, cwd=work, what="install the packages")

    def settings(self) -> str:
        """The digest of what decides, besides the requirements, what is installed: uv itself and what it is told."""
        told = sorted(item for item in self._environment.items() if item[0].startswith("UV_") and item[0] not in _WHERE)
        files = [path.read_bytes() if path.is_file() else b"" for path in index.uv_files(self._environment)]
        version = run([find_uv(), "--version"], what="ask uv for its version").stdout
        facts = repr((version, told, self._arguments, files))
        return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()

    def _run(self, argv: list[str], *, cwd: Path, what: str) -> str:
        """uv's messages.  Raises as ``explain`` says."""
        try:
            done = run(
                [find_uv(), *argv, *self._arguments], cwd=cwd, env=self._environment, what=what,
                on_line=Downloads(self._on_progress).line,
            )  # fmt: skip
        except BuildError as error:
            raise explain(error, self._indexes()) from error
        return done.stderr

    def _indexes(self) -> list[str]:
        """Where uv asks, for people: URLs without credentials."""
        given = self._environment
        texts = [given.get(name, "") for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL")]
        default = given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL") or ""
        found = [
            word.partition("=")[2] if "://" not in word.partition("=")[0] and "=" in word else word
            for text in texts
            for word in text.split()
        ]
        found += [] if "--no-index" in self._arguments else ([default] if default else ["the default index"])
        found += [each for each in given.get("UV_FIND_LINKS", "").split(",") if each]
        return [redact(each) for each in found]


class Downloads:
    """uv's lines about what it downloads as our progress.

    Away from a terminal uv tells of what is larger than 1 MiB, when it begins and when it ends:
    ``Downloading numpy (16.0MiB)``, then `` Downloaded numpy``.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._say = on_progress
        self._sizes: dict[str, int] = {}
        self._done: set[str] = set()

    def line(self, text: str) -> None:
        """One of uv's lines."""
        begun, ended = _DOWNLOADING.match(text), _DOWNLOADED.match(text)
        if begun:
            self._sizes[begun["name"]] = round(float(begun["size"]) * _UNITS[begun["unit"]])
        elif ended and ended["name"] in self._sizes:
            self._done.add(ended["name"])
        else:
            return
        waiting = [name for name in self._sizes if name not in self._done]
        self._say(
            Progress(
                stage="download", detail=", ".join(waiting), done=sum(self._sizes[name] for name in self._done),
                total=sum(self._sizes.values()), unit="bytes",
            )
        )  # fmt: skip


_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DOWNLOADING = re.compile(r"\s*Downloading (?P<name>\S+) \((?P<size>[0-9.]+) ?(?P<unit>B|KiB|MiB|GiB)\)$")
_DOWNLOADED = re.compile(r"\s*Downloaded (?P<name>\S+)$")


def _absolute_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environment`` that list paths, made absolute: uv runs in another directory than the user."""
    new = {}
    for name, separator in _PATHS.items():
        given = [each for each in environment.get(name, "").split(separator) if each]
        if given:
            new[name] = separator.join(os.path.abspath(each) if os.path.exists(each) else each for each in given)
    return new


def find_uv() -> str:
    """The uv program, from its wheel beside us, else the one on PATH.  Raises ``BuildError`` when there is none."""
    try:
        from uv import find_uv_bin
    except ImportError as error:
        # conda's package of uv is the program alone, in the directory of the Python that we run in
        beside = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
        on_path = shutil.which("uv", path=beside)
        if on_path is not None:
            return on_path
        raise BuildError("the program uv is missing", advice="install it beside poncho_wq: pip install uv") from error
    try:
        return str(find_uv_bin())
    except FileNotFoundError as error:
        raise BuildError(
            f"the program uv is missing: {error}", advice="reinstall it: pip install --force-reinstall uv"
        ) from error


def manylinux(glibc: str, platform: str) -> str:
    """uv's name for the newest platform whose files run with ``glibc`` (``"2.28"``).

    Raises ``SolveError`` below 2.17, for which nobody publishes any more.
    """
    parts = [int(part) for part in glibc.split(".")]
    fitting = [minor for minor in _POLICIES if (2, minor) <= (parts[0], parts[1] if len(parts) > 1 else 0)]
    if not fitting:
        raise SolveError(
            f"glibc {glibc} is older than any that packages are published for (2.17)",
            advice="ask for glibc 2.17 or newer",
        )
    return f"{_MACHINES[platform]}-manylinux_2_{fitting[-1]}"


def explain(error: BuildError, indexes: Sequence[str]) -> PonchoError:
    """The error that says what ``error``, raised because uv failed, is about."""
    lines = [line for line in (_ORNAMENT.sub("", line).strip() for line in error.log.splitlines()) if line]
    text = " ".join(lines)
    facts: dict[str, Any] = {"command": error.command, "log": error.log}
    asked = ", ".join(indexes)
    if "network was disabled" in text:
        return FetchError(
            f"not all packages are in uv's cache, and uv may not use the network (UV_OFFLINE) to ask {asked}",
            url=_first_url(asked), advice="unset UV_OFFLINE, or build where there is a network", **facts,
        )  # fmt: skip
    if "No solution found" in text:
        # Where something is missing altogether, who was asked matters; elsewhere it is the requirements.
        missing = "was not found in the p" in text
        advice = f"asked: {asked}" if missing else "ask for other versions, or leave them open where you can"
        return SolveError(f"no set of packages satisfies the specification: {_reason(lines)}", advice=advice, **facts)
    if "Hash mismatch" in text:
        return BuildError(
            f"a downloaded package is not the one that was locked: {_reason(lines)}",
            advice="the index changed a file that it had published; lock the environment again", **facts,
        )  # fmt: skip
    fetched = re.search(r"Failed to (?:fetch|download|read `--find-links` \w+):? `?(?P<what>[^\s`]+)", text)
    if fetched or "Git operation failed" in text or "error sending request" in text:
        url = _first_url(text) or (fetched["what"] if fetched else None)
        return FetchError(
            f"could not download from {_index_of(url, indexes)}: {_last(lines)}",
            url=url, advice=f"is it the right address, and does it answer from this machine? asked: {asked}", **facts,
        )  # fmt: skip
    return BuildError(f"{error.message}: {_reason(lines) if lines else 'it said nothing'}", **facts)


def _reason(lines: Sequence[str]) -> str:
    """The resolver's own words without the heading, on one line, and short."""
    said = [
        line
        for line in lines
        if not re.match(r"(Using |Resolved |Prepared |warning:|Updat|Download|Build(ing)? )", line)
    ]
    start = next((i + 1 for i, line in enumerate(said) if "No solution found" in line), 0)
    words = " ".join(line for line in said[start:] if not line.startswith("hint:")) or " ".join(said)
    return redact(words if len(words) <= 600 else f"{words[:600].rstrip()} …")


def _last(lines: Sequence[str]) -> str:
    return redact(next((line for line in reversed(lines) if not line.startswith("hint:")), "no reason given"))


def _first_url(text: str) -> str | None:
    match = _URL.search(text)
    return redact(match[0]).rstrip(".,:") if match else None


def _index_of(url: str | None, indexes: Sequence[str]) -> str:
    """The index that ``url`` belongs to, or ``url`` itself."""
    if url is None:
        return ", ".join(indexes)
    for each in indexes:
        if url.startswith(re.sub(r"(?<=://)[^/@]*@", "", each).rstrip("/")):
            return re.sub(r"(?<=://)[^/@]*@", "", each)
    return url


def _toml(text: str) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document: dict[str, Any] = toml.loads(text)
    except ValueError as error:
        raise BuildError(f"uv's result cannot be read: {error}", log=text) from error
    return document
