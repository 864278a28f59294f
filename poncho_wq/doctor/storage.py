"""Where the cache, the home and temporary files lie: whose, how full, on what kind of file system, under what quota."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from poncho_wq.cache import Cache
from poncho_wq.caching import admin, usage
from poncho_wq.doctor.finding import Finding, note, of_error, ok, problem, warning
from poncho_wq.errors import PonchoError

# An environment with numpy and pandas takes about 150 MB as a tarball, its layers as much again, and 400 MB while it is
# built.  Below this not even a few of them fit.
ENOUGH_BYTES = 2_000_000_000
ENOUGH_FILES = 50_000
# Below this share of a quota nothing is said.
NEARLY_FULL = 0.9
# Shared by machines, by the kernel's names.  Locks may work there, and are slow.
_SHARED = re.compile(
    r"nfs|lustre|gpfs|beegfs|ceph|afs|cifs|smb|panfs|pvfs|orangefs|fuse\.sshfs|9p|glusterfs", re.IGNORECASE
)
_ELSEWHERE = 'export PONCHO_CACHE_DIR="/scratch/$USER/poncho"    (a directory of yours with room, in ~/.profile)'


def cache(root: Path) -> Iterator[Finding]:
    """The place of environments: usable, with locks that work, with room, within its limit."""
    place = Cache(root)
    try:
        there = place.exists()
        limit = admin.limit()
    except PonchoError as error:
        yield of_error("cache", error, _ELSEWHERE)
        return
    above = existing(root)
    if not os.access(above, os.W_OK | os.X_OK):
        yield problem("cache", f"{root}: {above} cannot be written to", _ELSEWHERE)
        return
    # What a file system promises is tried where it matters, but nothing may be left where there is no cache yet.
    fault = _try_locks(root if there else above)
    if fault is not None:
        yield problem("cache", f"{above}: {fault}: builds cannot wait for one another", _ELSEWHERE)
    parts = usage.areas(place) if there else []
    size, files = sum(each.size for each in parts), sum(each.files for each in parts)
    most = "no limit" if limit is None else f"limit {gigabytes(limit)} ($PONCHO_CACHE_SIZE)"
    yield ok("cache", f"{root}: {gigabytes(size)} in {files} files, {most}, on {filesystem(above)}")
    if limit is not None and size > 2 * limit:
        yield note(
            "cache",
            f"downloads take more than the environments' limit: {gigabytes(size)} in all",
            "poncho-wq cache info",
        )
    yield from room("cache", above, _ELSEWHERE + ", or: poncho-wq cache gc --older-than 30d")


def home(root: Path) -> Iterator[Finding]:
    """A home directory is often small and on a server: a bad place for gigabytes of small files."""
    directory = Path.home()
    if not directory.is_dir():
        yield warning("home", f"{directory}: the home directory is not there", _ELSEWHERE)
        return
    kind = filesystem(directory)
    inside = root.resolve().is_relative_to(directory.resolve())
    if _SHARED.search(kind) and inside:
        yield warning(
            "home",
            f"the cache lies in your home, which is on {kind}: builds write tens of thousands of files",
            _ELSEWHERE,
        )
    elif not inside:
        yield ok("home", f"{directory} on {kind}; the cache lies elsewhere")
    else:
        yield ok("home", f"{directory} on {kind}, with the cache in it")


def quotas(root: Path, seconds: float) -> Iterator[Finding]:
    """What ``quota`` says, where there is that program: a full quota looks like a full disk to ``df``'s readers."""
    program = shutil.which("quota")
    if program is None:
        return
    try:
        done = subprocess.run(
            [program, "-w"], capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        yield note("quota", "the program quota does not answer", "quota -w")
        return
    rows = list(parse_quota(done.stdout))
    for where, what, used, most in rows:
        share = used / most
        if share >= 1:
            yield problem("quota", f"{where}: the quota of {what} is used up ({used} of {most})", _full(root))
        elif share >= NEARLY_FULL:
            yield warning("quota", f"{where}: {share:.0%} of the quota of {what} is used", _full(root))
    if rows and all(used < NEARLY_FULL * most for _, _, used, most in rows):
        yield ok("quota", "; ".join(f"{where}: {used / most:.0%} of {what}" for where, what, used, most in rows))


def _full(root: Path) -> str:
    return f"poncho-wq cache gc --older-than 30d    (the cache is {root}), or: {_ELSEWHERE}"


def parse_quota(text: str) -> Iterator[tuple[str, str, int, int]]:
    """File system, what is counted, used, allowed: from the table of Linux's ``quota -w``.

    A row: name, blocks (KiB), quota, limit, [grace], files, quota, limit, [grace]; ``*`` marks what is exceeded, and a
    grace is there only then.
    """
    for line in text.splitlines():
        words = line.split()
        if len(words) < 7 or not re.fullmatch(r"\d+\*?", words[1]):
            continue
        rest = words[1:]
        for what in ("KiB", "files"):
            if len(rest) < 3 or not all(re.fullmatch(r"\d+\*?", word) for word in rest[:3]):
                break
            exceeded = rest[0].endswith("*")
            used, soft, hard = (int(word.rstrip("*")) for word in rest[:3])
            if soft or hard:
                yield words[0], what, used, soft or hard
            rest = rest[4 if exceeded else 3 :]


def temporary() -> Iterator[Finding]:
    """Payloads of tasks and worker directories go there."""
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield problem("tmp", f"no directory for temporary files can be written: {error}", 'export TMPDIR="$HOME/tmp"')
        return
    yield ok("tmp", f"{place} on {filesystem(place)}")
    if " " in str(place):
        yield warning("tmp", f"{place}: TaskVine's workers cannot use a directory with a blank", "export TMPDIR=/tmp")
    yield from room("tmp", place, 'export TMPDIR="/scratch/$USER/tmp"    (a directory of yours with room)')


def room(check: str, place: Path, mend: str) -> Iterator[Finding]:
    """Whether bytes and inodes are left at ``place`` for an environment."""
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    if free < ENOUGH_BYTES:
        yield warning(check, f"{place}: only {gigabytes(free)} are free", mend)
    # File systems without a table of inodes report none.
    if found.f_files and found.f_favail < ENOUGH_FILES:
        yield warning(check, f"{place}: only {found.f_favail} files can be made (inodes)", mend)


def _try_locks(place: Path) -> str | None:
    """Why locks cannot be had there; None when they can."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"locks do not work there ({error.strerror or error})"
    return None


def existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that is there."""
    return next((each for each in (path, *path.parents) if each.is_dir()), Path("/"))


def filesystem(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The kind of file system that ``path`` lies on, in the kernel's word (proc(5), mountinfo)."""
    path = existing(path).resolve()
    best, kind = "", "an unknown file system"
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for line in lines:
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) < 5 or not after:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        # The last of equals is the one on top.
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def gigabytes(number: float) -> str:
    """A number of bytes in words: ``2.4 GB``, or ``12.0 MB`` below 0.1 GB; 1 GB is 10⁹."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
