"""One job: reads ./input, writes ./distribute_save.  Its argument is the number of cores that it may use."""

import json
import pathlib
import sys

sys.path.insert(0, "solver")
import heat

parameters = json.loads(pathlib.Path("input/parameters.json").read_text())
print("cores:", sys.argv[1], "parameters:", parameters)
rod = heat.solve(**parameters)
result = {"highest": round(max(rod), 3), "mean": round(sum(rod) / len(rod), 3)}
pathlib.Path("distribute_save/result.json").write_text(json.dumps(result))
