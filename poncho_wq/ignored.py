"""What does not belong to local code that is shipped: files that git ignores, caches, and what tools leave behind.

git itself is asked where there is a work tree: the rules are its own (nested `.gitignore` files, exclude files, tracked
files that a rule matches).  Elsewhere, and besides, the names below are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.command import run
from poncho_wq.errors import BuildError

_DIRECTORIES = frozenset(
    """__pycache__ __pypackages__ .git .hg .svn .bzr .venv .tox .nox .eggs .direnv node_modules .mypy_cache
    .pytest_cache .ruff_cache .pytype .hypothesis .ipynb_checkpoints .idea .vscode .vs CMakeFiles""".split()  # noqa: SIM905 - words
)
_DIRECTORY_ENDINGS = (".egg-info", ".dist-info")
_FILES = frozenset((".DS_Store", ".coverage", "Thumbs.db"))
# Compiled for this very machine's cache, built but not yet linked, or an editor's.
_FILE_ENDINGS = (".pyc", ".pyo", ".o", ".obj", ".a", "~", ".swp", ".swo", ".orig", ".rej")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """``ignored`` says whether git ignores a path below the directory that was asked about.

    ``watched`` are the files outside that directory that the answer rests on, whether or not they exist.
    """

    ignored: Callable[[str], bool]
    watched: tuple[str, ...] = ()


def is_cache_directory(name: str, path: str) -> bool:
    """Whether a directory is left out by its name, or for being a virtual environment."""
    return name in _DIRECTORIES or name.endswith(_DIRECTORY_ENDINGS) or os.path.exists(f"{path}/pyvenv.cfg")


def is_cache_file(name: str) -> bool:
    """Whether a file is left out by its name."""
    return name in _FILES or name.endswith(_FILE_ENDINGS)


def rules_for(directory: str) -> Rules:
    """What git ignores below ``directory`` (absolute); nothing where there is no work tree, or no git to ask."""
    top = _work_tree(Path(directory))
    if top is None:
        return Rules(ignored=lambda path: False)
    outer = [os.path.join(place, ".gitignore") for place in _up_to(Path(directory).parent, top)]
    watched = (*outer, str(top / ".git/info/exclude"), str(top / ".git/index"))
    # A directory as a pattern would be taken for a glob; ":(literal)" is not.
    inside = os.path.relpath(directory, top)
    argv = ["git", "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    argv += ["--", f":(literal){inside}"]
    # A hook of git's that runs the manager would speak of another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        listed = run(argv, cwd=top, env=clean, what="ask git what it ignores").stdout
    except BuildError:
        # No git, or one that does not trust the owner of the work tree.
        return Rules(ignored=lambda path: False, watched=watched)
    found = {os.path.normpath(os.path.join(top, name)) for name in listed.split("\0") if name}
    # Where all of it lies in an ignored place, such as a virtual environment, git names that place and nothing inside:
    # rightly so, since ignoring it says nothing about what is in it.
    return Rules(ignored=found.__contains__, watched=watched)


def _work_tree(directory: Path) -> Path | None:
    return next((place for place in (directory, *directory.parents) if (place / ".git").exists()), None)


def _up_to(directory: Path, top: Path) -> list[Path]:
    if not directory.is_relative_to(top):
        return []
    return [place for place in (directory, *directory.parents) if place.is_relative_to(top)]
