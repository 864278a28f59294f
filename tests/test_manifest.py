"""The manifest: what is written reads back, anything else is refused by its line, and lengths are exact."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import subprocess
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poncho_wq.build import Relocation
from poncho_wq.errors import CorruptTarball
from poncho_wq.manifest import FORMAT_VERSION, LayerRef, Manifest, end_member, identity_of, parse, read_manifest


def layers(*sizes: tuple[int, int], name: str = "layer") -> tuple[LayerRef, ...]:
    found = []
    at = 0
    for number, (length, blocks) in enumerate(sizes):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        found.append(LayerRef(offset=at, length=length, unpacked=512 * blocks, digest=digest, name=f"{name}-{number}"))
        at += length
    return tuple(found)


SIMPLE = Manifest(
    platform="linux-64", python="3.11.7", glibc="2.34", unpacked=30, files=3, layers=layers((100, 1), (2000, 77))
)
RELOCATED = Manifest(
    platform="linux-aarch64",
    python=None,
    glibc=None,
    unpacked=0,
    files=0,
    layers=layers((25, 2)),
    placeholder="/opt/a place hold",
    relocations=(
        Relocation(path="bin/a b", kind="text", places=((2, 17), (300, 17))),
        Relocation(path="lib/l.so", kind="binary", places=((5, 20), (77, 17))),
    ),
)

words = st.from_regex(r"[A-Za-z0-9._+-]{1,40}", fullmatch=True)
numbers = st.integers(min_value=0, max_value=10**15)
# Any text that fits in a line; surrogates U+DC80… are bytes of names that are not UTF-8.
lines = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1)
paths = lines.filter(lambda text: not {"", ".", ".."} & set(text.split("/")))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    sizes = draw(st.lists(st.tuples(st.integers(20, 10**12), st.integers(1, 10**9)), max_size=6))
    placeholder = draw(lines)
    length = len(placeholder.encode())
    offsets = st.lists(numbers, min_size=1, max_size=4)
    text = st.builds(
        lambda path, at: Relocation(path=path, kind="text", places=tuple((o, length) for o in at)), paths, offsets
    )
    binary = st.builds(
        lambda path, at: Relocation(path=path, kind="binary", places=tuple((o, length + o % 9) for o in at)),
        paths,
        offsets,
    )
    relocations = tuple(draw(st.lists(text | binary, max_size=4)))
    return Manifest(
        platform=draw(words),
        python=draw(st.none() | words),
        glibc=draw(st.none() | words),
        unpacked=draw(numbers),
        files=draw(numbers),
        layers=layers(*sizes, name=draw(words)),
        placeholder=placeholder if relocations else None,
        relocations=relocations,
    )


@given(manifests())
def test_what_is_written_reads_back(manifest: Manifest) -> None:
    text = manifest.render()
    assert parse(text) == manifest
    assert parse(text).render() == text
    assert pickle.loads(pickle.dumps(manifest)) == manifest


@given(manifests())
def test_the_first_member_states_its_own_length(manifest: Manifest) -> None:
    member = manifest.first_member()
    assert len(member) == manifest.member
    assert manifest.size == manifest.member + sum(layer.length for layer in manifest.layers) + len(end_member())
    fragment = gzip.decompress(member)
    assert len(fragment) % 512 == 0
    with tarfile.open(fileobj=BytesIO(fragment + gzip.decompress(end_member()))) as tar:
        (entry,) = tar.getmembers()
        content = tar.extractfile(entry)
        assert content is not None
        assert content.read() == manifest.render().encode()
    assert (entry.name, entry.mode) == ("poncho/manifest", 0o644)


@pytest.mark.parametrize("extra", [*range(0, 1100, 13), *range(64_400, 66_200, 97), 200_000])
def test_lengths_agree_around_every_border(extra: int) -> None:
    # 512: a tar block; 65535: a stored deflate block; and where the length itself gets a digit more.
    relocation = Relocation(path="x" * (extra + 1), kind="text", places=((0, 1),))
    manifest = replace(SIMPLE, placeholder="/", relocations=(relocation,))
    assert len(manifest.first_member()) == manifest.member
    assert parse(manifest.render()) == manifest


@given(st.text() | st.text("poncho-manifest 1\nmembersizlyforundk0:,/"))
def test_any_text_is_a_manifest_or_a_corrupt_tarball(text: str) -> None:
    with pytest.raises(CorruptTarball):
        parse(text)


@given(st.sampled_from([SIMPLE, RELOCATED]), st.data())
def test_one_changed_character_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    text = manifest.render()
    # What nothing else in the manifest vouches for: plain facts. Their form is checked all the same.
    plain = r"(?m)^(platform|python|glibc|unpacked|files|placeholder|relocate) .*\n"
    free = [m.span() for m in re.finditer(plain, text)]
    names = [m.span(1) for m in re.finditer(r"(?m)^layer \d+ \d+ (\d+ )", text)]
    names += [m.span(1) for m in re.finditer(r"(?m)^layer .* (\S+)\n", text)]
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(exclude_categories=["Cs"]))
    changed = text[:at] + other + text[at + 1 :]
    if changed == text:
        return
    if any(start <= at < end for start, end in free + names):
        try:
            assert parse(changed).render() == changed
        except CorruptTarball:
            pass
    else:
        with pytest.raises(CorruptTarball):
            parse(changed)


@pytest.mark.parametrize("count", range(len(SIMPLE.render().splitlines())))
def test_a_missing_line_is_named(count: int) -> None:
    lines = SIMPLE.render().splitlines(keepends=True)
    optional = lines[count].startswith(("python ", "glibc "))
    text = "".join(lines[:count] + lines[count + 1 :])
    if optional:
        assert parse(text).render() == text
    else:
        with pytest.raises(CorruptTarball, match=r"^env\.tar\.gz: poncho/manifest: line \d+: "):
            parse(text, source="env.tar.gz")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("poncho-manifest 1", "poncho-manifest 0", "line 1: expected format 1, got '0'"),
        ("poncho-manifest 1", "hello 1", "line 1: expected \"poncho-manifest …\", got 'hello 1'"),
        ("size ", "size 0", "line 3: expected size: a number, got '0"),
        ("size ", "size +", "line 3: expected size: a number, got '+"),
        ("unpacked 30", "unpacked ３0", "expected unpacked: a number"),
        ("files 3", "files 1e9", "expected files: a number, got '1e9'"),
        ("platform linux-64", "platform linux 64", "expected platform: one word, got 'linux 64'"),
        ("layers 2", "layers 3", "expected \"layer …\", got 'end'"),
        ("layers 2", "layers 1", 'expected "end" as the last line'),
        ("layer 100 ", "layer 99 ", "layer layer-1 must start at 100: 99"),
        ("layer 0 100 512", "layer 0 100 513", "whole blocks: 513"),
        ("layer 0 100 512", "layer 0 19 512", "cannot be so short: 19"),
        ("layer 0 100 512 ", "layer 0 100  512 ", "expected layer OFFSET LENGTH UNPACKED DIGEST NAME"),
        ("end\n", "end", 'expected "end" as the last line'),
        ("end\n", "end\nmore\n", 'expected "end" as the last line'),
        ("end\n", "placeholder /x\nend\n", "placeholder: '/x'"),
        ("end\n", "relocate text 1 /x\nend\n", "placeholder: None"),
        ("end\n", "placeholder /x\nrelocate text 1 ../x\nend\n", "path to relocate: '../x'"),
        ("end\n", "placeholder /x\nrelocate text 1:2 x\nend\n", "expected relocate text OFF"),
        ("end\n", "placeholder /x\nrelocate binary 1:1 x\nend\n", "length in x: 1"),
        ("end\n", "placeholder /x\nrelocate text 01 x\nend\n", "expected offsets, got '01'"),
        ("end\n", "placeholder /x\nrelocate text  x\nend\n", "expected offsets, got ''"),
        ("\n", "\r\n", "line 1: expected format 1"),
    ],
)
def test_errors_name_the_line_and_what_is_wrong(old: str, new: str, message: str) -> None:
    with pytest.raises(CorruptTarball, match=re.escape(message)):
        parse(SIMPLE.render().replace(old, new, 1))


def test_sums_that_do_not_agree_are_named() -> None:
    text = SIMPLE.render()
    with pytest.raises(CorruptTarball, match=f"identity is {'a' * 64}, and the layers give {SIMPLE.identity}"):
        parse(text.replace(SIMPLE.identity, "a" * 64))
    with pytest.raises(CorruptTarball, match=f"size is 5, and the layers give {SIMPLE.size}"):
        parse(text.replace(f"size {SIMPLE.size}", "size 5"))


def test_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(CorruptTarball) as caught:
        parse(SIMPLE.render().replace("manifest 1", f"manifest {FORMAT_VERSION + 1}"), source="x.tar.gz")
    assert "format 2" in str(caught.value)
    assert "newer poncho_wq" in str(caught.value)
    assert caught.value.tarball == "x.tar.gz"


@pytest.mark.parametrize(
    "wrong",
    [
        {"platform": "a b"},
        {"platform": ""},
        {"python": "3.11\n"},
        {"glibc": ""},
        {"unpacked": -1},
        {"layers": layers((20, 0))},
        {"placeholder": "/x"},
        {"relocations": (Relocation(path="x", kind="text", places=((1, 2),)),)},
        {"placeholder": "/x\n", "relocations": (Relocation(path="x", kind="text", places=((1, 3),)),)},
        {"placeholder": "/x", "relocations": (Relocation(path="a\nb", kind="text", places=((1, 2),)),)},
        {"placeholder": "/x", "relocations": (Relocation(path="/a", kind="text", places=((1, 2),)),)},
        {"placeholder": "/x", "relocations": (Relocation(path="a", kind="text", places=((1, 3),)),)},
        {"placeholder": "/x", "relocations": (Relocation(path="a", kind="text", places=()),)},
    ],
)
def test_what_would_not_read_back_is_never_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".*"):
        replace(SIMPLE, **wrong)


def test_identity_is_over_the_digests_in_order() -> None:
    digests = [layer.digest for layer in SIMPLE.layers]
    assert SIMPLE.identity == hashlib.sha256(f"{digests[0]}\n{digests[1]}\n".encode()).hexdigest()
    assert identity_of(reversed(digests)) != SIMPLE.identity


# Files


def tarball(path: Path, manifest: Manifest = SIMPLE) -> Path:
    body = b"".join(b"?" * layer.length for layer in manifest.layers)
    path.write_bytes(manifest.first_member() + body + end_member())
    return path


def test_reads_the_manifest_of_a_file(tmp_path: Path) -> None:
    big = replace(
        SIMPLE,
        placeholder="/x",
        relocations=tuple(Relocation(path=f"f{n}", kind="text", places=((n, 2),)) for n in range(9000)),
    )
    for manifest in (SIMPLE, RELOCATED, big):
        assert read_manifest(tarball(tmp_path / "x", manifest)) == manifest


@pytest.mark.parametrize("cut", [25, 100, SIMPLE.member - 1, SIMPLE.member, SIMPLE.member + 100, SIMPLE.size - 1])
def test_a_file_cut_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    whole = tarball(tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:cut])
    if cut == 25:  # not even the name of the manifest: it could be anybody's
        assert read_manifest(tmp_path / "cut") is None
    else:
        with pytest.raises(CorruptTarball, match=r"cut short|bytes long, and its manifest says") as caught:
            read_manifest(tmp_path / "cut")
        assert caught.value.tarball == str(tmp_path / "cut")


def test_a_longer_file_is_refused_unless_not_asked(tmp_path: Path) -> None:
    whole = tarball(tmp_path / "whole").read_bytes()
    (tmp_path / "longer").write_bytes(whole + b"\0")
    with pytest.raises(CorruptTarball, match=f"is {SIMPLE.size + 1} bytes long, and its manifest says {SIMPLE.size}"):
        read_manifest(tmp_path / "longer")
    assert read_manifest(tmp_path / "longer", check_size=False) == SIMPLE


@given(st.integers(0, SIMPLE.member - 1), st.integers(1, 255))
@example(at=10, flip=2)  # the type of the deflate block: not even a beginning can be unpacked
def test_one_changed_byte_of_the_first_member_never_passes(tmp_path_factory: Any, at: int, flip: int) -> None:
    member = bytearray(SIMPLE.first_member())
    member[at] ^= flip
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(bytes(member) + b"?" * 2100 + end_member())
    try:
        assert read_manifest(path) is None
    except CorruptTarball:
        pass


def test_other_peoples_tarballs_have_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for mode in ("w", "w:gz", "w:xz"):
        with tarfile.open(tmp_path / "foreign", mode) as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "file", "poncho/manifest")
        assert read_manifest(tmp_path / "foreign") is None
    for content in (b"", b"x" * 9, b"\x1f\x8b"):
        (tmp_path / "foreign").write_bytes(content)
        assert read_manifest(tmp_path / "foreign") is None
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "missing")


def test_the_first_member_can_be_read_by_the_wrappers_means(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a b", RELOCATED)
    script = 'head -c "$2" "$1" | gzip -dc | tar -xO -f - poncho/manifest'
    command = ["sh", "-c", script, "sh", path, str(RELOCATED.member)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    assert shown.stdout == RELOCATED.render()


# Frozen: what the text and the bytes of version 1 look like. A change here is a new format version.


def test_golden_text_and_bytes() -> None:
    golden = Path(__file__).parent / "golden" / "tarball"
    assert RELOCATED.render() == (golden / "manifest.txt").read_text(encoding="utf-8")
    assert RELOCATED.first_member() == (golden / "first-member.gz").read_bytes()
    assert end_member() == (golden / "end-member.gz").read_bytes()


def test_a_manifest_that_would_unpack_to_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    """After an opening like ours: a stored block with the name, then blocks that are compressed, 64 MB in 64 kB."""
    import zlib

    name = b"poncho/manifest\0"
    stored = b"\0" + len(name).to_bytes(2, "little") + (len(name) ^ 0xFFFF).to_bytes(2, "little") + name
    packer = zlib.compressobj(9, wbits=-15)
    body = packer.compress(bytes(64 << 20)) + packer.flush()
    bomb = tmp_path / "env.tar.gz"
    bomb.write_bytes(end_member()[:10] + stored + body + bytes(8))  # a gzip header is ten bytes
    with pytest.raises(CorruptTarball, match="compressed"):
        read_manifest(bomb)
