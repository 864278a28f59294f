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
        "locks, else what their specifications ask for. Of two tarballs, also what is sent to a worker that has A and "
        "is to run in B.",
    )
    for name in ("A", "B"):
        ap.add_argument(name.lower(), metavar=name, help="as for env show")
    ap.add_argument("--json", action="store_true", help="as JSON")
    ap.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")
    ap.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 1 for a difference where that was asked for."""
    from poncho_wq.cli import FAILED, SUCCESS
    from poncho_wq.comparing import compare, sending
    from poncho_wq.described import describe

    one, two = describe(args.a), describe(args.b)
    changes, sent = compare(one, two), sending(one, two)
    if args.json:
        document = {
            "changes": [change.to_dict() for change in changes],
            "sending": None if sent is None else sent.to_dict(),
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in (*changes, *([sent] if sent else []))))
    return FAILED if changes and args.exit_code else SUCCESS
