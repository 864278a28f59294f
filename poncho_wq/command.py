"""The one place where this package runs another program.

Arguments are always a list, never a shell's text.  Output is kept, so that a failure can show what the program said.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from poncho_wq.errors import BuildError


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What a program left: its two outputs, decoded as UTF-8 (undecodable bytes are replaced)."""

    stdout: str
    stderr: str


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    what: str | None = None,
) -> Completed:
    """Run ``argv`` to its end and return what it printed.

    ``env`` replaces the whole environment when given; ``stdin`` is the program's input (none: empty); ``what`` names
    the work in an error ("install the packages").

    Raises ``BuildError`` with ``.command`` and ``.log`` (stderr, then stdout) when the program cannot be started or
    exits with another status than 0.  A Ctrl-C ends the program as well.
    """
    command = tuple(os.fspath(word) for word in argv)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=None if env is None else dict(env),
            input=(stdin or "").encode(),
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise BuildError(
            f"could not {what or 'run a program'}: {command[0]}: {error.strerror or error}",
            command=command,
            log=str(error),
        ) from error
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode != 0:
        log = "\n".join(part for part in (stderr.strip(), stdout.strip()) if part)
        raise BuildError(
            f"could not {what or 'run a program'}: {Path(command[0]).name} {_ending(done.returncode)}",
            command=command,
            log=log,
        )
    return Completed(stdout=stdout, stderr=stderr)


def _ending(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"exited with {status}"
