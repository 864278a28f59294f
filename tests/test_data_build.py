"""Data beside packages: any builder, one tarball, the path in the variable that the specification names."""

from __future__ import annotations

import subprocess
from pathlib import Path

from poncho_wq.build import builder_for
from poncho_wq.lock import Lock
from poncho_wq.pack import pack
from poncho_wq.packing.layers import LayerStore
from poncho_wq.spec import EnvSpec
from poncho_wq.wrapper import wrapper_path
from tests.data_server import faulty_server


def test_a_command_finds_its_data(tmp_path: Path) -> None:
    with faulty_server() as server:
        spec = EnvSpec.from_dict({"http": {"REFERENCE_DB": {"type": "file", "url": server.add("/x.dat", b"42\n")}}})
        builder = builder_for(spec, cache_root=tmp_path / "cache")
        lock = builder.lock(spec, lambda _: None)
    assert Lock.from_json(lock.to_json()) == lock
    assert [each.variable for each in lock.data] == ["REFERENCE_DB"]
    built = builder.build(spec, lock, tmp_path / "prefix", lambda _: None)
    packed = pack(built, spec=spec, lock=lock, store=LayerStore(tmp_path / "s"), output=tmp_path / "env.tar.gz")
    assert "data-REFERENCE_DB" in {layer.name for layer in packed.layers}
    argv = ["sh", str(wrapper_path()), "-e", str(packed.path), "--", "sh", "-c", 'cat "$REFERENCE_DB"']
    worker = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    said = subprocess.run(argv, env=worker, capture_output=True, text=True, check=True)
    assert said.stdout == "42\n"


def test_a_lock_without_data_is_written_as_before() -> None:
    lock = Lock(python="3.11.7", interpreter=None, platform="linux-64", packages=())
    assert '"data"' not in lock.to_json()
    assert Lock.from_json(lock.to_json()) == lock
