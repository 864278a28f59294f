"""Pages of the documents as scripts: what a reader would type, in order, and what is said to come of it.

```console            commands, one a line; or, if any begins with "$ ", commands and what they print, where … stands
                      for anything
```LANGUAGE title="X" the file X, written here
```sh, ```python …    with ``<!-- not run: reason -->`` on the line before: for other machines
```text, ```toml …    to be read
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r'(?P<why><!-- not run: [^\n]+ -->\n)?^```(?P<language>[a-z]*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_MARK = "\x02step {}\x03"
RUN = ("console", "sh", "bash")


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str
    not_run: bool


def blocks(page: Path) -> list[Block]:
    return [
        Block(match["language"], match["title"], match["text"], match["why"] is not None)
        for match in _BLOCK.finditer(page.read_text())
    ]


def script(page: Path) -> tuple[str, list[tuple[str, str | None]]]:
    """A bash script for the page; and each command with what it prints (None: whatever)."""
    lines, steps = ["set -eu"], list[tuple[str, str | None]]()
    for block in blocks(page):
        if block.title is not None:
            lines.append(f"cat > {shlex.quote(block.title)} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.language == "console" and not block.not_run:
            for command, expected in _commands(block.text):
                lines += [f"printf '{_MARK.format(len(steps))}\\n'", command]
                steps.append((command, expected))
    return "\n".join(lines) + "\n", steps


def _commands(text: str) -> list[tuple[str, str | None]]:
    if not re.search(r"^\$ ", text, re.MULTILINE):
        return [(line, None) for line in text.splitlines()]
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        found.append((command, printed))
    return found


def outputs(said: str, steps: int) -> list[str]:
    """What each command printed; those that were not come to are not there."""
    parts = re.split(r"\x02step \d+\x03\n", said)
    return parts[1 : steps + 1]


def matches(printed: str, expected: str) -> bool:
    """Whether it is that, with … for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None
