"""``poncho-wq doctor``: what is wrong with this machine, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from poncho_wq.cli import FAILED, SUCCESS, errors_to_status
from poncho_wq.doctor import Finding, Level, examine, worker_script

_SIGNS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options."""
    ap = argparse.ArgumentParser(
        prog=prog,
        description="Look whether everything that poncho_wq needs is here and works: Python, package index, channels, "
        "engines and their protocols, the cache's place, quotas, proxies, clock, shell and tar. Each finding comes "
        "with the command that mends it. Nothing is changed.",
        epilog="Exit status: 0 nothing is broken (there may be warnings), 1 something is, 2 bad usage.",
    )
    ap.add_argument("--json", action="store_true", help="as JSON: a list of objects with check, level, text, mend")
    ap.add_argument("--offline", action="store_true", help="ask no server")
    ap.add_argument("--timeout", type=float, default=10, metavar="SECS", help="for each answer (default: %(default)g)")
    ap.add_argument("--cache-dir", metavar="DIR", help="the cache (default: $PONCHO_CACHE_DIR, else the user's)")
    ap.add_argument(
        "--worker",
        action="store_true",
        help="print a shell script that looks at a worker's machine: poncho-wq doctor --worker | ssh NODE sh -s HOST "
        "PORT (HOST and PORT of a running manager, to be tried from there; both may be left out)",
    )
    return ap


@errors_to_status
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0 nothing is broken, 1 something is, 2 bad usage."""
    ap = parser(prog)
    args = ap.parse_args(argv)
    if not 0 < args.timeout <= 3600:
        ap.error("--timeout: expected seconds, more than 0 and at most 3600")
    if args.worker:
        sys.stdout.write(worker_script())
        return SUCCESS
    from poncho_wq.cache import default_root

    root = Path(args.cache_dir).absolute() if args.cache_dir else default_root()
    findings = examine(root=root, seconds=args.timeout, offline=args.offline)
    found = list(findings) if args.json else _show(findings)
    if args.json:
        sys.stdout.write(json.dumps([each.as_dict() for each in found], indent=2) + "\n")
    return FAILED if any(each.level == "problem" for each in found) else SUCCESS


def _show(findings: Iterable[Finding]) -> list[Finding]:
    """Print each as it is made, and a last line that counts."""
    from rich.console import Console
    from rich.text import Text

    from poncho_wq.errors import redact

    # A pipe gets whole lines, which grep can find.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    seen = []
    for each in findings:
        seen.append(each)
        sign, style = _SIGNS[each.level]
        text = Text.assemble((f"{sign:<8}", style), f"{each.check:<11}")
        if console.is_terminal:
            console.print(Text.assemble(text, _hanging(redact(each.text), console.width - 19)))
        else:
            console.print(Text.assemble(text, redact(each.text)))
        if each.mend:
            # Whole, so that it can be copied: a terminal breaks the line without adding a blank.
            console.print(Text.assemble(" " * 19, ("mend: ", "bold"), redact(each.mend)), soft_wrap=True)
    count = {level: sum(1 for each in seen if each.level == level) for level in _SIGNS}
    words = [
        f"{count[level]} {level}{'s' if count[level] != 1 else ''}"
        for level in ("problem", "warning", "note")
        if count[level]
    ]
    print(", ".join(words) if words else f"all is well: {count['ok']} checks", file=sys.stderr)
    return seen


def _hanging(text: str, width: int) -> str:
    """``text`` in lines of ``width``, all but the first indented under it; words longer than that stay whole."""
    import textwrap

    lines = textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * 19).join(lines)


if __name__ == "__main__":
    sys.exit(main())
