"""Dask's collections and delayed calls on a real TaskVine, inside one environment for all computations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.taskvine.conftest import Cluster

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install dask")


@pytest.fixture
def dask_cluster(vine: Any, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from poncho_wq.dask import DaskVine

    monkeypatch.setenv("PONCHO_CACHE_DIR", str(shared_cache))
    trap = tmp_path / "trap"
    trap.mkdir()
    manager = DaskVine(port=0, run_info_path=str(tmp_path / "info"))
    made = Cluster(manager, tmp_path, trap)
    made.start_worker()
    try:
        yield made
    finally:
        made.stop()


def test_delayed_calls_run_in_an_environment_that_is_declared_once(dask_cluster: Cluster) -> None:
    def where(*before: Any) -> tuple[str, str]:
        import os
        import sys

        return sys.prefix, os.environ["WORD"]

    get = dask_cluster.manager.get
    found = []
    for _ in range(2):
        first = [dask.delayed(where, pure=False)() for _ in range(3)]
        last = dask.delayed(where)(*first)
        found.append(last.compute(scheduler=get, environment={"env": {"WORD": "dask"}}, progress_disable=True))
    assert {word for _, word in found} == {"dask"}
    assert not any(prefix.startswith((sys.prefix, sys.base_prefix)) for prefix, _ in found)
    assert dask_cluster.unpacked() == [1]


def test_a_graph_as_of_old_and_several_keys(dask_cluster: Cluster) -> None:
    graph = {"x": 1, "y": (abs, -2), "z": (sum, ["x", "y"])}
    get = dask_cluster.manager.get
    environment = {"env": {"WORD": "dask"}}
    assert list(get(graph, ["z"], environment=environment, progress_disable=True)) == [3]
    assert list(get(graph, ["y", "z"], environment=environment, progress_disable=True)) == [2, 3]


def test_arrays(dask_cluster: Cluster) -> None:
    pytest.importorskip("numpy", reason="NumPy is not installed")
    import dask.array as da

    x = da.arange(100, chunks=25)
    total = (
        (x * 2)
        .sum()
        .compute(scheduler=dask_cluster.manager.get, environment={"pip": [f"numpy=={_numpy()}"]}, progress_disable=True)
    )
    assert int(total) == 9900


def _numpy() -> str:
    from importlib.metadata import version

    return version("numpy")


def test_an_old_dask_is_refused_with_the_versions_that_work(tmp_path: Path) -> None:
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "__init__.py").touch()
    (tmp_path / "dask-2023.1.0.dist-info").mkdir()
    (tmp_path / "dask-2023.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dask\nVersion: 2023.1.0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import poncho_wq.dask"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Dask 2023.1.0 is older" in done.stderr
    assert "pip install 'dask>=2024.12.0'" in done.stderr
