"""Local modules that a function reaches → one archive, a cached input of its task.

Modules beside a script, packages and editable installs travel as files, as they are on disk now, a package with its
data, so that editing them costs kilobytes and never touches the environment.  The archive is a zip with the modules at
its root; its name holds its content's hash.  Asking again is cheap: an archive is made anew only when one of the files
and directories that it was made from has changed.
"""

from __future__ import annotations

import importlib.machinery
import io
import os
import stat
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from poncho_wq import staging
from poncho_wq.errors import EngineError
from poncho_wq.ignored import Rules, is_cache_directory, is_cache_file, rules_for
from poncho_wq.progress import Progress, current

if TYPE_CHECKING:
    from poncho_wq.analysis.model import LocalModule, Reach

# Of the files, before compression.  Code has kilobytes; what has more is data, which has better ways to a worker.
LIMIT_MB = 100
LIMIT_VARIABLE = "PONCHO_CODE_LIMIT"
# File times advance in steps (10 ms at most on Linux): a file as young as that may change again with its time the same.
_TICK_NS = 50_000_000
_MOST = 64  # archives remembered; the oldest goes first
_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCode:
    """An archive of local modules: ``file`` is the zip, ``size`` its bytes, ``modules`` what it was made from."""

    file: staging.SharedFile
    size: int
    modules: tuple[LocalModule, ...]

    @property
    def directory(self) -> str:
        """What the runner calls the directory that it unpacks the archive into."""
        return self.file.name.removesuffix(".zip")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """An archive, and what the files and directories that it was made from looked like.  ``settled``: none was so young
    that it might have changed since without looking different."""

    code: LocalCode
    stamps: tuple[tuple[str, Stamp], ...]
    settled: bool

    def holds(self) -> bool:
        return self.settled and all(_stamp(path) == stamp for path, stamp in self.stamps)


@dataclass(slots=True)
class _Scan:
    """What is to be shipped: ``files`` by their name in the archive; ``stamps`` of everything that was looked at."""

    files: dict[str, tuple[str, os.stat_result]] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)


_lock = threading.RLock()
_kept: dict[tuple[tuple[LocalModule, ...], tuple[Path, ...]], _Kept] = {}


def pack_local(reach: Reach) -> LocalCode | None:
    """The archive of what ``reach`` says is to be shipped, as it is on disk now; None when that is nothing.

    Raises ``EngineError`` when it is larger than ``limit()``, or when a file cannot be read.
    """
    modules = reach.local_modules
    if not modules:
        return None
    key = modules, reach.sources
    with _lock:
        found = _kept.get(key)
        if found is None or not found.holds():
            fresh = _make(modules, reach.sources)
            _kept.pop(key, None)
            while len(_kept) >= _MOST:
                del _kept[next(iter(_kept))]
            found = _kept[key] = fresh
        return found.code


