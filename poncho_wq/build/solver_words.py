"""What py-rattler says when it fails, as an error that a person can act on.  Text in, errors out.

The solver's own tree is kept, since it is the explanation, but cut, and followed by what usually mends the case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poncho_wq.errors import FetchError, SolveError, redact

_LONGEST = 24  # lines of the solver's explanation
_WIDEST = 200  # characters of one of them
_HEADING = "Cannot solve the request because of: "
_URL = re.compile(r"(?:https?|file|s3|gcs|oci)://[^\s`'\")]+")
_MACHINE = re.compile(r"(__[a-z0-9_]+)(?: ([^,\n]*?))?, for which no candidates were found")
_MACHINE_ADVICE = {
    "__glibc": 'a package asks for a newer C library than the environment may count on: raise "glibc" in the '
    "specification, or ask for an older version of that package",
    "__cuda": "a package asks for a GPU driver that this machine does not have: when the workers have it, set "
    "CONDA_OVERRIDE_CUDA to its version",
    "__archspec": "a package asks for a newer processor than every worker has: when all workers have it, set "
    "CONDA_OVERRIDE_ARCHSPEC to its name, such as x86_64_v3",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the solver was asked: MatchSpecs, channels in order, platform, and what it was told about the machine."""

    specs: tuple[str, ...]
    channels: tuple[str, ...]
    platform: str
    virtual: tuple[str, ...] = ()


There = Mapping[str, Mapping[str, set[str]]]
"""Package → channel → versions: what the channels have of the packages that were asked for."""


def explain_solve(text: str, asked: Question, there: There) -> SolveError:
    """The ``SolveError`` for the solver's message ``text``."""
    reason = _shortened(text)
    return SolveError(
        f"no set of conda packages satisfies the specification for {asked.platform}:\n{reason}",
        log=redact(text),
        advice=redact(_advice(text, asked, there)),
    )


def explain_fetch(text: str, places: Sequence[str], *, offline: bool) -> FetchError:
    """The ``FetchError`` for a channel or package that could not be had; ``places`` are channels, or URLs."""
    lines = [line.removeprefix("Caused by: ").strip() for line in text.splitlines() if line.strip()]
    match = _URL.search(text)
    url = match[0].rstrip(".,:") if match else (places[0] if places else None)
    shown = redact("; ".join(dict.fromkeys(lines))) or "no reason given"
    if offline:
        return FetchError(
            f"not in the cache, and the network may not be used: {shown}",
            url=url, log=redact(text), advice="build once without --offline; what is downloaded stays in the cache",
        )  # fmt: skip
    advice = f"are the channels right, and do they answer from this machine? asked: {redact(', '.join(places))}"
    if "could not find subdir" in text:
        advice = f"there is no such channel: check its spelling; asked: {redact(', '.join(places))}"
    elif re.search(r"\b(401|403)\b|[Uu]nauthorized|[Ff]orbidden", text):
        advice = "the channel wants credentials: give them to rattler, in the file RATTLER_AUTH_FILE or ~/.netrc"
    return FetchError(f"could not download: {shown}", url=url, log=redact(text), advice=advice)


def _shortened(text: str) -> str:
    """The solver's tree: without heading and repetitions, cut to what fits on a screen."""
    body = text.removeprefix(_HEADING).strip()
    kept: list[str] = []
    seen: set[str] = set()
    for line in body.splitlines():
        words = line.strip("│├└─ \t")
        # Each constraint is reported once for every candidate that it rules out.
        if words.startswith("the constraint") and words in seen:
            continue
        seen.add(words)
        kept.append(redact(line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"))
    if len(kept) > _LONGEST:
        kept = [*kept[:_LONGEST], f"… and {len(kept) - _LONGEST} lines more"]
    return "\n".join(kept)


def _advice(text: str, asked: Question, there: There) -> str:
    found = [
        *_absent(asked, there),
        *_hidden(text, asked, there),
        *(
            _MACHINE_ADVICE[name]
            for name in dict.fromkeys(m[1] for m in _MACHINE.finditer(text))
            if name in _MACHINE_ADVICE
        ),
    ]
    if found:
        return "\n".join(found)
    if len(asked.channels) > 1:
        return (
            "loosen or drop one of the versions named above; packages of different channels are often built against "
            "different libraries: take all from one, or order the channels by what they are to decide"
        )
    return "loosen or drop one of the versions named above"


def _absent(asked: Question, there: There) -> list[str]:
    """For packages that no channel has."""
    missing = sorted(name for name, where in there.items() if not where and not name.startswith("__"))
    if not missing:
        return []
    note = (
        f"{', '.join(missing)}: in none of the channels {', '.join(asked.channels)} for {asked.platform}: check the "
        "spelling, add the channel that has it, or list it under pip when it is on the Python index only"
    )
    return [note]


def _hidden(text: str, asked: Question, there: There) -> list[str]:
    """For versions that the deciding channel does not have: what it has, and which other channel has more."""
    notes = []
    for name, where in sorted(there.items()):
        ruled_out = re.search(
            rf"the constraint {re.escape(name)} |No candidates were found for {re.escape(name)} ", text
        )
        if not where or not ruled_out:
            continue
        first, *others = where
        note = f"{name}: {first} has {_versions(where[first])}"
        if others:
            more = "; ".join(f"{channel} has {_versions(where[channel])}" for channel in others)
            note += (
                f", and as the first channel with that package it decides; {more}: write {others[0]}::{name} for that, "
                "or put that channel first"
            )
        notes.append(note)
    return notes


def _versions(versions: set[str]) -> str:
    """Some of the versions, the newest last."""

    def key(version: str) -> list[tuple[int, int, str]]:
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"[._+-]", version)]

    ordered = sorted(versions, key=key)
    return ", ".join(ordered) if len(ordered) <= 6 else f"{ordered[0]}, … {', '.join(ordered[-4:])}"
