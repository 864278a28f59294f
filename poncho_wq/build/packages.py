"""What is done to freshly installed packages so that they run anywhere and name no machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.build import elf
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.launchers import make_portable
from poncho_wq.build.libraries import (
    Loader,
    expand_origin,
    set_run_path,
    starts_at_origin,
    stays_behind,
    take_libraries,
)
from poncho_wq.build.neutral import Neutral, home_directory, replace_file
from poncho_wq.build.records import Distribution, distributions

# uv's own notes: when and from what it built a wheel, with the paths of this machine.
_NOTES_OF_UV = ("uv_build.json", "uv_cache.json")
_LARGEST_TEXT = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """What the binaries of packages say.

    ``facts`` are by name, as they were installed.  ``missing`` are the sonames that none of them leads to, and
    ``found`` what the machine has by these, and what that needs.
    """

    facts: Mapping[str, elf.Elf]
    missing: frozenset[str]
    found: Mapping[str, Path]


def settle_packages(
    python: Interpreter, prefix: Path, environment: Mapping[str, str], *, private: Sequence[Path]
) -> tuple[list[Distribution], Binaries]:
    """Make what uv installed in ``prefix`` portable; ``private`` are directories that must not be named.

    Returns the distributions, their RECORDs true again, and what their binaries say.  Raises ``BuildError``.
    """
    (prefix / ".lock").unlink(missing_ok=True)  # uv's
    site_packages = prefix / "lib" / python.library / "site-packages"
    below = os.path.join(site_packages, "")
    for directory, _subdirectories, _files in os.walk(prefix, topdown=False):
        if os.path.basename(directory) == "__pycache__":
            shutil.rmtree(directory)  # packing compiles, reproducibly
        elif directory.startswith(below):
            # What is empty belongs to nobody; uv makes it of a wheel's directory entries, and pip does not.
            with suppress(OSError):
                os.rmdir(directory)
    installed = distributions(site_packages, prefix)
    return installed, settle_distributions(python, prefix, installed, environment, private=private)


def settle_distributions(
    python: Interpreter,
    prefix: Path,
    installed: Sequence[Distribution],
    environment: Mapping[str, str],
    *,
    private: Sequence[Path],
) -> Binaries:
    """The same for some of the distributions in ``prefix``; others are left as they are."""
    owners = {name: distribution for distribution in installed for name in distribution.files}
    neutral = Neutral([python.prefix, python.exec_prefix, prefix, *private], home=home_directory())
    _settle_scripts(python, prefix, owners)
    binaries = _bring_libraries(python, prefix, environment, owners)
    for distribution in installed:
        if distribution.built_here:
            _make_neutral(distribution, prefix, neutral)  # after their libraries were found by the paths that go now
        settle_metadata(distribution)
        distribution.forget_missing()
        distribution.save()
    return binaries


def settle_metadata(distribution: Distribution) -> None:
    """Remove what says from which files of this machine ``distribution`` was installed."""
    distribution.remove(_NOTES_OF_UV)
    direct = distribution.info / "direct_url.json"
    if not direct.exists():
        return
    try:
        url = json.loads(direct.read_text(encoding="utf-8")).get("url", "")
    except (ValueError, AttributeError):
        url = "file:"
    if url.startswith("file:") or "@" in url.partition("://")[2].partition("/")[0]:
        distribution.remove(["direct_url.json"])


def _settle_scripts(python: Interpreter, prefix: Path, owners: Mapping[str, Distribution]) -> None:
    """Make the scripts in ``bin/`` start the interpreter beside them."""
    directory = prefix / "bin"
    starts = {str(each / name) for each in _both(directory) for name in ("python", "python3", python.program)}
    starts |= {str(python.executable), str(python.prefix / "bin" / python.program)}
    for script in sorted(directory.iterdir()):
        if script.is_symlink() or not script.is_file() or elf.is_elf(script):
            continue
        if make_portable(script, sorted(starts), python.program):
            owner = owners.get(os.path.relpath(script, prefix))
            if owner is not None:
                owner.changed(script)


def _both(path: Path) -> set[Path]:
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


def _make_neutral(distribution: Distribution, prefix: Path, neutral: Neutral) -> None:
    """Take the paths of this machine out of a package that was built on it: compilers record where they work."""
    for name in distribution.files:
        path = prefix / name
        if path.is_symlink() or path.parent == distribution.info:
            continue
        data = path.read_bytes()
        if elf.is_elf(path):
            replace_file(path, elf.strip(data))
            facts = elf.read(path)
            run_path = [*facts.rpath, *facts.runpath]
            if not all(map(starts_at_origin, run_path)):
                set_run_path([path], ":".join(filter(starts_at_origin, run_path)) or "$ORIGIN")
        elif len(data) > _LARGEST_TEXT:
            continue
        cleaned = neutral.clean(path.read_bytes())
        if cleaned != data:
            replace_file(path, cleaned)
            distribution.changed(path)


def _bring_libraries(
    python: Interpreter, prefix: Path, environment: Mapping[str, str], owners: Mapping[str, Distribution]
) -> Binaries:
    """Copy to ``lib/`` what extension modules need, that is found on this machine and not in the prefix.

    That is libstdc++ and libgcc_s for most: the rules for wheels count on every machine having them, and on them being
    new enough; and whatever a package that was compiled here is linked with.
    """
    library = prefix / "lib"
    program = elf.read(python.executable)
    loader = Loader(python.executable, program, environment, first=[library])
    facts_of: dict[str, elf.Elf] = {}
    wanted: set[str] = set()
    found: dict[str, Path] = {}
    for name, facts in elf.among(prefix, sorted(owners)):
        facts_of[name] = facts
        if facts.machine != program.machine:
            continue
        path = prefix / name
        missing = [each for each in facts.needed if not stays_behind(each) and not _finds(path, facts, each)]
        wanted.update(missing)
        if not all(os.path.exists(f"{library}/{each}") for each in missing):
            outside = {each: file for each, file in loader.resolve(path).items() if not _is_below(file, prefix)}
            take_libraries(outside, library)
            found = {**outside, **found}
        # What a library with DT_RUNPATH needs is looked up there alone; with DT_RPATH, in the program's as well.
        if facts.runpath and any(os.path.exists(f"{library}/{each}") for each in missing):
            replace_file(path, path.read_bytes())
            set_run_path([path], ":".join(facts.runpath))
            owners[name].changed(path)
    return Binaries(facts=facts_of, missing=frozenset(wanted), found=found)


def _is_below(file: Path, directory: Path) -> bool:
    return directory.resolve() in file.resolve().parents


def _finds(path: Path, facts: elf.Elf, soname: str) -> bool:
    """Whether the run path of ``path`` leads to ``soname``, and will do so elsewhere."""
    inside = filter(starts_at_origin, (*facts.rpath, *facts.runpath))
    return any(os.path.exists(f"{expand_origin(part, path)}/{soname}") for part in inside)
