"""A Parsl program whose apps run in environments made for them; the one line that is changed is the executor.

Run it where poncho_wq, parsl and numpy are installed.  The worker, which Parsl starts here, could be anywhere.
"""

import os
import tempfile

import parsl
from parsl import File, bash_app, join_app, python_app
from parsl.config import Config

from poncho_wq.parsl import PonchoWorkQueueExecutor


@python_app
def mean(numbers):
    import numpy

    return float(numpy.mean(numbers))


@bash_app
def count_words(inputs=(), outputs=()):
    return f"wc -w < {inputs[0]} > {outputs[0]}"


@join_app
def means(rows):
    return [mean(row) for row in rows]


def main():
    # Was: WorkQueueExecutor(address="127.0.0.1", worker_options="--cores 2")
    executor = PonchoWorkQueueExecutor(address="127.0.0.1", worker_options="--cores 2")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        with parsl.load(Config(executors=[executor], run_dir="runinfo", usage_tracking=0)):
            with open("words.txt", "w") as file:
                file.write("a partridge in a pear tree\n")
            counted = count_words(inputs=[File("words.txt")], outputs=[File("count.txt")])
            print("means:", means([[1, 2], [3, 4, 5]]).result())
            counted.result()
            with open("count.txt") as file:
                print("words:", file.read().strip())
        os.chdir("/")


if __name__ == "__main__":
    main()
