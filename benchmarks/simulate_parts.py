"""What parts save for one changed pin where there are more workers than a machine has: a formula, and measured pieces.

A Work Queue manager sends every input itself, to one worker after the other.  So n workers wait

    T(B, b) = B + n · (b / min(R / 8, M) + l)

seconds for an environment that takes B seconds to build and b bytes to send, where R is the network's rate in bits a
second, M the bytes a second that the manager can send at all, and l what it costs to turn to the next worker.
Unpacking is left out: workers do it at the same time, and it is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """``whole`` and ``changed``: bytes to send to each worker; ``build_…``: seconds; ``manager``: its bytes a second.

    ``rate``: bits a second of the network; ``latency``: seconds between two workers.
    """

    whole: int
    changed: int
    build_whole: float
    build_changed: float
    manager: float
    workers: int = 1000
    rate: float = 10e9
    latency: float = 0.001

    def seconds(self, build: float, size: int) -> float:
        """Until the last worker has it."""
        return build + self.workers * (size / min(self.rate / 8, self.manager) + self.latency)

    @property
    def minutes_whole(self) -> float:
        """As one file, with nothing known."""
        return self.seconds(self.build_whole, self.whole) / 60

    @property
    def minutes_changed(self) -> float:
        """In parts, of which the workers have most."""
        return self.seconds(self.build_changed, self.changed) / 60

    @property
    def minutes_saved(self) -> float:
        """The difference."""
        return self.minutes_whole - self.minutes_changed
