"""``poncho-wq batch template``: a file to begin with."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from poncho_wq.cli import SUCCESS


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``template`` to the parser."""
    template = commands.add_parser("template", help="print a file to begin with")
    template.add_argument("kind", choices=("python", "prominence"), help="distribute's YAML, or PROMINENCE's JSON")
    template.set_defaults(command=_template)


def _template(args: argparse.Namespace) -> int:
    from poncho_wq.batch import templates

    sys.stdout.write(templates.PYTHON if args.kind == "python" else templates.PROMINENCE)
    return SUCCESS
