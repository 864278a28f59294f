"""``poncho-wq batch run FILE``: a manager for one batch, until it is over."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poncho_wq.cli import FAILED, SUCCESS
from poncho_wq.cli.display import progress

if TYPE_CHECKING:
    from poncho_wq.batch.front_ends import Loaded
    from poncho_wq.batch.journal import Journal
    from poncho_wq.batch.model import Batch

# Seconds between looks at what other processes want.
TURN = 1.0


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add ``run`` to the parser."""
    run = commands.add_parser(
        "run", parents=[common], help="run a batch until it is over",
        description="Run the batch that FILE (distribute's YAML, or a workflow in JSON) describes, until it is over.",
    )  # fmt: skip
    run.add_argument("file", metavar="FILE")
    run.add_argument("--environment", metavar="E", help="what the jobs run in: any input of poncho_package_create")
    run.add_argument("--dry", action="store_true", help="say what would be run, and run nothing")
    run.add_argument("--resume", action="store_true", help="go on with a batch whose manager was ended")
    engine_options(run)
    run.set_defaults(command=_run)


def engine_options(parser: argparse.ArgumentParser) -> None:
    """The options of commands that open an engine."""
    parser.add_argument(
        "--engine", choices=("local", "work_queue", "taskvine"),
        help="who runs the jobs (default: work_queue with --port or --name, else local: this machine)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=0, metavar="P", help="the manager's port (default: any)")
    parser.add_argument("--name", metavar="PROJECT", help="the project name that workers look for")
    parser.add_argument("--workers", type=int, metavar="N", help="start N workers on this machine")
    parser.add_argument("--cores", type=int, metavar="C", help="cores of each of them (default: 1; local: all)")
    parser.add_argument("--feature", action="append", default=[], metavar="F", help="what these workers offer")
    parser.add_argument(
        "--stall-limit", type=float, default=300.0, metavar="SECONDS",
        help="give up jobs that none of the connected workers has taken for so long (default: 300)",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> int:
    from poncho_wq.batch.front_ends import load
    from poncho_wq.batch.journal import Journal
    from poncho_wq.batch.notify import senders_for
    from poncho_wq.batch.spool import Spool

    loaded = load(Path(args.file))
    if args.environment is not None:
        given = os.path.abspath(args.environment) if os.path.exists(args.environment) else args.environment
        loaded = replace(loaded, batch=replace(loaded.batch, environment=given))
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.dry:
        _show(loaded)
        return SUCCESS
    senders_for(loaded.batch)
    with Journal(Spool(args.save_dir)) as journal:
        if not args.resume:
            journal.refuse_taken(loaded.batch)

        def number() -> int:
            return _resumed(journal, loaded, args.file) if args.resume else _added(journal, loaded)

        return manage(args, journal, loaded.batch, number)


def _added(journal: Journal, loaded: Loaded) -> int:
    from poncho_wq.batch.tasks import keep_inputs

    return journal.add(keep_inputs(loaded.batch, journal.spool), front_end=loaded.front_end, source=loaded.source)


def _resumed(journal: Journal, loaded: Loaded, file: str) -> int:
    from poncho_wq.batch.document import to_json
    from poncho_wq.batch.journal import folder_of
    from poncho_wq.batch.tasks import keep_inputs
    from poncho_wq.errors import EngineError

    known = [each for each in journal.batches() if each.folder == folder_of(loaded.batch)]
    if not known:
        return _added(journal, loaded)
    number = known[0].id
    if to_json(keep_inputs(loaded.batch, journal.spool)) != to_json(journal.document(number)):
        raise EngineError(
            f"{file}, a file it names, or --environment is not what it was when the batch {known[0].title} was started",
            advice="resume it with what it was started with, or run what it is now under another batch_name",
        )
    return number


def _show(loaded: Loaded) -> None:
    batch = loaded.batch
    environment = "this Python and its standard library" if batch.environment is None else batch.environment
    print(f"batch {batch.namespace}/{batch.name}: {len(batch.jobs)} jobs, environment: {environment}")
    for job in batch.jobs:
        needs = job.resources
        facts = [f"{needs.cores} core{'s' if needs.cores > 1 else ''}"]
        facts += [f"{needs.memory} MB"] if needs.memory else []
        facts += [f"at most {needs.walltime:g} s"] if needs.walltime else []
        facts += [f"{needs.gpus} GPU"] if needs.gpus else []
        facts += [f"features {', '.join(job.features)}"] if job.features else []
        facts += [f"after {', '.join(job.after)}"] if job.after else []
        print(f"  {job.name}: {'; '.join(facts)}")
        for item in job.inputs:
            whence = item.path or (f"{item.output} of {item.job}" if item.job else "given in the batch")
            print(f"    input   {item.name} ← {whence}")
        for step in job.steps:
            print(f"    command {shlex.join(step.argv)}")


def manage(
    args: argparse.Namespace, journal: Journal, batch: Batch, number_of: Callable[[], int], *,
    rerun: bool | list[int] = False,
) -> int:  # fmt: skip
    """Run a batch until it is over; the exit status says whether all its jobs completed.

    ``number_of`` gives its number in the journal, once environment and engine are there: what fails before leaves the
    journal as it was.
    """
    from poncho_wq.batch.manager import Manager
    from poncho_wq.batch.notify import notifier, senders_for
    from poncho_wq.batch.preparing import prepare
    from poncho_wq.cli.batch_display import display
    from poncho_wq.progress import shown_by

    senders = senders_for(batch)
    with progress() as say, shown_by(say):
        facts = prepare(batch)
    with ExitStack() as stack:
        engine = stack.enter_context(_engine(args, batch))
        number = number_of()
        show = stack.enter_context(display(journal, number, engine))
        manager = stack.enter_context(
            Manager(
                engine, journal, stall_limit=args.stall_limit, on_change=show.change,
                notify=notifier(senders, journal.counts, show.warn),
            )
        )  # fmt: skip
        manager.adopt(
            number, rerun=rerun, on_wait=lambda job: show.warn(f"waiting for the end of {job}, left by an earlier run")
        )
        journal.set_environment(number, facts)
        while not manager.idle:
            manager.turn(TURN)
            show.look()
    return report(journal, number, f"results: {journal.spool.save / journal.batch(number).folder}")


@contextmanager
def _engine(args: argparse.Namespace, batch: Batch) -> Iterator[Any]:
    from poncho_wq.engines.opened import open_engine

    kind = args.engine or ("work_queue" if args.port or args.name else "local")
    cores = args.cores
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if kind == "local" and args.workers is None else 1
    with open_engine(
        kind, port=args.port, name=args.name, workers=args.workers or 0, cores=cores, features=args.feature
    ) as engine:
        if kind != "local" and not args.workers:
            program = "work_queue_worker" if kind == "work_queue" else "vine_worker"
            wanted = dict.fromkeys(feature for job in batch.jobs for feature in job.features)
            words = [program, *(word for each in wanted for word in ("--feature", each))]
            where = f"{socket.getfqdn()} {engine.queue.port}"
            print(f"the manager is on port {engine.queue.port}; start workers: {shlex.join(words)} {where}", flush=True)
        yield engine


def report(journal: Journal, number: int, last: str) -> int:
    """Say how a batch that is over went."""
    from poncho_wq.batch.model import STALLED, State

    jobs = journal.jobs(number)
    bad = [job for job in jobs if job.state is not State.COMPLETED]
    stalled = [job for job in bad if job.reason and job.reason.startswith(STALLED)]
    if stalled:
        print(f"error: {STALLED}", file=sys.stderr)
        for job in stalled:
            print(f"  {job.name}: {(job.reason or '').removeprefix(STALLED + ': ')}", file=sys.stderr)
        names = {job.name for job in stalled}
        wanted = dict.fromkeys(
            feature for job in journal.document(number).jobs if job.name in names for feature in job.features
        )
        if wanted:
            offer = shlex.join(word for feature in wanted for word in ("--feature", feature))
            print(f"  if the workers have what is asked for, say so: {offer}", file=sys.stderr)
    print(f"{len(jobs) - len(bad)} of {len(jobs)} jobs completed; {last}")
    return FAILED if bad else SUCCESS
