"""``poncho-wq batch kill`` and ``rerun``: through the journal, whoever runs the batch."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from poncho_wq.cli import SUCCESS
from poncho_wq.cli.batch_run import engine_options, manage

if TYPE_CHECKING:
    from poncho_wq.batch.journal import Journal


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``kill`` and ``rerun`` to the parser."""
    which = "NAMESPACE/NAME, NAME or number"
    kill = commands.add_parser(
        "kill", parents=[common], help="end a batch, or some of its jobs",
        description="End jobs that are not over; what has completed stays.",
    )  # fmt: skip
    kill.add_argument("batch", metavar="BATCH", help=which)
    kill.add_argument("jobs", metavar="JOB", nargs="*", help="only these")
    kill.set_defaults(command=_kill)
    rerun = commands.add_parser(
        "rerun", parents=[common], help="run again what did not complete",
        description="Run again the jobs that did not complete, and those that were skipped because of them. A manager "
        "that runs the batch does it; otherwise this command becomes one, with the options that run has.",
    )  # fmt: skip
    rerun.add_argument("batch", metavar="BATCH", nargs="?", help=f"{which} (default: the latest)")
    rerun.add_argument("jobs", metavar="JOB", nargs="*", help="only these, if a manager runs the batch")
    engine_options(rerun)
    rerun.set_defaults(command=_rerun)


def _kill(args: argparse.Namespace) -> int:
    with _journal(args) as journal:
        record = journal.find(args.batch)
        journal.kill(record.id, _numbers(journal, record.id, args.jobs))
    return SUCCESS


def _rerun(args: argparse.Namespace) -> int:
    with _journal(args) as journal:
        record = journal.find(args.batch)
        numbers = _numbers(journal, record.id, args.jobs)
        if journal.is_leased(record.id) and journal.request("rerun", record.id, numbers):
            print("asked the manager that runs the batch", file=sys.stderr)
            return SUCCESS
        again = True if numbers is None else numbers
        return manage(args, journal, journal.document(record.id), lambda: record.id, rerun=again)


def _journal(args: argparse.Namespace) -> Journal:
    from poncho_wq.batch.journal import Journal
    from poncho_wq.batch.spool import Spool

    return Journal(Spool(args.save_dir), create=False)


def _numbers(journal: Journal, batch: int, names: list[str]) -> list[int] | None:
    """The ids of these jobs; None for no names."""
    from poncho_wq.errors import SpecError

    known = {job.name: job.id for job in journal.jobs(batch)}
    for name in names:
        if name not in known:
            raise SpecError(f"the batch has no job {name}", advice=f"it has: {', '.join(list(known)[:20])}")
    return [known[name] for name in names] or None
