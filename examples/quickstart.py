"""The ten-line manager, on real input: which weather stations warm fastest?

Run it where poncho_wq and pandas are installed.  The workers need neither, nor any Python at all.
"""

import contextlib
import csv
import random
import tempfile
from pathlib import Path

from poncho_wq import LocalQueue, PonchoTask, WorkQueue
from poncho_wq.engines.workers import LocalWorkers
from poncho_wq.errors import EngineNotInstalled


def warming(name, text):
    """Degrees a decade at one station: a straight line through its yearly means."""
    import io

    import numpy
    import pandas

    table = pandas.read_csv(io.StringIO(text), parse_dates=["date"])
    yearly = table.groupby(table["date"].dt.year)["celsius"].mean()
    slope, _ = numpy.polyfit(yearly.index, yearly.values, 1)
    return name, round(10 * slope, 3)


def make_station(path, *, trend, seed):
    """A station's daily temperatures, 1990 to 2019, with a known trend in degrees a decade."""
    from datetime import date, timedelta

    noise = random.Random(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["date", "celsius"])
        day = date(1990, 1, 1)
        while day.year < 2020:
            season = 10 - 8 * abs(day.timetuple().tm_yday - 196) / 183
            rows.writerow([day, round(season + trend * (day.year - 1990) / 10 + noise.gauss(0, 2), 2)])
            day += timedelta(days=3)


def run(q, files):
    for path in files:
        q.submit(PonchoTask(warming, path.stem, path.read_text()))
    while not q.empty():
        t = q.wait(5)
        if t:
            if isinstance(t.output, BaseException):
                raise t.output
            name, slope = t.output
            print(f"{name:<10} {slope:+.3f} °C a decade")


def main():
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = [data / f"station{i}.csv" for i in range(6)]
        for i, path in enumerate(files):
            make_station(path, trend=0.1 * i, seed=i)
        try:
            q = WorkQueue(0)
            # A cluster's workers are started with work_queue_factory; these two run here, and know no Python of ours.
            stack.enter_context(LocalWorkers(q.port, count=2, environ={"PATH": "/usr/bin:/bin"}))
        except EngineNotInstalled as missing:
            print(f"{missing}\nGoing on with the embedded engine.")
            q = stack.enter_context(LocalQueue(cores=2))
        run(q, files)


if __name__ == "__main__":
    main()
