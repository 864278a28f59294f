"""The one place where this package runs another program.

Arguments are always a list, never a shell's text.  Output is kept, so that a failure can show what the program said.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run ``argv`` to its end and return what it printed.

    ``env`` replaces the whole environment when given; ``stdin`` is the program's input (none: empty); ``what`` names
    the work in an error ("install the packages").  ``on_line`` is called with each line of its stderr as it comes.

    Raises ``BuildError`` with ``.command`` and ``.log`` (stderr, then stdout) when the program cannot be started or
    exits with another status than 0.  A Ctrl-C ends the program as well.
    """
    command = tuple(os.fspath(word) for word in argv)
    try:
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = _communicate(process, (stdin or "").encode(), on_line)
            except BaseException:  # a Ctrl-C, or whoever looks at the lines
                process.kill()
                raise
    except OSError as error:
        raise BuildError(
            f"could not {what or 'run a program'}: {command[0]}: {error.strerror or error}",
            command=command,
            log=str(error),
        ) from error
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    if process.returncode != 0:
        log = "\n".join(part for part in (stderr.strip(), stdout.strip()) if part)
        raise BuildError(
            f"could not {what or 'run a program'}: {Path(command[0]).name} {_ending(process.returncode)}",
            command=command,
            log=log,
        )
    return Completed(stdout=stdout, stderr=stderr)


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, on_line: Callable[[str], None] | None
) -> tuple[bytes, bytes]:
    """Everything that it prints."""
    if on_line is None:
        return process.communicate(stdin)
    # Three pipes: whichever is not served may stop the program.
    assert process.stderr is not None
    stderr, process.stderr = process.stderr, None
    with ThreadPoolExecutor(1) as pool, stderr:
        rest = pool.submit(process.communicate, stdin)
        lines = []
        try:
            for line in stderr:
                lines.append(line)
                on_line(line.decode(errors="replace").rstrip("\n"))
        except BaseException:
            process.kill()  # so that the other thread comes to its end
            raise
        return rest.result()[0], b"".join(lines)


@contextmanager
def piped(argv: Sequence[str | os.PathLike[str]], *, what: str) -> Iterator[IO[bytes]]:
    """What ``argv`` writes, as a stream, for more than memory or disk should hold.  Whoever stops reading ends it.

    Raises ``BuildError`` as ``run`` does, at the end of the block.
    """
    command = tuple(os.fspath(word) for word in argv)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        except OSError as error:
            raise BuildError(f"could not {what}: {command[0]}: {error.strerror or error}", command=command) from error
        assert process.stdout is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            process.wait()
        if process.returncode != 0:
            said.seek(0)
            raise BuildError(
                f"could not {what}: {Path(command[0]).name} {_ending(process.returncode)}",
                command=command, log=said.read().decode(errors="replace").strip(),
            )  # fmt: skip


def _ending(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"exited with {status}"
