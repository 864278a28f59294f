"""Runs once, before all jobs: what it leaves in this directory, every job finds in a copy of its own."""

import json
import pathlib

conductivity = json.loads(pathlib.Path("input/material.json").read_text())["conductivity"]

solver = pathlib.Path("solver")
solver.mkdir()
(solver / "heat.py").write_text(f"""\
CONDUCTIVITY = {conductivity}


def solve(cells, step, time):
    \"\"\"A rod that is hot in the middle, after `time` seconds: explicit Euler, `step` seconds at a time.\"\"\"
    rod = [100.0 if cells // 3 <= n < 2 * cells // 3 else 0.0 for n in range(cells)]
    ratio = CONDUCTIVITY * step * cells**2
    if ratio > 0.5:
        raise ValueError(f"a step of {{step}} s is too long for {{cells}} cells: at most {{step * 0.5 / ratio:g}} s")
    for _ in range(round(time / step)):
        rod = [
            rod[n] + ratio * (rod[max(n - 1, 0)] - 2 * rod[n] + rod[min(n + 1, cells - 1)]) for n in range(cells)
        ]
    return rod
""")
print("the solver is built, conductivity", conductivity)
