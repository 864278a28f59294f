"""The classes of PROMINENCE's Python client: ``from poncho_wq.prominence import *``.

What they create is run by Work Queue, TaskVine or this machine: see docs/prominence.md.
"""

from poncho_wq.batch.prominence.factories import Dependency, ParameterSet, ParameterSweep, Repeat, Zip
from poncho_wq.batch.prominence.job import Job
from poncho_wq.batch.prominence.parts import (
    Artifact,
    InputFile,
    JobPolicies,
    Notification,
    Resources,
    Task,
    WorkflowPolicies,
)
from poncho_wq.batch.prominence.workflow import Workflow

__all__ = [
    "Artifact",
    "Dependency",
    "InputFile",
    "Job",
    "JobPolicies",
    "Notification",
    "ParameterSet",
    "ParameterSweep",
    "Repeat",
    "Resources",
    "Task",
    "Workflow",
    "WorkflowPolicies",
    "Zip",
]
