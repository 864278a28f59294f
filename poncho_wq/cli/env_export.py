"""``poncho-wq env export X``: an environment as ``environment.yml`` or ``requirements.txt``."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser of ``poncho-wq env``."""
    from poncho_wq.cli.env_import import add_options

    ap = commands.add_parser(
        "export",
        help="write environment.yml or requirements.txt",
        description="Write an environment for another tool to standard output: exact versions where they are known "
        "(of a tarball or a lock), else what the specification asks for.",
    )
    ap.add_argument("source", metavar="X", help="a tarball, a lock, a specification, or whatever env import takes")
    ap.add_argument("--format", choices=("environment.yml", "requirements.txt"), required=True)
    ap.add_argument("--name", help="the environment's name in environment.yml")
    add_options(ap)
    ap.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; what cannot be exported is raised."""
    from poncho_wq.cli.env_import import print_notes
    from poncho_wq.described import describe
    from poncho_wq.exporting import export
    from poncho_wq.importers import Options

    options = Options(extras=args.extra, groups=args.group, ignore_editable=args.ignore_editable_packages)
    environment = describe(args.source, options)
    exported = export(environment, args.format, name=args.name)
    print_notes((*environment.notes, *exported.notes))
    sys.stdout.write(exported.text)
    return 0
