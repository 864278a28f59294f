"""What jobs and workflows have in common: a number once they are created, an end to wait for, and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from poncho_wq.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

FINAL = ("completed", "failed", "killed", "deleted")


class Created:
    """A base of ``Job`` and ``Workflow``.  ``_KIND`` is what errors call one."""

    __slots__ = ("_id",)
    _KIND: ClassVar[str]
    _id: int | None

    @property
    def id(self) -> int | None:
        """Its number, None before it is created."""
        return self._id

    @property
    def status(self) -> str | None:
        """One of PROMINENCE's states; None before it is created."""
        raise NotImplementedError

    def _describe(self, document: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def wait(self, timeout: float = 0) -> None:
        """Wait until it is over, at most ``timeout`` seconds (0: without limit)."""
        from poncho_wq.batch.prominence import client

        self._number()
        client.wait(self.done, timeout)

    def done(self) -> bool:
        """Whether it is over."""
        return self.status in FINAL

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """A new one from PROMINENCE's JSON, the user's or a server's: what that adds (its id, status …) is passed over.

        Raises ``SpecError`` for any other key that PROMINENCE does not have there, with its place.
        """
        made = cls()
        made._describe(document)
        return made

    def _number(self) -> int:
        if self._id is None:
            raise EngineError(f"the {self._KIND} has not been created", advice="call create() first")
        return self._id
