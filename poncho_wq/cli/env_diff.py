"""``poncho-wq env diff A B``: how two environments differ."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser of ``poncho-wq env``."""
    ap = commands.add_parser(
        "diff",
        help="say how two environments differ",
        description="Say how two environments differ, package by package: exact versions where both are tarballs or "
        "locks, else what their specifications ask for.",
    )
    for name in ("A", "B"):
        ap.add_argument(name.lower(), metavar=name, help="as for env show")
    ap.add_argument("--json", action="store_true", help="as JSON")
    ap.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")
    ap.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 1 for a difference where that was asked for."""
    from poncho_wq.cli import FAILED, SUCCESS
    from poncho_wq.comparing import compare
    from poncho_wq.described import describe

    changes = compare(describe(args.a), describe(args.b))
    if args.json:
        sys.stdout.write(json.dumps([change.to_dict() for change in changes], indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{change}\n" for change in changes))
    return FAILED if changes and args.exit_code else SUCCESS
