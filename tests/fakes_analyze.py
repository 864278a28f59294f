"""Distributions that only look installed: a directory as pip would leave it, without pip, index or network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def install(
    site: Path,
    name: str,
    version: str = "1.0",
    files: Iterable[str] | Mapping[str, str] = (),
    *,
    direct_url: Mapping[str, Any] | None = None,
    record: bool = True,
    top_level: str | None = None,
    on_disk: bool = True,
) -> Path:
    """Put a distribution into `site`, its files too unless they are not to be there; returns its metadata."""
    site.mkdir(parents=True, exist_ok=True)
    contents = dict(files) if isinstance(files, Mapping) else dict.fromkeys(files, "")
    for path, text in contents.items() if on_disk else ():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (metadata / "METADATA").write_text(f"{headers}\nName: not this one\n")
    if record:
        own = [f"{metadata.name}/METADATA", f"{metadata.name}/RECORD", "../../../bin/tool"]
        (metadata / "RECORD").write_text("".join(f"{_quoted(path)},sha256=x,1\n" for path in [*contents, *own]))
    if top_level is not None:
        (metadata / "top_level.txt").write_text(top_level + "\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url))
    return metadata


def _quoted(path: str) -> str:
    return f'"{path}"' if "," in path else path


def names(requirements: Iterable[str]) -> set[str]:
    """The names in a list of requirements."""
    return {Requirement(each).name for each in requirements}