def limit() -> int:
    """How many bytes of files one task may ship: ``$PONCHO_CODE_LIMIT`` megabytes, else ``LIMIT_MB``.

    Raises ``EngineError`` when the variable is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT_MB)
    try:
        return int(float(text) * 1e6)
    except (ValueError, OverflowError):
        raise EngineError(f"{LIMIT_VARIABLE} is {text!r}, which is no number of megabytes") from None


def _make(modules: tuple[LocalModule, ...], sources: Sequence[Path]) -> _Kept:
    began = time.time_ns()
    scan = _Scan()
    reached = frozenset(os.path.abspath(path) for path in sources)
    for module in modules:
        _scan_module(module, reached, scan)
    total = sum(info.st_size for _, info in scan.files.values())
    if total > limit():
        raise _too_large(modules, scan, total)
    content = _zip(scan)
    file = staging.share("poncho-code", content, ".zip")
    code = LocalCode(file=file, size=len(content), modules=modules)
    names = ", ".join(dict.fromkeys(module.name for module in modules))
    current()(Progress(stage="code", detail=names, done=len(content), total=len(content), unit="bytes"))
    newest = max((stamp[0] for stamp in scan.stamps.values() if stamp is not None), default=0)
    return _Kept(code=code, stamps=tuple(scan.stamps.items()), settled=newest < began - _TICK_NS)


# -- what is shipped


def _scan_module(module: LocalModule, reached: frozenset[str], scan: _Scan) -> None:
    path = os.path.abspath(module.path)
    if os.path.isdir(path):
        rules = rules_for(path)
        for watched in rules.watched:
            scan.stamps[watched] = _stamp(watched)
        _scan_directory(path, module.name, rules, reached, scan, ())
    else:
        # `helper.cpython-311-x86_64-linux-gnu.so` keeps its endings.
        _add(path, module.name + os.path.basename(path)[len(Path(path).name.partition(".")[0]) :], scan)
    for file, name in _metadata_files(module):
        _add(file, name, scan)


def _scan_directory(
    path: str, name: str, rules: Rules, reached: frozenset[str], scan: _Scan, above: tuple[tuple[int, int], ...]
) -> None:
    try:
        info = os.stat(path)
        scan.stamps[path] = _stamp(path)
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(path, error) from error
    identity = info.st_dev, info.st_ino
    if identity in above:
        return  # a symbolic link to a directory that it lies in
    for entry in entries:
        inner = f"{name}/{entry.name}"
        try:
            is_directory = entry.is_dir()
        except OSError:
            continue
        if is_directory:
            if is_cache_directory(entry.name, entry.path):
                continue
            if not rules.ignored(entry.path):
                _scan_directory(entry.path, inner, rules, reached, scan, (*above, identity))
            else:
                _add_reached(entry.path, inner, reached, scan)
        elif entry.path in reached or not (is_cache_file(entry.name) or _is_left_out(entry, rules)):
            _add(entry.path, inner, scan)


def _is_left_out(entry: os.DirEntry[str], rules: Rules) -> bool:
    # Built beside its source and ignored by git, as nearly every extension module of an editable install.
    return rules.ignored(entry.path) and not entry.name.endswith(_EXTENSIONS)


def _add_reached(path: str, name: str, reached: frozenset[str], scan: _Scan) -> None:
    """Of an ignored directory, the modules that the function needs: generated code is ignored more often than not."""
    for each in reached:
        if each.startswith(path + "/"):
            _add(each, name + each[len(path) :], scan)


def _metadata_files(module: LocalModule) -> Iterator[tuple[str, str]]:
    """What ``importlib.metadata`` finds of an editable install: packages ask it for their own version."""
    from poncho_wq.distributions import Installed

    if module.distribution is None:
        return
    for each in Installed.here().metadata:
        if each.label == module.distribution and each.path.is_dir():
            for name in ("METADATA", "PKG-INFO", "entry_points.txt", "top_level.txt"):
                if (each.path / name).is_file():
                    yield str(each.path / name), f"{each.path.name}/{name}"


def _add(path: str, name: str, scan: _Scan) -> None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        # Gone again (an editor's file), or a symbolic link to nothing.
        scan.stamps[path] = None
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    scan.stamps[path] = _of(info)
    if stat.S_ISREG(info.st_mode):
        scan.files.setdefault(name, (path, info))


def _stamp(path: str) -> Stamp:
    try:
        return _of(os.stat(path))
    except OSError:
        return None


def _of(info: os.stat_result) -> Stamp:
    # Of all times this alone cannot be set: `cp -p` and `git` keep others.
    return info.st_ctime_ns, info.st_size, info.st_ino


# -- the archive


def _zip(scan: _Scan) -> bytes:
    """Deterministic: sorted names, no times, no owners; of the modes only whether a file can be executed."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, (path, info) in sorted(scan.files.items()):
            entry = zipfile.ZipInfo(_text(name, path), (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (stat.S_IFREG | (0o755 if info.st_mode & stat.S_IXUSR else 0o644)) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            try:
                content = Path(path).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(path, error) from error
            # The fastest level: an archive is made as often as somebody edits, and compressed code is small.
            archive.writestr(entry, content, compresslevel=1)
    return data.getvalue()


def _text(name: str, path: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise EngineError(f"{path!r}: local code cannot be shipped with a file name that is not UTF-8") from None
    return name


def _unreadable(path: str, error: OSError) -> EngineError:
    return EngineError(
        f"{path}: local code that the function needs cannot be read: {error.strerror or error}",
        advice="make it readable, or have git ignore it if no task needs it",
    )


def _too_large(modules: Sequence[LocalModule], scan: _Scan, total: int) -> EngineError:
    largest = sorted(scan.files.values(), key=lambda item: (-item[1].st_size, item[0]))[:5]
    lines = [f"  {_megabytes(info.st_size):>10}  {path}" for path, info in largest]
    names = ", ".join(dict.fromkeys(f"{module.name} ({module.path})" for module in modules))
    return EngineError(
        f"the local code that the function needs has {_megabytes(total)}, more than the limit of "
        f"{_megabytes(limit())}: {names}; its largest files:\n" + "\n".join(lines),
        advice="data is better an input file of the task; what no task needs can be named in .gitignore; "
        f"{LIMIT_VARIABLE}=MEGABYTES sets another limit",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _forget() -> None:
    """In a forked child: the files are the parent's, and a thread of the parent's may have held the lock."""
    global _lock
    _lock = threading.RLock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget)
