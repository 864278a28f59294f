"""Everything that is looked at, in the order in which a newcomer needs it to be right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from poncho_wq.doctor import engines, network, node, program, storage
from poncho_wq.doctor.finding import Finding, problem

SECONDS = 10.0
"""How long anything that answers over a network or a socket may take."""

Check = tuple[str, Callable[[], Iterable[Finding]]]


def checks(*, root: Path, seconds: float, offline: bool) -> list[Check]:
    """Each check with its name, to be called one after the other."""
    found: list[Check] = [
        ("python", program.interpreter),
        ("programs", program.programs),
        ("pip", program.pip_settings),
        ("compression", program.compression),
        ("wrapper", program.wrapper),
        ("cache", lambda: storage.cache(root)),
        ("home", lambda: storage.home(root)),
        ("quota", lambda: storage.quotas(root, seconds)),
        ("tmp", storage.temporary),
        ("proxy", lambda: network.proxies(seconds, offline=offline)),
    ]
    if not offline:
        found += [
            ("index", lambda: network.index(seconds)),
            ("channels", lambda: network.channels(seconds)),
            ("clock", lambda: network.clock(seconds)),
        ]
    return [
        *found,
        ("work_queue", lambda: engines.work_queue(seconds)),
        ("taskvine", lambda: engines.taskvine(seconds)),
        ("parsl", engines.parsl),
        ("node", node.here),
    ]


def examine(*, root: Path, seconds: float = SECONDS, offline: bool = False) -> Iterator[Finding]:
    """Look at this machine.  ``root``: the cache's directory; ``seconds``: for each answer; ``offline``: ask nobody.

    Findings come as they are made.  Nothing is changed, and nothing is left behind.  A check that fails itself is a
    finding too: a doctor that stops at the first surprise helps nobody.
    """
    for name, check in checks(root=root, seconds=seconds, offline=offline):
        try:
            yield from check()
        except Exception as error:
            yield problem(name, f"could not be looked at: {type(error).__name__}: {error}", "report this, please")
