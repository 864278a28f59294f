"""``poncho-wq report``: what a recorded run's environments cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from poncho_wq.cli import SUCCESS, errors_to_status


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    ap = argparse.ArgumentParser(
        prog=prog,
        description="What the environments of a run cost: bytes sent, unpacking and waiting, warm hits, Python's start "
        "and imports, by environment and worker; the slowest tasks; what a changed pin would send again. "
        "Record a run with poncho_wq.record(RUN, queue). It can be looked at while it is going on.",
        epilog="Exit status: 0 the report was made, 1 there is no such recording, 2 bad usage.",
    )
    ap.add_argument("run", metavar="RUN", help="the directory of the recording")
    ap.add_argument("--html", metavar="FILE", help="write one self-contained page with plots")
    ap.add_argument("--json", action="store_true", help="as JSON instead of a table")
    ap.add_argument("--log", metavar="FILE", help="the engine's transaction log, when it was written somewhere else")
    ap.add_argument("--slowest", type=int, default=10, metavar="N", help="how many tasks (default: %(default)s)")
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 the report was made, 1 there is no such recording, 2 bad usage."""
    ap = parser(prog)
    args = ap.parse_args(argv)
    if args.slowest < 0:
        ap.error("--slowest takes a number from 0")
    from poncho_wq.errors import EngineError
    from poncho_wq.report import make_report, read_run
    from poncho_wq.report.page import as_page
    from poncho_wq.report.text import as_text

    log = Path(args.log).absolute() if args.log else None
    report = make_report(read_run(args.run, log=log), slowest=args.slowest)
    if args.html:
        path = Path(args.html)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(as_page(report), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise EngineError(f"{path}: {error.strerror or error}", advice="name another file with --html") from error
    if args.json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    elif args.html:
        print(f"{args.html}: open it in a browser", file=sys.stderr)
    else:
        sys.stdout.write(as_text(report))
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
