"""``poncho_package_analyze SCRIPT… OUT.json``: the specification of what scripts import."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poncho_wq.cli import errors_to_status
from poncho_wq.errors import AnalysisError

if TYPE_CHECKING:
    from poncho_wq.analysis.sources import Source


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command's options."""
    ap = argparse.ArgumentParser(
        prog=prog,
        description="Find out which installed packages scripts and notebooks import, and write the specification of an "
        "environment that holds them, for poncho_package_create. Nothing is imported or run.",
        epilog="An import that no installed package provides is an error, as are local modules and relative imports.",
    )
    ap.add_argument("scripts", metavar="SCRIPT", nargs="+", help="a script, a notebook (.ipynb), or - for stdin")
    ap.add_argument("output", metavar="OUT.json", help="the specification to write, or - for standard output")
    what = ap.add_mutually_exclusive_group()
    what.add_argument("--toplevel", action="store_true", help="only include imports at the top level of the script")
    what.add_argument(
        "--function", metavar="FUNCTION", action="append", default=[],
        help="only include what the given function needs; Class.method and outer.inner name others than those at the "
        "top level; may be given several times",
    )  # fmt: skip
    ap.add_argument(
        "--pkg-mapping", metavar="IMPORT=NAME", action="append", default=[], type=_mapping,
        help="the module imported as IMPORT in the code is provided by the pip/conda package NAME",
    )  # fmt: skip
    ap.add_argument(
        "--extra-pkg", metavar="PKG", action="append", default=[],
        help="also include the pip/conda package PKG, even if it does not appear in the sources",
    )  # fmt: skip
    return ap


def _mapping(text: str) -> tuple[str, str]:
    name, equals, package = text.partition("=")
    if not equals or not package.strip() or not all(part.isidentifier() for part in name.strip().split(".")):
        raise argparse.ArgumentTypeError(f"expected IMPORT=NAME, got {text!r}")
    return name.strip(), package.strip()


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 success, 1 the output cannot be written, 2 bad usage, unreadable scripts, unresolved imports."""
    ap = parser(prog)
    args = ap.parse_args(argv)
    _check_usage(ap, args)

    from poncho_wq.analysis.resolve import refuse_unresolved
    from poncho_wq.analyze import analyze_scripts

    found = analyze_scripts(
        [_read(script) for script in args.scripts],
        toplevel=args.toplevel,
        functions=args.function,
        pkg_mapping=dict(args.pkg_mapping),
        extra_packages=args.extra_pkg,
    )
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    text = refuse_unresolved(found).spec.to_json(indent=4) + "\n"
    if args.output == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0
    try:
        _publish(text, Path(args.output))
    except OSError as error:
        print(f"error: {args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _check_usage(ap: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be known to be wrong before any work; exits with status 2, as argparse does."""
    if args.scripts.count("-") > 1:
        ap.error("standard input (-) can be read only once")
    if args.output == "-":
        return
    output = Path(args.output)
    if output.suffix in (".py", ".ipynb"):
        ap.error(f"the last argument is the file to write, and {output} looks like a script")
    if any(script != "-" and output.exists() and _same(script, output) for script in args.scripts):
        ap.error(f"{output} would overwrite a script")
    if output.is_dir():
        ap.error(f"{output} is a directory; name a file, such as spec.json")
    if not output.absolute().parent.is_dir():
        ap.error(f"{output}: no such directory: {output.parent}")


def _same(script: str, output: Path) -> bool:
    try:
        return os.path.samefile(script, output)
    except OSError:
        return False


def _read(script: str) -> Source:
    from poncho_wq.analysis.sources import read_source, source_from_bytes

    if script != "-":
        return read_source(script)
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise AnalysisError(f"standard input: {error.strerror or error}") from None
    return source_from_bytes(data, name="<stdin>", directory=Path.cwd())


def _publish(text: str, output: Path) -> None:
    """Write `output` whole or not at all; what is there already stays until then."""
    if output.exists() and not output.is_file():  # a pipe, /dev/null: there is nothing to replace
        output.write_text(text, encoding="utf-8")
        return
    target = Path(os.path.realpath(output))  # a symbolic link keeps pointing to it
    try:
        mode = target.stat().st_mode & 0o777
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


if __name__ == "__main__":
    sys.exit(main())
