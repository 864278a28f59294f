"""Pi by throwing darts: `concurrent.futures` on workers that have neither poncho_wq nor NumPy, nor any Python at all.

Run it where poncho_wq and numpy are installed: `python futures_map.py [DARTS_A_CALL]`.
"""

import sys
from concurrent.futures import as_completed

from poncho_wq.errors import EngineNotInstalled
from poncho_wq.futures import Executor


def hits(seed, darts):
    """How many of `darts` land in the quarter circle."""
    import numpy

    x, y = numpy.random.default_rng(seed).random((2, darts))
    return int((x * x + y * y < 1).sum())


def open_executor():
    """Two workers of Work Queue on this machine, or the embedded engine where there is no Work Queue."""
    try:
        return Executor("work_queue", workers=2, progress=sys.stderr.isatty())
    except EngineNotInstalled as missing:
        print(f"{missing}\nGoing on with the embedded engine.", file=sys.stderr)
        return Executor("local", workers=2)


def main():
    darts = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    calls = 40
    # The environment is worked out from `hits`, built once and unpacked by each worker once.
    with open_executor() as pool:
        # Ten calls in a task: what a task costs is then paid four times rather than forty.
        landed = sum(pool.map(hits, range(calls), [darts] * calls, chunksize=10))
        print(f"pi is about {4 * landed / (calls * darts):.2f}")
        futures = {pool.submit(hits, seed, 10): seed for seed in range(4)}
        done = sorted(futures[future] for future in as_completed(futures))
        print(f"and {len(done)} calls of their own: {done}")


if __name__ == "__main__":
    main()
