"""The rates of ``bench_tasks`` as a picture for the documents: ``python -m benchmarks.plot RESULTS.json OUT.svg``.

Plain SVG, so that nothing need be installed for it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.bench_tasks import CORES

WIDTH, ROW, LEFT, RIGHT, TOP = 760, 26, 210, 120, 44


def picture(record: dict[str, object]) -> str:
    """Bars, one a kind of task, as multiples of upstream's; the axis is logarithmic."""
    rows = record["rows"]
    assert isinstance(rows, list)
    bars: dict[str, float] = {}
    for row in rows:
        if row["unit"] == "tasks/s" and row["peer_name"].startswith("PythonTask"):
            bars["upstream, no-op"] = 1.0
            kind = row["name"].rpartition(", ")[0]
            if not kind.endswith(CORES):
                bars[kind] = row["ratio"]
    for row in rows:
        # What the queue itself can do: measured against a warm task, which was measured against upstream's.
        if row["peer_name"] == "true" and row["name"].endswith(", 16 queued"):
            bars["plain true"] = bars["warm no-op"] / row["ratio"]
    if not bars:
        raise SystemExit("there are no rates of function tasks in these results: run `python -m benchmarks tasks`")
    top = max(bars.values())
    scale = (WIDTH - LEFT - RIGHT) / math.log(top / 0.5)
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{TOP + ROW * len(bars) + 12}" '
            'font-family="sans-serif" font-size="13">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="12" y="24" font-size="15">Tasks a second, as multiples of upstream\'s PythonTask; 16 queued, '
            f"{escape(str(record['machine']))}</text>"
        ),
    ]
    for number, (name, ratio) in enumerate(sorted(bars.items(), key=lambda bar: bar[1])):
        y = TOP + ROW * number
        length = scale * math.log(max(ratio, 0.51) / 0.5)
        colour = "#999" if name in ("upstream, no-op", "plain true") else "#d97706" if "warm" in name else "#2563eb"
        out.append(f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 16}">{ratio:.3g}×</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    results, target = sys.argv[1:]
    Path(target).write_text(picture(json.loads(Path(results).read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
