"""``poncho-wq env import X``: whatever describes an environment, as a specification on standard output."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poncho_wq.importers import Options


def add(commands: Any) -> None:
    """Add the command to the parser of ``poncho-wq env``."""
    ap = commands.add_parser(
        "import",
        help="turn environment.yml, requirements.txt, a venv, a conda prefix … into a specification",
        description="Write the specification of an environment that is described otherwise to standard output. "
        "Nothing is installed, downloaded or run.",
    )
    ap.add_argument(
        "source",
        metavar="X",
        help="environment.yml, requirements.txt, pyproject.toml, pylock.toml, a virtual environment, or a conda prefix "
        "or the name of a conda environment",
    )
    add_options(ap)
    ap.set_defaults(command=run)


def add_options(ap: argparse.ArgumentParser) -> None:
    """The options that choose among what a source offers."""
    ap.add_argument("--extra", metavar="NAME", action="append", default=[], help="optional dependencies of a project")
    ap.add_argument("--group", metavar="NAME", action="append", default=[], help="a dependency group of a project")
    ap.add_argument(
        "--ignore-editable-packages",
        action="store_true",
        help="leave out packages that are installed from a folder, instead of refusing them",
    )


def options_of(args: argparse.Namespace) -> Options:
    """What the options of ``add_options`` say."""
    from poncho_wq.importers import Options

    return Options(extras=args.extra, groups=args.group, ignore_editable=args.ignore_editable_packages)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; what is wrong with the source is raised."""
    from poncho_wq.importers import read_source

    imported = read_source(args.source, options_of(args))
    notes = list(imported.notes)
    if imported.digest is not None and imported.prefix is None:
        notes.append(
            "hashes, constraints and --pre have no place in a specification; name the source itself to keep them"
        )
    print_notes(notes)
    sys.stdout.write(imported.spec.to_json(indent=2) + "\n")
    return 0


def print_notes(notes: list[str] | tuple[str, ...]) -> None:
    """What the user should know, beside the result."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
