"""Where a batch's things are: one directory of the user's, with results to look at and our own files out of sight.

SAVE/<namespace>/<batch>/<job>/      results: what the job left, stdout.txt, stderr.txt
SAVE/.poncho-batch/journal.sqlite    the journal
SAVE/.poncho-batch/files/<digest>    inputs, as they were when the batch was handed in, named by their content
SAVE/.poncho-batch/locks/            who runs which batch, and which job
SAVE/.poncho-batch/returned/         what came back from workers and is not published yet
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from poncho_wq.errors import EngineError

OWN = ".poncho-batch"
# Beside a job's results: which attempt they are of, for a manager that died before it could write that down.
RECEIPT = ".poncho-result.json"


class Spool:
    """The directory SAVE.  Made, readable by this user only in its hidden part, when it is written to first."""

    def __init__(self, save: str | os.PathLike[str]) -> None:
        self.save = Path(save).absolute()
        self.own = self.save / OWN

    @property
    def journal(self) -> Path:
        """The file of the ``Journal``; while that is open SQLite has two more beside it."""
        return self.own / "journal.sqlite"

    def make(self) -> Spool:
        """Make what is missing of it.  Raises ``EngineError``."""
        try:
            self.save.mkdir(parents=True, exist_ok=True)
            self.own.mkdir(mode=0o700, exist_ok=True)
            for name in ("files", "locks", "returned"):
                (self.own / name).mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot(self.save, error) from error
        return self

    def check(self) -> None:
        """Raise ``EngineError`` when others could have put into it what would run as this user."""
        try:
            facts = self.own.stat()
        except OSError as error:
            raise _cannot(self.own, error) from error
        me = os.geteuid()
        if facts.st_uid != me and me != 0:
            raise EngineError(
                f"{self.own}: belongs to user {facts.st_uid}, and you are {me}: what is kept there would run as you",
                advice="use a directory of your own: --save-dir DIR",
            )
        if facts.st_mode & stat.S_IWOTH:
            raise EngineError(
                f"{self.own}: everybody can write to it, and what is kept there would run as you",
                advice=f"if you trust what is in it: chmod o-w {self.own}",
            )

    def keep(self, path: str | os.PathLike[str]) -> str:
        """Copy a file into ``files`` and return its name there, its content's sha256.  Raises ``EngineError``.

        Engines know a cached input by its path, and a batch may be resumed next week: the user's own file may have
        changed by then.
        """
        partial = self.own / "files" / f".{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            try:
                with open(path, "rb") as source, partial.open("xb") as target:
                    while piece := source.read(1 << 20):
                        digest.update(piece)
                        target.write(piece)
                shutil.copymode(path, partial)
                # Two modes are two files: a program without its x bit would not run.
                name = digest.hexdigest() + ("x" if os.access(path, os.X_OK) else "")
                # One that is there stays: engines may have it open, or know its inode.
                if not (self.own / "files" / name).exists():
                    partial.replace(self.own / "files" / name)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot(Path(path), error) from error
        return name

    def fetch(self, url: str) -> str:
        """Keep what is at a URL (http, https, file).  Raises ``FetchError``, ``EngineError``."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            return self.keep(unquote(parts.path))
        from poncho_wq.build.download import download
        from poncho_wq.progress import current

        partial = self.own / "files" / f".{secrets.token_hex(8)}"
        try:
            download(url, partial, what=parts.path.rpartition("/")[2] or parts.netloc, on_progress=current())
            return self.keep(partial)
        finally:
            for each in partial.parent.glob(f"{partial.name}*"):
                each.unlink(missing_ok=True)

    def kept(self, name: str) -> Path:
        """The file that ``keep`` called ``name``."""
        return self.own / "files" / name

    def returned(self, job: int, attempt: int) -> Path:
        """Where the engine brings what this attempt left."""
        return self.own / "returned" / f"{job}-{attempt}.tar"

    def batch_lock(self, batch: int) -> Path:
        """Held by the manager that runs the batch."""
        return self.own / "locks" / f"batch-{batch}"

    def job_lock(self, job: int) -> Path:
        """Held by a job's processes on this machine."""
        return self.own / "locks" / f"job-{job}"

    def results(self, folder: str, job: str) -> Path:
        """Where a job's results are published; ``folder`` is the batch's, ``NAMESPACE/NAME``."""
        return self.save / folder / job


def _cannot(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"{path}: {error.strerror or error}", advice="give a directory with room that you can write to: --save-dir DIR"
    )
