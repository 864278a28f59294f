"""Pairs of measurements.  Seconds belong to a machine; the ratio of two things measured in turn is what is claimed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

K = TypeVar("K")


class Unavailable(Exception):
    """What a benchmark needs is not on this machine; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the medians of ours and the peer's, and the median of the ratios pair by pair.

    ``ratio`` is ours / peer in ``unit``; below 1 is better when the unit is a time or size, above 1 for a rate.
    ``target`` is the bound that the project holds itself to, as text.
    """

    name: str
    ours: float
    peer: float | None
    unit: str
    ratio: float | None
    pairs: int
    peer_name: str = ""
    target: str = ""
    note: str = field(default="")


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired(
    name: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    *,
    pairs: int,
    unit: str,
    peer_name: str,
    target: str = "",
    note: str = "",
) -> Row:
    """Measure ours and the peer in turn ``pairs`` times, after one uncounted round of both."""
    measured = in_turn({True: ours, False: peer}, rounds=pairs)
    return ratio_row(name, measured[True], measured[False], unit=unit, peer_name=peer_name, target=target, note=note)


def in_turn(arms: dict[K, Callable[[], float]], *, rounds: int) -> dict[K, list[float]]:
    """Measure each of ``arms`` once a round, after one uncounted round: what the rest of the machine does meanwhile
    is much the same for all of a round."""
    for arm in arms.values():
        arm()
    measured: dict[K, list[float]] = {key: [] for key in arms}
    for _ in range(rounds):
        for key, arm in arms.items():
            measured[key].append(arm())
    return measured


def ratio_row(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    unit: str,
    peer_name: str,
    target: str = "",
    note: str = "",
) -> Row:
    """A row of two that were measured ``in_turn``."""
    return Row(
        name=name, ours=statistics.median(ours), peer=statistics.median(peer), unit=unit,
        ratio=statistics.median(a / b for a, b in zip(ours, peer, strict=True)), pairs=len(ours), peer_name=peer_name,
        target=target, note=note,
    )  # fmt: skip


def alone(name: str, ours: Callable[[], float], *, runs: int, unit: str, target: str = "", note: str = "") -> Row:
    """A row that has no peer: the median of ``runs``, after one uncounted."""
    ours()
    return Row(
        name=name, ours=statistics.median(ours() for _ in range(runs)), peer=None, unit=unit, ratio=None, pairs=runs,
        target=target, note=note,
    )  # fmt: skip
