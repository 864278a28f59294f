"""A PROMINENCE workflow: a sweep of one job, and a job that gathers what its instances have found.

    python examples/prominence_sweep.py

It runs on this machine. With PONCHO_PROMINENCE_ENGINE=work_queue and PONCHO_PROMINENCE_WORKERS=2 two Work Queue workers
run it; docs/prominence.md tells the rest.
"""

from poncho_wq.prominence import Dependency, Job, ParameterSet, ParameterSweep, Task, Workflow

# What the tasks run in: anything that poncho_wq.environment takes; here a specification with nothing but Python.
ENVIRONMENT = {"pip": []}


def job(name: str, program: str) -> Job:
    task = Task(image=ENVIRONMENT, command=f"python3 -c '{program}'")
    made = Job()
    made.name = name
    made.tasks.append(task)
    made.resources.walltime = 10  # minutes
    return made


square = job("square", 'import sys; x = float("$x"); print(f"{x} squared is {x * x:.2f}")')
last = job("last", 'print("all of them are done")')

workflow = Workflow()
workflow.name = "squares"
workflow.jobs = [square, last]
workflow.factories = [ParameterSweep("x", jobs=[square], parameters=[ParameterSet("x", start=0, end=0.3, step=0.1)])]
workflow.dependencies = [Dependency(square, [last])]
workflow.create()
workflow.wait()

for name in ("square_0", "square_1", "square_2", "square_3", "last"):
    print(f"{name}: {workflow.job(name).stdout().strip()}")
print(f"workflow {workflow.id}: {workflow.status}")
