"""What came back from a worker → the directory of a job's results, there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from poncho_wq.batch.model import Job
from poncho_wq.batch.outcome import Outcome, judge, understood
from poncho_wq.batch.spool import RECEIPT
from poncho_wq.build.archive import unpack
from poncho_wq.errors import EngineError, PonchoError
from poncho_wq.progress import silent


def publish(returned: Path | None, results: Path, *, job: int, attempt: int, outcome: Outcome, said: str = "") -> None:
    """Put what ``returned`` holds in the new directory ``results``, in the place of an earlier one.

    ``returned`` None: there is nothing but what was ``said``, which becomes ``stderr.txt``.  The receipt tells a
    manager that finds the directory which attempt it is of.  Raises ``EngineError`` when it cannot be stored.
    """
    partial = results.with_name(f".{results.name}.{secrets.token_hex(4)}.partial")
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        if returned is None:
            partial.mkdir()
            (partial / "stdout.txt").touch()
            (partial / "stderr.txt").write_text(said, errors="surrogateescape")
        else:
            _fill(returned, partial)
        receipt = {"job": job, "attempt": attempt, "facts": dict(outcome.facts), "stderr_tail": outcome.stderr_tail}
        (partial / RECEIPT).write_text(json.dumps(receipt))
        _exchange(partial, results)
    except (OSError, PonchoError) as error:
        why = error.message if isinstance(error, PonchoError) else error.strerror or str(error)
        raise EngineError(f"{results}: the results could not be stored: {why}") from error
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def _fill(returned: Path, partial: Path) -> None:
    unpack(returned, partial, None, what=returned.name, on_progress=silent)
    (partial / "result.json").unlink(missing_ok=True)  # what it says goes into the receipt and the journal
    own, files = partial / f".{secrets.token_hex(4)}", partial / "files"
    if files.is_dir():
        # Aside first: an output may be called "files".
        files.rename(own)
        for each in os.listdir(own):
            if each not in ("stdout.txt", "stderr.txt", RECEIPT):
                (own / each).rename(partial / each)
        shutil.rmtree(own)
    for name in ("stdout.txt", "stderr.txt"):
        (partial / name).touch()


def _exchange(new: Path, place: Path) -> None:
    """``new`` in ``place``, where an earlier attempt's results may be."""
    old = None
    if place.exists():
        old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
        place.rename(old)
    new.rename(place)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def published(results: Path, *, job: int, attempt: int, described: Job) -> Outcome | None:
    """The outcome of this attempt, if ``results`` are its; None if they are not there, or another's."""
    try:
        receipt: dict[str, Any] = json.loads((results / RECEIPT).read_text())
        if (receipt["job"], receipt["attempt"]) != (job, attempt) or not receipt["facts"]:
            return None
        return judge(understood(receipt["facts"], described), str(receipt["stderr_tail"]), described)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def sweep(folder: Path) -> None:
    """Remove what managers that died have left half done in a batch's folder; only for who holds its lease."""
    for each in folder.glob(".*.partial"):
        shutil.rmtree(each, ignore_errors=True)
    for each in folder.glob(".*.old"):
        name = each.name[1:].rpartition(".old")[0].rpartition(".")[0]
        if (folder / name).exists():
            shutil.rmtree(each, ignore_errors=True)
        else:
            # It died between the two renames: better the earlier results than none.
            each.rename(folder / name)
