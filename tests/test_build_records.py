"""RECORD: which files a distribution has, however their names are written there."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from poncho_wq.build.records import Distribution

SITE = "lib/python3.11/site-packages"
# Names as installers write them, and as nobody should.
names = st.lists(st.sampled_from(["a", "..", ".", "", ".hidden", "b.py", "c.", "..."]), min_size=1, max_size=7).map(
    "/".join
)


def recorded(prefix: Path, *rows: str) -> Distribution:
    info = prefix / SITE / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    with (info / "RECORD").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([name, "sha256=x", "1"] for name in rows if name)
    return Distribution(info, prefix)


def names_in(distribution: Distribution) -> list[str]:
    with (distribution.info / "RECORD").open(newline="", encoding="utf-8") as stream:
        return [row[0] for row in csv.reader(stream)]


@given(st.lists(names, max_size=5))
def test_a_name_means_the_file_that_it_leads_to(rows: list[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        prefix = Path(work, "prefix")
        site = prefix / SITE
        installed = recorded(prefix, *rows)
        meant = {os.path.relpath(site / name, prefix) for name in rows if name}
        assert installed.among(meant) == meant
        # Written anew, each is still the same file.
        (installed.info / "uv_cache.json").write_text("{}")
        installed.remove(["uv_cache.json"])
        installed.changed(installed.info / "RECORD")
        installed.save()
        after = {os.path.relpath(site / name, prefix) for name in names_in(installed)}
        assert after == meant | {os.path.relpath(installed.info / "RECORD", prefix)}


def test_files_are_those_that_are_there_and_inside(tmp_path: Path) -> None:
    for name in ("bin/run", f"{SITE}/thing/a.py", f"{SITE}/thing/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path.parent / "outside").write_text("")
    (tmp_path / SITE / "thing/link").symlink_to("missing")
    rows = ("thing/a.py", "thing/.hidden", "thing/link", "thing/gone.py", "../../../bin/run", "../../../../outside")
    assert recorded(tmp_path, *rows).files == ["bin/run", *(f"{SITE}/thing/{n}" for n in (".hidden", "a.py", "link"))]
