"""Parts: what follows from names and sizes alone, and that `cat` of them is the tarball."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.manifest import LayerRef, Manifest
from poncho_wq.packing import parts
from poncho_wq.packing.parts import ALONE, MOST, WORTH, Parts, arrange

MB = 1 << 20

names = st.one_of(
    st.from_regex(r"[a-z][a-z0-9_.-]{0,12}-[0-9]{1,2}(\.[0-9]{1,2}){0,2}", fullmatch=True),
    st.from_regex(r"small-[0-7]", fullmatch=True),
    st.sampled_from(["interpreter", "other", "data-REF", "scipy-1.0.1", "scipy-1.0.2"]),
)
sizes = st.integers(1, 160_000).map(lambda number: number * 512)
layer_lists = st.lists(st.tuples(names, sizes), max_size=60, unique_by=lambda each: each[0])


def manifest_of(layers: list[tuple[str, int]], salt: str = "") -> Manifest:
    """A manifest whose layers lie in the order given; a layer's digest follows from its name and size."""
    refs, at = [], 0
    for name, unpacked in layers:
        digest = hashlib.sha256(f"{name} {unpacked} {salt if name == parts.OWN else ''}".encode()).hexdigest()
        length = max(20, unpacked // 3)
        refs.append(LayerRef(offset=at, length=length, unpacked=unpacked, digest=digest, name=name))
        at += length
    return Manifest(platform="linux-64", python="3.11.7", glibc=None, unpacked=1, files=1, layers=tuple(refs))


def arranged(layers: list[tuple[str, int]]) -> list[tuple[str, int]]:
    groups = arrange(layers)
    return layers if groups is None else [layers[number] for group in groups for number in group]


@given(layer_lists, st.booleans())
def test_parts_are_the_tarball_in_order(layers: list[tuple[str, int]], own: bool) -> None:
    layers = [*layers, ("interpreter2", WORTH), *([("runtime", 51200)] if own else [])]
    groups = arrange(layers)
    assert groups is not None
    assert sorted(number for group in groups for number in group) == list(range(len(layers)))
    again = arranged(layers)
    assert arranged(again) == again
    manifest = manifest_of(again)
    found = Parts.of(manifest)
    assert found is not None
    assert len(found.parts) <= MOST
    assert [part.offset for part in found.parts] == [
        sum(part.length for part in found.parts[:number]) for number in range(len(found.parts))
    ]
    assert found.size == manifest.size
    assert [name for part in found.parts for name in part.layers] == [name for name, _ in again]
    assert found.beyond(found.names()) == ()


def environment(**versions: str) -> list[tuple[str, int]]:
    """Layers like those of an environment of numpy and its friends."""
    given = {"numpy": "2.2.6", "kiwisolver": "1.4.8", "contourpy": "1.3.2", "joblib": "1.5.1", **versions}
    large = {"numpy": 64 * MB, "scipy": 72 * MB, "pandas": 54 * MB, "interpreter": 48 * MB}
    layers = [(f"{name}-{given.get(name, '1.0')}" if name in given else name, size) for name, size in large.items()]
    layers += [(f"{name}-{given[name]}", 3 * MB // 2) for name in ("kiwisolver", "contourpy", "joblib")]
    layers += [(f"small-{number}", (number + 1) * MB // 2) for number in range(8)]
    return [*layers, ("other", 2 * MB), ("runtime", 51200)]


def test_large_layers_are_alone_and_a_changed_pin_changes_one_bucket() -> None:
    before = Parts.of(manifest_of(arranged(environment()), "a"))
    after = Parts.of(manifest_of(arranged(environment(joblib="1.5.2")), "b"))
    assert before is not None
    assert after is not None
    assert [part.layers for part in before.parts[1:5]] == [("scipy",), ("numpy-2.2.6",), ("pandas",), ("interpreter",)]
    changed = after.beyond(before.names())
    assert len(changed) == 3
    assert changed[0] is after.parts[0]
    assert "joblib-1.5.2" in changed[1].layers
    assert all(size < ALONE for name, size in environment() if name in changed[1].layers)
    assert changed[2] is after.parts[-1]
    assert changed[2].layers == ("runtime",)


def test_another_version_of_a_large_package_changes_it_alone() -> None:
    before = Parts.of(manifest_of(arranged(environment()), "a"))
    after = Parts.of(manifest_of(arranged(environment(numpy="2.3.0")), "b"))
    assert before is not None
    assert after is not None
    assert [part.layers for part in after.beyond(before.names())] == [(), ("numpy-2.3.0",), ("runtime",)]


def test_a_small_tarball_is_one_piece() -> None:
    assert arrange([("numpy-2", WORTH - 512)]) is None
    assert Parts.of(manifest_of([("numpy-2", WORTH - 512)])) is None
    assert arrange([("numpy-2", WORTH)]) is not None


def test_a_tarball_in_another_order_is_one_piece() -> None:
    layers = arranged(environment())
    assert Parts.of(manifest_of([*layers[1:3], *layers[:1], *layers[3:]])) is None


def test_the_same_content_from_another_compressor_is_another_part() -> None:
    manifest = manifest_of(arranged(environment()))
    first, *rest = manifest.layers
    longer = replace(first, length=first.length + 1)
    moved = [replace(layer, offset=layer.offset + 1) for layer in rest]
    other = Manifest(platform="linux-64", python="3.11.7", glibc=None, unpacked=1, files=1, layers=(longer, *moved))
    one, two = Parts.of(manifest), Parts.of(other)
    assert one is not None
    assert two is not None
    assert manifest.identity == other.identity
    # wherever the layers begin, what they hold is the same; only the first part says how long they are
    assert [part.layers for part in two.beyond(one.names())] == [(), (first.name,)]


@pytest.mark.parametrize("count", [10, 11, 40])
def test_many_large_layers_share_parts_too(count: int) -> None:
    layers = [(f"package{number}-1", (5 + number) * MB) for number in range(count)]
    found = Parts.of(manifest_of(arranged([*layers, ("runtime", 51200)])))
    assert found is not None
    alone = [part for part in found.parts if len(part.layers) == 1 and part.layers != ("runtime",)]
    assert len(found.parts) <= MOST
    assert len(alone) >= 5
