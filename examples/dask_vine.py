"""A Dask array on TaskVine, twice, in one environment that is declared once.

Run it where poncho_wq, dask, numpy and TaskVine (conda install -c conda-forge ndcctools) are installed.
"""

import tempfile

import dask
import dask.array as da
import numpy

from poncho_wq.dask import DaskVine
from poncho_wq.engines.workers import TASKVINE, LocalWorkers

ENVIRONMENT = {"pip": [f"numpy=={numpy.__version__}"]}


def main():
    with tempfile.TemporaryDirectory() as logs:
        manager = DaskVine(port=0, run_info_path=logs)
        workers = LocalWorkers(manager.port, program=TASKVINE, environ={"PATH": "/usr/bin:/bin"})
        with workers, dask.config.set(scheduler=manager.get):
            x = da.arange(1000, chunks=250)
            options = {"environment": ENVIRONMENT, "progress_disable": True}
            print("sum:", int(x.sum().compute(**options)))
            print("mean of squares:", float((x * x).mean().compute(**options)))


if __name__ == "__main__":
    main()
