"""``poncho-wq``: one command in front of the others."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from poncho_wq.version import VERSION

COMMANDS = {
    "analyze": ("poncho_wq.cli.analyze", "find out which packages scripts need"),
    "create": ("poncho_wq.cli.create", "create the tarball of an environment"),
    "run": (None, "run a command in an environment"),
    "explain": ("poncho_wq.cli.explain", "say what each import of a script or function is, and why it is in or out"),
    "env": ("poncho_wq.cli.env", "lock, show, compare, import and export descriptions of environments"),
    "cache": ("poncho_wq.cli.cache", "list, check and clean up the cache of environments"),
    "doctor": ("poncho_wq.cli.doctor", "look at this machine: what is wrong, and the command that mends it"),
    "batch": ("poncho_wq.cli.batch", "run batches of jobs described in a file"),
    "report": ("poncho_wq.cli.report", "what the environments of a recorded run cost"),
    "completion": ("poncho_wq.cli.completion", "print what a shell needs to complete these commands"),
    "demo": ("poncho_wq.cli.demo", "a manager and workers run a function in an environment built for it"),
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: poncho-wq COMMAND …\n\n{rows}\n\nponcho-wq COMMAND --help tells more."


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the rest of the arguments to the command; its exit status is ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"poncho-wq {VERSION}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"error: no such command: {name}\n{_usage()}", file=sys.stderr)
        return 2
    module = COMMANDS[name][0]
    if module is None:
        return _run(rest)
    status: int = importlib.import_module(module).main(rest, prog=f"poncho-wq {name}")
    return status


def _run(rest: list[str]) -> int:
    """Become the wrapper: same process, so that signals and exit status are the command's own."""
    from poncho_wq.wrapper import wrapper_path

    os.execv("/bin/sh", ["sh", str(wrapper_path()), *rest])


if __name__ == "__main__":
    sys.exit(main())
