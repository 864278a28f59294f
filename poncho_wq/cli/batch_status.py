"""``poncho-wq batch status``: what became of the jobs, as text, JSON or a page."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq.cli import FAILED, SUCCESS

if TYPE_CHECKING:
    from poncho_wq.batch.journal import BatchRecord, Journal


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``status`` to the parser."""
    status = commands.add_parser(
        "status", parents=[common], help="show a batch and its jobs",
        description="Show a batch and its jobs. Exit status: 1 when a job did not complete, else 0.",
    )  # fmt: skip
    status.add_argument(
        "batch", metavar="BATCH", nargs="?", help="NAMESPACE/NAME, NAME or number (default: the latest)"
    )
    status.add_argument("--all", action="store_true", help="one line for each batch there is")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON")
    how.add_argument("--html", metavar="FILE", help="write one page that needs nothing else")
    status.set_defaults(command=_status)


def _status(args: argparse.Namespace) -> int:
    from poncho_wq.batch.journal import Journal
    from poncho_wq.batch.model import State
    from poncho_wq.batch.spool import Spool

    with Journal(Spool(args.save_dir), create=False) as journal:
        if args.all:
            _list(journal, as_json=args.json)
            return SUCCESS
        record = journal.find(args.batch)
        jobs = journal.jobs(record.id)
        if args.json:
            json.dump(_document(journal, record), sys.stdout, indent=2)
            print()
        elif args.html:
            from poncho_wq.batch.page import page

            _write(Path(args.html), page(journal, record))
            print(args.html)
        else:
            _show(journal, record)
        bad = any(job.state.final and job.state is not State.COMPLETED for job in jobs)
        return FAILED if bad else SUCCESS


def _write(path: Path, text: str) -> None:
    from poncho_wq.errors import SpecError

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SpecError(f"cannot be written: {error.strerror or error}", source=str(path)) from error


def _document(journal: Journal, record: BatchRecord) -> dict[str, Any]:
    manager = journal.manager(record.id)
    return {
        "id": record.id,
        "namespace": record.namespace,
        "name": record.name,
        "results": str(journal.spool.save / record.folder),
        "created": record.created,
        "ended": record.ended,
        "running": journal.is_leased(record.id),
        "manager": None if manager is None else asdict(manager),
        "environment": dict(record.environment),
        "jobs": [{**asdict(job), "state": job.state.value, "words": job.words} for job in journal.jobs(record.id)],
    }


def _list(journal: Journal, *, as_json: bool) -> None:
    batches = [record for record in journal.batches() if not record.removed]
    if as_json:
        json.dump([_document(journal, record) for record in batches], sys.stdout, indent=2)
        print()
        return
    for record in batches:
        counts = ", ".join(f"{count} {state.value}" for state, count in journal.counts(record.id).items())
        print(f"{record.id:>4}  {record.title:<40} {counts}")


def _show(journal: Journal, record: BatchRecord) -> None:
    from poncho_wq.cli.batch_display import environment_words

    jobs = journal.jobs(record.id)
    manager = journal.manager(record.id)
    if record.ended is not None:
        how = "over"
    elif journal.is_leased(record.id) and manager is not None:
        where = f", {manager.facts['workers']} workers" if "workers" in manager.facts else ""
        how = f"being run by process {manager.pid} on {manager.host} ({manager.engine}{where})"
    else:
        how = "no manager runs it: go on with poncho-wq batch run FILE --resume"
    print(f"batch {record.title}: {how}")
    print(f"environment: {environment_words(record)}")
    print(f"results: {journal.spool.save / record.folder}")
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        took = "" if job.started is None or job.ended is None else f"{max(0.0, job.ended - job.started):8.1f} s"
        print(f"  {job.name:<{width}}  {job.words:<30} {took:>10}  {job.host or ''}".rstrip())
    failed = [job for job in jobs if job.stderr_tail]
    for job in failed[:10]:
        lines = (job.stderr_tail or "").rstrip().splitlines()[-5:]
        print(f"\n{job.name}, {job.words}; the end of its stderr:")
        print("\n".join(f"  | {line}" for line in lines))
    if len(failed) > 10:
        print(f"\n… and {len(failed) - 10} more")
