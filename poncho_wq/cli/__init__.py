"""The commands: one module each, no logic.  Here is what they share: errors become one message and an exit status."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec

from poncho_wq.errors import AnalysisError, PonchoError, SpecError

if TYPE_CHECKING:
    import argparse

P = ParamSpec("P")

SUCCESS, FAILED, BAD_INPUT = 0, 1, 2


def errors_to_status(command: Callable[P, int]) -> Callable[P, int]:
    """Make a command's ``PonchoError`` a message on stderr and a status: 2 for bad input, 1 for work that failed."""

    @functools.wraps(command)
    def main(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except PonchoError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT if isinstance(error, (SpecError, AnalysisError)) else FAILED
        except BrokenPipeError:
            # The reader of our output went away (`… | head`): nothing is wrong, and nothing more can be said.
            sys.stderr.close()
            return FAILED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return main


def main_of(parser: Callable[[str | None], argparse.ArgumentParser]) -> Callable[..., int]:
    """``main(argv, prog)`` of a command with subcommands, each of which sets ``command``, the function that does it.

    Exit status: 0 success, 1 the work failed, 2 bad usage or bad input.
    """

    @errors_to_status
    def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        args = parser(prog).parse_args(argv)
        command: Callable[[argparse.Namespace], int] = args.command
        return command(args)

    return main
