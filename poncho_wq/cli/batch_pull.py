"""``poncho-wq batch pull``: copy the results of a batch, or some of them, to another directory."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from poncho_wq.cli import SUCCESS


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``pull`` to the parser."""
    pull = commands.add_parser(
        "pull", parents=[common], help="copy results to another directory",
        description="Copy the results of a batch to TO/NAMESPACE/BATCH/, those there are by now. The expressions are "
        "looked for in paths relative to the batch, such as job_1/stdout.txt.",
    )  # fmt: skip
    pull.add_argument("batch", metavar="BATCH", help="NAMESPACE/NAME, NAME or number")
    pull.add_argument("to", metavar="TO", nargs="?", default=".", help="default: the current directory")
    some = pull.add_mutually_exclusive_group()
    some.add_argument("--include", action="append", default=[], metavar="RE", help="only files that match")
    some.add_argument("--exclude", action="append", default=[], metavar="RE", help="not the files that match")
    pull.add_argument("--dry", action="store_true", help="only say what would be copied")
    pull.set_defaults(command=_pull)


def _pull(args: argparse.Namespace) -> int:
    from poncho_wq.batch.journal import Journal
    from poncho_wq.batch.pulling import chosen, copy
    from poncho_wq.batch.spool import Spool

    include, exclude = _compiled(args.include, "--include"), _compiled(args.exclude, "--exclude")
    with Journal(Spool(args.save_dir), create=False) as journal:
        record = journal.find(args.batch)
        source = journal.spool.save / record.folder
    target = Path(args.to) / record.folder
    files = chosen(source, include=include, exclude=exclude)
    size = sum((source / name).stat().st_size for name in files)
    if args.dry:
        for name in files:
            print(name)
    else:
        copy(source, target, files)
    what = f"{len(files)} file{'' if len(files) == 1 else 's'}, {size / 1e6:.1f} MB"
    print(f"{what}{' would be copied' if args.dry else ''} to {target}", file=sys.stderr)
    return SUCCESS


def _compiled(expressions: list[str], option: str) -> list[re.Pattern[str]]:
    from poncho_wq.errors import SpecError

    found = []
    for text in expressions:
        try:
            found.append(re.compile(text))
        except re.error as error:
            raise SpecError(f"{option} {text}: not a regular expression: {error}") from None
    return found
