"""A tarball of the user's is looked at before TaskVine gets it; without TaskVine."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

import poncho_wq
from poncho_wq.engines.tarballs import validated
from poncho_wq.errors import CorruptTarball, EngineError

WHOLE = {
    "bin/run_in_env": "#!/bin/sh\n", "bin/activate": "\n", "bin/python3": ("python3.9",), "bin/python3.9": "x",
    "lib/python3.9/os.py": "",
}  # fmt: skip


def make(path: Path, files: dict[str, str | tuple[str]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = tarfile.SYMTYPE, content[0]
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_minor_version_is_found(tmp_path: Path, mode: str, prefix: str) -> None:
    path = make(tmp_path / "t.tar", {prefix + name: content for name, content in WHOLE.items()}, mode)
    assert validated(poncho_wq.environment(path)).python == "3.9"


def test_by_the_library_where_the_program_does_not_tell(tmp_path: Path) -> None:
    files = {**WHOLE, "bin/python3": "the interpreter itself"}
    del files["bin/python3.9"]
    assert validated(poncho_wq.environment(make(tmp_path / "t.tar", files))).python == "3.9"


def test_links_in_a_circle_tell_nothing(tmp_path: Path) -> None:
    files: dict[str, str | tuple[str]] = {**WHOLE, "bin/python3": ("python",), "bin/python": ("python3",)}
    del files["lib/python3.9/os.py"]
    assert validated(poncho_wq.environment(make(tmp_path / "t.tar", files))).python is None


@pytest.mark.parametrize("missing", ["bin/run_in_env", "bin/activate", "bin/python3"])
def test_what_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    files = {name: content for name, content in WHOLE.items() if name != missing}
    with pytest.raises(EngineError, match=f"lacks {missing}"):
        validated(poncho_wq.environment(make(tmp_path / "t.tar.gz", files)))


def test_a_tarball_cut_short(tmp_path: Path) -> None:
    path = make(tmp_path / "t.tar.gz", {**WHOLE, "lib/long": "x" * 100_000})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptTarball):
        validated(poncho_wq.environment(path))


def test_a_tarball_of_ours_by_its_path(shared_cache: Path, tmp_path: Path) -> None:
    """Of many gzip members, of which a stream of tarfile's reads the first."""
    copy = tmp_path / "env.tar.gz"
    shutil.copyfile(poncho_wq.environment({"env": {"WORD": "one"}}, cache_dir=shared_cache).tarball, copy)
    ours = poncho_wq.environment(copy)
    assert ours.spec_hash is None
    assert validated(ours) is ours
