"""``make bench``: every row, or those of the modules named on the command line (``make bench ARGS="wrapper"``)."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import benchmarks
from benchmarks.harness import Row, Unavailable

RESULTS = Path(__file__).parent / "results"


def modules() -> list[str]:
    """The benchmark modules, by the part of their name after ``bench_``."""
    found = [m.name for m in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name.removeprefix("bench_") for name in found if name.startswith("bench_"))


def show(row: Row) -> None:
    """One line of the table on stdout."""
    peer = f"{row.peer:12.4g} {row.peer_name}" if row.peer is not None else ""
    ratio = f"{row.ratio:8.3f}×" if row.ratio is not None else " " * 9
    print(
        f"{row.name:<46} {ratio} {row.ours:12.4g} {row.unit:<8} {peer:<40} {row.target} {row.note}".rstrip(), flush=True
    )


def main() -> int:
    """Exit status 0 when every row could be measured, 1 otherwise (the reason is printed)."""
    ap = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    ap.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(modules())} (default: all)")
    names = ap.parse_args().names or modules()
    print(f"{platform.python_version()} on {platform.machine()}; ratio = ours / peer, measured in turn in this run")
    load = os.getloadavg()
    rows: list[Row] = []
    failed = 0
    for name in names:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        try:
            for row in module.rows():
                rows.append(row)
                show(row)
        except Unavailable as reason:
            failed += 1
            print(f"{name}: not measured: {reason}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    record = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": {"before": load, "after": os.getloadavg()},
        "rows": [asdict(row) for row in rows],
    }
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {file}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
