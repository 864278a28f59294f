"""Reading and stripping ELF files, held against another reader and against the loader itself."""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from hypothesis import given, settings
from hypothesis import strategies as st

from poncho_wq.build import elf
from poncho_wq.build.interpreter import Interpreter
from poncho_wq.build.libraries import starts_at_origin, stays_behind
from poncho_wq.errors import BuildError


def _binaries() -> list[Path]:
    """Extension modules of this interpreter and of installed packages, and the interpreter."""
    python = Interpreter.running()
    found = [python.executable, *sorted((python.platstdlib / "lib-dynload").glob("*.so"))]
    found += sorted(Path(sysconfig.get_path("platlib")).rglob("*.so"))[:40]
    assert len(found) > 5
    return found


def _by_elftools(path: Path) -> elf.Elf:
    needed, rpath, runpath, loader, versions = [], "", "", None, []
    with path.open("rb") as file:
        binary = ELFFile(file)
        for segment in binary.iter_segments():
            if segment["p_type"] == "PT_INTERP":
                loader = segment.get_interp_name()
            if isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    needed += [tag.needed] if tag.entry.d_tag == "DT_NEEDED" else []
                    rpath = tag.rpath if tag.entry.d_tag == "DT_RPATH" else rpath
                    runpath = tag.runpath if tag.entry.d_tag == "DT_RUNPATH" else runpath
        for section in binary.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                versions += [version for _file, each in section.iter_versions() for version in each]
        machine = {"EM_X86_64": 62, "EM_AARCH64": 183}[binary["e_machine"]]
    strong = [elf.parse_glibc(version.name) for version in versions if not version.entry.vna_flags & 2]
    strong += [(2, 36) for version in versions if version.name == "GLIBC_ABI_DT_RELR"]
    return elf.Elf(
        needed=tuple(needed),
        rpath=tuple(filter(None, rpath.split(":"))),
        runpath=tuple(filter(None, runpath.split(":"))),
        loader=loader,
        glibc=max((each for each in strong if each), default=None),
        machine=machine,
    )


def test_reads_what_another_reader_reads() -> None:
    for path in _binaries():
        assert elf.read(path) == _by_elftools(path), path


def test_a_stripped_binary_says_the_same_and_has_valid_sections(tmp_path: Path) -> None:
    for path in _binaries():
        copy = tmp_path / "copy"
        copy.write_bytes(elf.strip(path.read_bytes()))
        assert elf.read(copy) == _by_elftools(copy) == elf.read(path)
        with copy.open("rb") as file:
            names = [section.name for section in ELFFile(file).iter_sections()]
        assert not any(name.startswith(".debug") for name in names)
        assert ".dynsym" in names


def test_a_stripped_library_is_smaller_and_loads(tmp_path: Path) -> None:
    source = max((Path(sysconfig.get_path("platlib")).rglob("*.so")), key=lambda path: path.stat().st_size)
    debug = [path for path in _binaries() if len(elf.strip(path.read_bytes())) < path.stat().st_size]
    for path in [source, *debug[:5]]:
        if elf.read(path).loader is None:
            copy = tmp_path / path.name
            copy.write_bytes(elf.strip(path.read_bytes()))
            copy.chmod(0o755)
            assert copy.stat().st_size <= path.stat().st_size
            if not any(map(starts_at_origin, (*elf.read(path).rpath, *elf.read(path).runpath))):
                ctypes.CDLL(str(copy), mode=ctypes.DEFAULT_MODE)


def test_stripping_twice_changes_nothing() -> None:
    once = elf.strip(Path(sys.executable).resolve().read_bytes())
    assert elf.strip(once) == once


@settings(deadline=None)
@given(st.data())
def test_damaged_files_are_errors_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(Interpreter.running().executable.read_bytes())[: 1 << 16]
    cut = data.draw(st.integers(0, len(whole)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=20)):
        whole[at % len(whole)] = value
    path = tmp_path_factory.mktemp("damaged") / "binary"
    path.write_bytes(whole[:cut])
    try:
        elf.read(path)
    except BuildError:
        pass
    assert all(isinstance(facts, elf.Elf) for _path, facts in elf.scan(path.parent))


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_64_bit_elf_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert not elf.is_elf(path)
    with pytest.raises(BuildError, match="thing"):
        elf.read(path)


@pytest.mark.parametrize(
    "soname",
    [
        "libc.so.6",
        "libm.so.6",
        "ld-linux-x86-64.so.2",
        "libpthread.so.0",
        "libnss_files.so.2",
        "libnsl.so.1",
        "libcuda.so.1",
        "libnvidia-ml.so.1",
        "libmpi.so.40",
        "libmpi_cxx.so.40",
        "libmpicxx.so.12",
        "libibverbs.so.1",
    ],
)
def test_libraries_of_the_node_stay_there(soname: str) -> None:
    assert stays_behind(soname)


@pytest.mark.parametrize(
    "soname",
    [
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "libcrypt.so.1",
        "libnsl.so.2",
        "libcudart.so.12",
        "libmpfr.so.6",
        "libmpir.so.23",
        "libmpdec.so.3",
        "libz.so.1",
        "libcrypto.so.3",
        "libcublas.so.12",
        "libmagic.so.1",
    ],
)
def test_other_libraries_travel(soname: str) -> None:
    assert not stays_behind(soname)


@pytest.mark.parametrize(
    ("symbol", "version"),
    [
        ("GLIBC_2.17", (2, 17)),
        ("GLIBC_2.2.5", (2, 2, 5)),
        ("GLIBC_PRIVATE", None),
        ("GLIBCXX_3.4", None),
        ("GLIBC_", None),
    ],
)
def test_glibc_versions(symbol: str, version: tuple[int, ...] | None) -> None:
    assert elf.parse_glibc(symbol) == version


def test_version_numbers_compare_as_numbers() -> None:
    parsed = [elf.parse_glibc(f"GLIBC_{version}") or () for version in ("2.4", "2.17", "2.2.5")]
    assert max(parsed) == (2, 17)
