"""Byte ranges of few files: that they are the tarball, few, and no burden to a worker that has nothing."""

from __future__ import annotations

import hashlib
import itertools
import random
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.manifest import LayerRef, Manifest, end_member
from poncho_wq.packing import ranges
from poncho_wq.packing.ranges import MOST_FILES, MOST_RANGES, SHARED, WASTE, Assembly, Carrier, assemble, members_of

KB = 1 << 10


def manifest_of(layers: list[tuple[str, int]]) -> Manifest:
    """Of layers by name and packed length; equal ones hold the same."""
    refs, at = [], 0
    for name, length in layers:
        digest = hashlib.sha256(f"{name} {length}".encode()).hexdigest()
        refs.append(LayerRef(offset=at, length=length, unpacked=512, digest=digest, name=name))
        at += length
    return Manifest(platform="linux-64", python="3.11.7", glibc=None, unpacked=1, files=1, layers=tuple(refs))


def bytes_of(manifest: Manifest) -> bytes:
    """The tarball, as far as bytes go: what a layer holds follows from its digest."""
    layers = [random.Random(layer.digest).randbytes(layer.length) for layer in manifest.layers]
    return b"".join((manifest.first_member(), *layers, end_member()))


class Sender:
    """What a process that ships one environment after the other has on disk."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.carriers: list[Carrier] = []

    def send(self, manifest: Manifest) -> Assembly | None:
        """Also checks that what is sent is the tarball, and what every tarball is promised."""
        members, data = members_of(manifest), bytes_of(manifest)
        assert sum(member.length for member in members) == manifest.size == len(data)
        found = assemble(members, self.carriers)
        if found is None:
            self._keep(Carrier.of(manifest.identity, members), data)
        else:
            delta = b"".join(data[each.offset : each.offset + each.length] for each in found.delta)
            self._check(found, delta, data)
            if found.delta:
                self._keep(Carrier.of(found.delta_name, found.delta), delta)
        return found

    def _keep(self, carrier: Carrier, content: bytes) -> None:
        self.carriers.append(carrier)
        assert carrier.size == len(content)
        assert self.files.setdefault(carrier.name, content) == content

    def _check(self, found: Assembly, delta: bytes, data: bytes) -> None:
        of = {None: delta} | {carrier: self.files[carrier.name] for carrier in found.carriers}
        assert b"".join(of[each.carrier][each.offset : each.offset + each.length] for each in found.ranges) == data
        assert {each.carrier for each in found.ranges} - {None} == {*found.carriers}
        assert all(each.carrier is None or each.length >= ranges.LEAST_RUN for each in found.ranges)
        assert found.sent == len(delta)
        assert len(found.carriers) + bool(delta) <= MOST_FILES
        assert len(found.ranges) <= MOST_RANGES
        assert all(one.carrier is not two.carrier or one.offset + one.length != two.offset
                   for one, two in itertools.pairwise(found.ranges))  # fmt: skip
        assert len(delta) * SHARED <= len(data) * (SHARED - 1)
        received = len(delta) + sum(len(self.files[carrier.name]) for carrier in found.carriers)
        assert received >= len(data)


NAMES = [f"p{number}" for number in range(40)]
layer_lists = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([20, 90, 700, 3_000, 9_000])), max_size=40,
    unique_by=lambda each: each[0],
).map(sorted)  # fmt: skip


@given(st.lists(layer_lists, min_size=2, max_size=8))
def test_the_ranges_are_the_tarball(history: list[list[tuple[str, int]]]) -> None:
    sender = Sender()
    with mock.patch.object(ranges, "LEAST_RUN", 100):
        for layers in history:
            sender.send(manifest_of(layers))


@given(layer_lists, st.lists(st.tuples(st.sampled_from(NAMES[:12]), st.sampled_from([0, 90, 9_000])), max_size=12))
def test_one_changed_layer_after_the_other(layers: list[tuple[str, int]], changes: list[tuple[str, int]]) -> None:
    """Of 0 bytes: it goes."""
    sender = Sender()
    with mock.patch.object(ranges, "LEAST_RUN", 100), mock.patch.object(ranges, "MOST_RANGES", 7):
        sender.send(manifest_of(layers))
        for name, length in changes:
            layers = sorted(each for each in {**dict(layers), name: length}.items() if each[1])
            found = sender.send(manifest_of(layers))
            assert found is None or len(found.ranges) <= 7


@given(st.lists(layer_lists, min_size=2, max_size=8))
def test_what_a_worker_that_has_nothing_receives_is_bounded(history: list[list[tuple[str, int]]]) -> None:
    """Carriers that are hardly used are not taken.  What is short in them, and so is sent again, is small."""
    sender = Sender()
    with mock.patch.object(ranges, "LEAST_RUN", 1):
        for layers in history:
            manifest = manifest_of(layers)
            found = sender.send(manifest)
            if found is not None:
                received = found.sent + sum(carrier.size for carrier in found.carriers)
                assert received * WASTE <= manifest.size * (WASTE + 1)


def environment(**lengths: int) -> list[tuple[str, int]]:
    """Like one of numpy and its friends, a hundredth as large."""
    usual = {"interpreter": 140, "numpy": 170, "pandas": 130, "scipy": 350}
    layers = {name: kb * KB for name, kb in usual.items()} | {f"small-{number}": 7 * KB for number in range(8)}
    # what lists the packages changes with any of them
    return [*sorted({**layers, **lengths}.items()), ("runtime", 300 + sum(lengths.values()) % 101)]


def small() -> mock._patch[int]:
    return mock.patch.object(ranges, "LEAST_RUN", 1200)


def test_one_changed_package_is_five_ranges_of_two_files() -> None:
    sender = Sender()
    with small():
        assert sender.send(manifest_of(environment())) is None
        found = sender.send(manifest_of(environment(pandas=131 * KB)))
        assert found is not None
        assert [each.carrier is None for each in found.ranges] == [True, False, True, False, True]
        assert len(found.carriers) == 1
        assert 131 * KB < found.sent < 136 * KB


def test_a_carrier_with_little_in_it_is_no_file_of_a_task() -> None:
    sender = Sender()
    tiny: dict[str, int] = {}
    with small():
        sender.send(manifest_of(environment()))
        for number in range(3):
            tiny[f"small-{number}"] = 2 * KB + number
            found = sender.send(manifest_of(environment(**tiny)))
            assert found is not None
            assert len(found.carriers) == 1
            assert found.sent > (number + 1) * 2 * KB, "with what the one before it had"


def test_what_two_carriers_have_counts_once() -> None:
    """The second one would bring the large layer once more, for the sake of a small one."""
    members = members_of(manifest_of([("large", 900 * KB), ("one", 50 * KB), ("two", 40 * KB)]))
    large, one, two = members[1:4]
    carriers = [Carrier.of("a", [large, one]), Carrier.of("b", [large, two])]
    with small():
        found = assemble(members, carriers)
    assert found is not None
    assert found.carriers == (carriers[0],)
    assert two in found.delta


def test_what_is_small_and_stood_between_what_went_is_sent_again() -> None:
    """Rather than named by a range of its own."""
    layers = [("large", 400 * KB), ("gone", KB), ("little", 1100), ("gone too", KB), ("other", 400 * KB)]
    before = Carrier.of("before", members_of(manifest_of([(name.replace(" ", "-"), size) for name, size in layers])))
    members = members_of(manifest_of([each for each in layers if not each[0].startswith("gone")]))
    with small():
        found = assemble(members, [before])
    assert found is not None
    assert members[2] in found.delta
    assert [each.length // KB for each in found.ranges if each.carrier is before] == [400, 401]


def test_many_small_changes_stay_few_files_and_are_no_burden() -> None:
    sender = Sender()
    received = []
    with small():
        first = manifest_of(environment())
        sender.send(first)
        lengths: dict[str, int] = {}
        for number in range(20):
            lengths[f"small-{number % 8}"] = 7 * KB + number + 1
            manifest = manifest_of(environment(**lengths))
            found = sender.send(manifest)
            assert found is not None
            assert found.sent < 0.03 * manifest.size
            received.append((found.sent + sum(carrier.size for carrier in found.carriers)) / manifest.size)
    assert received[0] < 1.02
    assert max(received) < 1.25


def test_what_would_burden_a_worker_that_has_nothing_goes_as_one_file_again() -> None:
    """Carriers of which more than a quarter of the tarball is not used are sent to nobody new."""
    sender = Sender()
    changes: list[dict[str, int]] = [
        {}, {"pandas": 131 * KB}, {"pandas": 132 * KB}, {"pandas": 132 * KB, "numpy": 171 * KB},
        {"pandas": 132 * KB, "numpy": 171 * KB, "small-1": 8 * KB},
    ]  # fmt: skip
    with small():
        found = [sender.send(manifest_of(environment(**each))) for each in changes]
    assert [each is None for each in found] == [True, False, False, True, False]
    assert found[2] is not None
    assert len(found[2].carriers) == 1, "the first delta has nothing of it"
    assert found[4] is not None
    assert found[4].carriers == (sender.carriers[3],), "the later whole one"


def test_strangers_share_nothing() -> None:
    sender = Sender()
    with small():
        assert sender.send(manifest_of(environment())) is None
        assert sender.send(manifest_of([("interpreter", 140 * KB), ("torch", 3000 * KB), ("runtime", 300)])) is None
        assert sender.send(manifest_of([("else", 140 * KB)])) is None


def test_the_same_members_once_more_need_no_delta() -> None:
    sender = Sender()
    manifest = manifest_of(environment())
    assert sender.send(manifest) is None
    found = sender.send(manifest)
    assert found is not None
    assert (found.delta, len(found.ranges), found.ranges[0].length) == ((), 1, manifest.size)
