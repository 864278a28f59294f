"""``poncho-wq explain FILE|MODULE:FUNCTION``: every import, where it was seen, and why it is in or out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poncho_wq.cli import errors_to_status

if TYPE_CHECKING:
    from poncho_wq.analysis.model import Reach, Verdict

_ORDER = ("in", "out", "local", "refused", "MISSING")


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command's options."""
    ap = argparse.ArgumentParser(
        prog=prog,
        description="Say what each import of a script, notebook or function is, and why it is in the environment or "
        "not. Nothing is imported or run.",
        epilog="in: a package of the environment; out: nothing is needed; local: travels with a function task; "
        "refused: local code in a script; MISSING: nothing provides it.",
    )
    ap.add_argument("what", metavar="FILE|MODULE:FUNCTION", help="a script, a notebook, or a function in one")
    ap.add_argument("--function", metavar="FUNCTION", action="append", default=[], help="only what this function needs")
    ap.add_argument("--json", action="store_true", help="as JSON")
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 when it could be explained, also if something is missing; 2 bad usage or bad input."""
    args = parser(prog).parse_args(argv)

    from poncho_wq.analyze import explain

    found = explain(args.what, functions=args.function)
    sys.stdout.write(_as_json(found) if args.json else _as_text(found))
    sys.stdout.flush()
    return 0


def _as_json(found: Reach) -> str:
    document = {
        "imports": [verdict.to_dict() for verdict in found.verdicts],
        "environment": found.spec.to_dict(),
        "local": [{"name": each.name, "path": str(each.path), "root": str(each.root)} for each in found.local_modules],
        "notes": list(found.notes),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _as_text(found: Reach) -> str:
    """One line an import, grouped by what was decided, in the order of the file within a group."""
    rows = sorted(map(_row, found.verdicts), key=lambda row: _ORDER.index(row[0]))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows]
    lines += [f"note: {each}" for each in found.notes]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _row(verdict: Verdict) -> tuple[str, str, str, str]:
    seen = verdict.imported
    name = seen.spelled
    if seen.names:
        name = f"{name}{'' if name.endswith('.') or not name else '.'}{','.join(seen.names)}"
    reason = verdict.reason if seen.how == "imported" else f"{verdict.reason} ({seen.how})"
    word: str = verdict.status
    if word == "unresolved":
        word = "refused" if verdict.own_code else "MISSING"
    return word, name, str(seen.place), reason


if __name__ == "__main__":
    sys.exit(main())
