"""``poncho_package_create SPEC OUT.tar.gz``: the tarball for a specification."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from poncho_wq.cli import errors_to_status
from poncho_wq.cli.display import progress
from poncho_wq.cli.env_import import add_options, options_of
from poncho_wq.errors import PackError, SpecError
from poncho_wq.spec import PLATFORMS


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command's options; upstream's are accepted, with a note where they mean nothing here."""
    ap = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [OPTION...] SPEC OUT.tar.gz\n       %(prog)s [OPTION...] --locked LOCK [SPEC] OUT.tar.gz",
        description="Create the tarball of an environment, to be run with poncho_package_run on any Linux machine "
        "of the same architecture.",
        epilog="Built once: an equal specification later is answered from the cache.",
    )
    ap.add_argument(
        "files", metavar="SPEC OUT.tar.gz", nargs="+",
        help="SPEC: an environment specification (JSON), or - for one on standard input; an environment.yml, "
        "requirements.txt, pyproject.toml or pylock.toml; a virtual environment; a conda prefix, or the name of a "
        "conda environment. May be left out with --locked. OUT.tar.gz: the tarball to write (replaced when it exists)",
    )  # fmt: skip
    ap.add_argument(
        "--cache-dir", metavar="DIR", help="the cache (default: $PONCHO_CACHE_DIR, else the user's cache directory)"
    )
    ap.add_argument("--refresh", action="store_true", help="resolve and build again even if the cache has it")
    ap.add_argument("--retry", action="store_true", help="try again what failed in the last ten minutes")
    ap.add_argument("--locked", metavar="LOCK", help="build exactly what this file says (made by: poncho-wq env lock)")
    ap.add_argument("--require-locked", action="store_true", help="refuse to build anything that --locked does not pin")
    ap.add_argument("--offline", action="store_true", help="use only what is downloaded already")
    ap.add_argument("--platform", choices=PLATFORMS, help="the workers', if not this machine's (conda packages only)")
    ap.add_argument(
        "--compression", choices=("gzip", "zstd", "none"),
        help="of the tarball: gzip needs nothing special on the workers; zstd, smaller and faster to unpack, needs the "
        "program zstd there; none is for networks that are faster than a decompressor (default: $PONCHO_COMPRESSION, "
        "else gzip; that of a tarball given as SPEC stays)",
    )  # fmt: skip
    ap.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    add_options(ap)
    upstream = ap.add_argument_group("accepted for compatibility")
    upstream.add_argument("--conda-executable", metavar="PATH", help="not needed: no conda program is run")
    upstream.add_argument("--no-micromamba", action="store_true", help="not needed: micromamba is never downloaded")
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 success, 1 the environment could not be made, 2 bad usage or bad input."""
    ap = parser(prog)
    args = ap.parse_intermixed_args(argv)
    if len(args.files) > 2 or (len(args.files) == 1 and args.locked is None):
        ap.error(f"expected SPEC and OUT.tar.gz, got {' '.join(args.files)}")
    *given_spec, out = args.files
    for option, given in (
        ("--conda-executable", args.conda_executable),
        ("--no-micromamba", args.no_micromamba),
    ):
        if given and not args.quiet:
            print(f"note: {option} is accepted and has no effect: no conda program is run", file=sys.stderr)
    output = Path(out)
    _check_writable(output)

    from poncho_wq.lockfile import read_lockfile
    from poncho_wq.prepare import environment

    locked = None if args.locked is None else read_lockfile(args.locked)
    spec = given_spec[0] if given_spec or locked is None else locked.spec
    with progress(quiet=args.quiet) as say:
        env = environment(
            spec,
            cache_dir=args.cache_dir, on_progress=say, refresh=args.refresh, retry=args.retry, locked=locked,
            require_locked=args.require_locked, offline=args.offline, platform=args.platform, options=options_of(args),
            compression=args.compression,
        )  # fmt: skip
    publish(env.tarball, output)
    if not args.quiet:
        whence = "from the cache" if env.cached else "built"
        print(f"{output}: {env.size / 1e6:.1f} MB, {whence}", file=sys.stderr)
        print(f"to run in it: poncho_package_run -e {output} -- COMMAND", file=sys.stderr)
    return 0


def _check_writable(output: Path) -> None:
    """An output that cannot be written is bad usage, and better said before a build than after it."""
    if output.is_dir():
        raise SpecError("is a directory; name a file, such as env.tar.gz", source=str(output))
    if not output.parent.is_dir():
        raise SpecError(f"no such directory: {output.parent}", source=str(output), advice=f"mkdir -p {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise SpecError(f"cannot be written: no permission in {output.parent.absolute()}", source=str(output))


def publish(tarball: Path, output: Path) -> None:
    """Copy ``tarball`` to ``output``, which is there whole or not at all.  Raises ``PackError``."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(tarball, partial)
        partial.replace(output)
    except OSError as error:
        free = shutil.disk_usage(output.parent).free
        raise PackError(
            f"{output}: {error.strerror or error} ({tarball.stat().st_size} bytes needed, {free} free)",
            advice=f"free some space; the environment is in the cache already: {tarball}",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
