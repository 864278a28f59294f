"""``poncho-wq batch …``: run batches of jobs, and look after them from anywhere through their journal."""

from __future__ import annotations

import argparse
import importlib
import sys

from poncho_wq.cli import main_of

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


main = main_of(parser)


if __name__ == "__main__":
    sys.exit(main())
