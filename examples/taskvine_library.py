"""A TaskVine library: a model is fitted once on each worker, and asked many times.

Run it where poncho_wq, numpy and TaskVine are installed.  The workers need vine_worker, and no Python.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

from poncho_wq.errors import EngineNotInstalled
from poncho_wq.taskvine import FunctionCall, Manager, PonchoTask, library_from_functions

COEFFICIENTS = None


def fit():
    """Called once on each worker before its first call: a cubic through noisy samples of a known one."""
    global COEFFICIENTS
    x = numpy.linspace(-1, 1, 50_000)
    y = 2 * x**3 - x + 0.5 + numpy.random.default_rng(1).normal(0, 0.1, x.size)
    COEFFICIENTS = numpy.polyfit(x, y, 3)


def predict(x):
    return float(numpy.polyval(COEFFICIENTS, x))


def versions():
    import platform

    return platform.python_version(), numpy.__version__


def run(m, calls):
    # The environment, with numpy in it, is worked out from the functions.
    m.install_library(library_from_functions(m, "cubic", predict, init=fit, cores=1))
    for i in range(calls):
        m.submit(FunctionCall("cubic", predict, i / calls))
    largest = 0.0
    while not m.empty():
        t = m.wait(5)
        if t is not None:
            if not t.returned:
                raise t.output
            largest = max(largest, t.output)
    print(f"{calls} calls; the largest prediction is {largest:.2f}")

    # A task of the same environment finds it unpacked.
    t = PonchoTask(versions)
    m.submit(t)
    while not m.empty():
        m.wait(5)
    print("a worker's Python {} with numpy {}".format(*t.output))


def main():
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            m = stack.enter_context(Manager(port=0, run_info_path=str(home / "info")))
        except EngineNotInstalled as missing:
            sys.exit(str(missing))
        # Workers of a cluster are started with vine_factory; this one runs here, and sees no Python but the system's.
        worker = subprocess.Popen(
            [shutil.which("vine_worker"), "-s", home / "worker", "--cores", "2", "-t", "60", "127.0.0.1", str(m.port)],
            env={"PATH": "/usr/bin:/bin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(worker.wait)
        stack.callback(worker.terminate)
        run(m, calls)


if __name__ == "__main__":
    main()
