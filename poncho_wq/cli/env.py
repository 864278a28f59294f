"""``poncho-wq env …``: what environments are made of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from poncho_wq.cli import env_diff, env_export, env_import, env_show, main_of
from poncho_wq.cli.display import progress
from poncho_wq.spec import PLATFORMS


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Each subcommand sets ``command``, the function that does it."""
    ap = argparse.ArgumentParser(prog=prog, description="Work with the descriptions of environments.")
    commands = ap.add_subparsers(metavar="COMMAND", required=True)
    _add_lock(commands)
    for module in (env_import, env_export, env_show, env_diff):
        module.add(commands)
    return ap


def _add_lock(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ap = commands.add_parser(
        "lock",
        help="resolve a specification to exact packages",
        description="Resolve a specification to exact packages, each with its sha256, and write them to standard "
        "output. poncho_package_create --locked builds the same bytes from that, later and elsewhere.",
    )
    ap.add_argument("spec", metavar="SPEC", help="a specification, or whatever else poncho_package_create takes")
    ap.add_argument("-o", "--output", metavar="FILE", help="write to FILE instead")
    ap.add_argument("--platform", choices=PLATFORMS, help="the workers', if not this machine's (conda packages only)")
    ap.add_argument("--offline", action="store_true", help="use only what is downloaded already")
    ap.add_argument("--cache-dir", metavar="DIR", help="the cache (default: $PONCHO_CACHE_DIR, else the user's)")
    ap.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    env_import.add_options(ap)
    ap.set_defaults(command=_lock)


def _lock(args: argparse.Namespace) -> int:
    from poncho_wq.prepare import lock_environment

    with progress(quiet=args.quiet) as say:
        locked = lock_environment(
            args.spec, cache_dir=args.cache_dir, on_progress=say, offline=args.offline, platform=args.platform,
            options=env_import.options_of(args),
        )  # fmt: skip
    if args.output is None:
        sys.stdout.write(locked.to_json())
        return 0
    locked.write(Path(args.output))
    return 0


main = main_of(parser)


if __name__ == "__main__":
    sys.exit(main())
