"""PROMINENCE's ``Workflow``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from poncho_wq.batch.model import State
from poncho_wq.batch.prominence import keys
from poncho_wq.batch.prominence.created import Created
from poncho_wq.batch.prominence.factories import Dependency, Factory
from poncho_wq.batch.prominence.job import Job, set_id
from poncho_wq.batch.prominence.parts import Notification, WorkflowPolicies
from poncho_wq.errors import EngineError
from poncho_wq.specs.document import object_at


class Workflow(Created):
    """Jobs, which of them wait for which, and factories that make many of one.

    ``Workflow(id)`` is one that was created before, in whatever process.
    """

    _KIND = "workflow"
    __slots__ = ("dependencies", "factories", "jobs", "labels", "name", "notifications", "policies")

    def __init__(self, id: int | None = None) -> None:
        self._id: int | None = None
        self.name = ""
        self.labels: dict[str, str] = {}
        self.jobs: list[Job] = []
        self.dependencies: list[Dependency] = []
        self.factories: list[Factory] = []
        self.policies = WorkflowPolicies()
        self.notifications: list[Notification] = []
        if id is not None:
            from poncho_wq.batch.prominence import client

            record, jobs = client.batch(id)
            document = json.loads(record.source or "{}")
            if "jobs" not in document:
                raise EngineError(f"there is no workflow {id}")
            self._describe(document)
            self._is(id, {job.name: job.id for job in jobs})

    @property
    def status(self) -> str | None:
        """``idle``, ``running``, ``completed``, ``failed`` or ``deleted``; None before it is created.

        It has failed when any of its jobs did not complete, and nothing of it runs any more.
        """
        if self._id is None:
            return None
        from poncho_wq.batch.prominence import client

        states = {job.state for job in client.batch(self._id)[1]}
        if any(not state.final for state in states):
            return "idle" if states <= {State.WAITING, State.IDLE} else "running"
        if states == {State.COMPLETED}:
            return "completed"
        return "deleted" if State.DELETED in states and not states & {State.FAILED, State.KILLED} else "failed"

    def create(self) -> None:
        """Hand the workflow over; it runs whether this process goes on or not.

        Raises ``SpecError`` (a ``BatchError``) with all that is wrong with it, ``EngineError`` for what cannot be run.
        """
        from poncho_wq.batch.prominence import client

        self._is(*client.create(self.to_dict(), "workflow"))

    def delete(self) -> bool:
        """End all of its jobs; False when they were over."""
        from poncho_wq.batch.prominence import client

        return client.delete(self._number())

    def remove(self) -> bool:
        """Take it out of the listings; False when it is not over, or out already."""
        from poncho_wq.batch.prominence import client

        return client.remove(self._number())

    def rerun(self) -> int:
        """Run again what did not complete, and what was to follow it, as a new workflow; returns its id.

        Raises ``EngineError`` when it is not over, or everything completed.
        """
        from poncho_wq.batch.prominence import client

        return client.rerun(self._number())

    def job(self, name: str) -> Job:
        """One of its jobs as it was created, by its name; of a factory's, ``<job>_<i>``.  Raises ``EngineError``."""
        from poncho_wq.batch.prominence import client

        found = {job.name: job.id for job in client.batch(self._number())[1]}
        if name not in found:
            raise EngineError(f"the workflow has no job {name}", advice=f"it has: {', '.join(found)}")
        return Job(found[name])

    def to_dict(self) -> dict[str, Any]:
        """PROMINENCE's JSON.  Raises ``OSError`` when an input file cannot be read."""
        dependencies: dict[str, list[str]] = {}
        for each in self.dependencies:
            for parent, children in each.to_dict().items():
                known = dependencies.setdefault(parent, [])
                known += [child for child in children if child not in known]
        more = {
            "labels": dict(self.labels), "dependencies": dependencies,
            "factories": [each.to_dict() for each in self.factories], "policies": self.policies.to_dict(),
            "notifications": [each.to_dict() for each in self.notifications],
        }  # fmt: skip
        found: dict[str, Any] = {"name": self.name, "jobs": [job.to_dict() for job in self.jobs]}
        return {**found, **{key: value for key, value in more.items() if value}}

    def _describe(self, document: Mapping[str, Any]) -> None:
        given = keys.description(document, keys.WORKFLOW)
        self.name = given.get("name") or ""
        self.labels = dict(object_at(keys.TOP.key("labels"), given.get("labels") or {}))
        self.jobs = keys.each_of(given, "jobs", Job.from_dict)
        place = keys.TOP.key("dependencies")
        self.dependencies = [
            Dependency(parent, [*keys.names_at(place.key(parent), children)])
            for parent, children in object_at(place, given.get("dependencies") or {}).items()
        ]
        self.factories = keys.each_of(given, "factories", Factory.from_dict)
        if given.get("factory") is not None:
            self.factories.append(self._older_factory(given["factory"]))
        with keys.within(keys.TOP.key("policies")):
            self.policies = WorkflowPolicies.from_dict(given.get("policies") or {})
        self.notifications = keys.each_of(given, "notifications", Notification.from_dict)

    def _older_factory(self, document: Any) -> Factory:
        """The one that makes instances of all jobs."""
        place = keys.TOP.key("factory")
        if self.factories:
            place.fail("is the older form of factories: give one of the two")
        with keys.within(place):
            made = Factory.from_dict(document)
        made.jobs = [job.name for job in self.jobs]
        return made

    def _is(self, number: int, jobs: Mapping[str, int]) -> None:
        """It has been created; those of its jobs that no factory makes instances of are jobs by themselves."""
        self._id = number
        for job in self.jobs:
            set_id(job, jobs.get(job.name))
