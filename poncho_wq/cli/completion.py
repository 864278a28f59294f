"""``poncho-wq completion``: what bash, or zsh's bashcompinit, needs to complete our commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence

from poncho_wq.cli import SUCCESS

# Words and options that we know; everything else may be a file.
_SCRIPT = """\
# Completion for the commands of poncho_wq.  In ~/.bashrc:  eval "$(poncho-wq completion)"
# In ~/.zshrc:  autoload -U +X bashcompinit && bashcompinit && eval "$(poncho-wq completion)"
_poncho_wq_words() {{
    case "$1" in
{cases}
        *) return 1 ;;
    esac
}}
_poncho_wq() {{
    local IFS=$'\\n'  # of names with blanks
    local cur=${{COMP_WORDS[COMP_CWORD]}} at=${{COMP_WORDS[0]##*/}} word words
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        _poncho_wq_words "$at $word" >/dev/null && at="$at $word"
    done
    words=$(_poncho_wq_words "$at")
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    case "$cur" in
        -*) ;;
        *) COMPREPLY+=($(compgen -f -- "$cur")) ;;
    esac
}}
complete -o filenames -F _poncho_wq {names}
"""


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options: none."""
    return argparse.ArgumentParser(
        prog=prog,
        description="Print a script that has bash complete commands and options. "
        'In ~/.bashrc: eval "$(poncho-wq completion)"',
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Exit status: 0, 2 for bad usage."""
    parser(prog).parse_args(argv)
    sys.stdout.write(script())
    return SUCCESS


def script() -> str:
    """The text, from the parsers of all commands."""
    found = dict(_all())
    cases = "\n".join(f"        '{key}') printf '%s\\n' {' '.join(words)} ;;" for key, words in found.items())
    return _SCRIPT.format(cases=cases, names=" ".join(sorted({key.split(" ")[0] for key in found})))


def _all() -> Iterator[tuple[str, list[str]]]:
    """(command, what may come after it)."""
    from poncho_wq.cli.main import COMMANDS

    yield "poncho-wq", [*COMMANDS, "--help", "--version"]
    for name, (module, _) in COMMANDS.items():
        if module is not None:
            yield from _of(f"poncho-wq {name}", importlib.import_module(module).parser())
    for tool in ("analyze", "create"):
        for family in ("poncho_package", "python_package"):
            yield from _of(f"{family}_{tool}", importlib.import_module(f"poncho_wq.cli.{tool}").parser())


def _of(key: str, ap: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    words: list[str] = []
    inner: dict[str, argparse.ArgumentParser] = {}
    for action in ap._actions:
        words += [each for each in action.option_strings if each.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            inner.update(action.choices)
    yield key, [*inner, *words]
    for name, each in inner.items():
        yield from _of(f"{key} {name}", each)


if __name__ == "__main__":
    sys.exit(main())
