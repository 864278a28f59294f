"""``poncho-wq batch …``: run batches of jobs, and look after them from anywhere through their journal."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from poncho_wq.cli import errors_to_status

# Each module has ``add(subparsers, common)``.
_COMMANDS = ("batch_template", "batch_run", "batch_status", "batch_change", "batch_pull")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Each subcommand sets ``command``, the function that does it."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--save-dir", metavar="DIR", default=".",
        help="where results and journal are: DIR/NAMESPACE/BATCH/JOB/ (default: the current directory)",
    )  # fmt: skip
    ap = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = ap.add_subparsers(metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"poncho_wq.cli.{name}").add(commands, common)
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 success, 1 a job did not complete or the work failed, 2 bad usage or bad input."""
    args = parser(prog).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    return command(args)


if __name__ == "__main__":
    sys.exit(main())
