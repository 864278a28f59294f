"""Telling people that a job or a batch is over: by which means, and in which words.

A means is a ``Sender`` for one ``kind`` of notification.  ``senders_for`` makes those that a batch needs before
anything runs: one that is not configured is refused then, and not after a week.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from poncho_wq.batch.manager import Change
from poncho_wq.batch.model import Batch, Notification, State
from poncho_wq.errors import EngineError, PonchoError


class Sender(Protocol):
    """Sends one message: ``to`` as ``Notification`` has it, ``subject`` of one line, ``text`` of any number."""

    def __call__(self, to: str, subject: str, text: str) -> None:
        """Send it.  Raises a ``PonchoError``."""


def _matrix() -> Sender:
    from poncho_wq.batch import matrix

    account = matrix.account()
    return lambda to, subject, text: matrix.send(account, to, text)


def _email() -> Sender:
    from poncho_wq.batch import mail

    account = mail.account()
    return lambda to, subject, text: mail.send(account, to, subject, text)


# A kind of notification → what makes its sender, raising EngineError when it is not configured.
MAKERS: dict[str, Callable[[], Sender]] = {"matrix": _matrix, "email": _email}


def senders_for(batch: Batch) -> dict[str, Sender]:
    """The senders of all that the batch and its jobs ask for.  Raises ``EngineError``, ``SpecError``."""
    wanted = [*batch.notifications, *(each for job in batch.jobs for each in job.notifications)]
    senders = {}
    for kind in dict.fromkeys(each.kind for each in wanted):
        if kind not in MAKERS:
            raise EngineError(f"there are no notifications by {kind}", advice=f"there are: {', '.join(MAKERS)}")
        senders[kind] = MAKERS[kind]()
    return senders


def notifier(
    senders: Mapping[str, Sender], counts: Callable[[int], Mapping[State, int]], warn: Callable[[str], None]
) -> Callable[[Notification, Change], None]:
    """What a ``Manager`` takes as ``notify``.  A message that cannot be sent is a warning: the work is done."""

    def tell(notification: Notification, change: Change) -> None:
        subject, text = words(change, counts(change.batch.id))
        try:
            senders[notification.kind](notification.to, subject, text)
        except PonchoError as error:
            to = f" to {notification.to}" if notification.to else ""
            warn(f"no message could be sent{to} by {notification.kind}: {error}")

    return tell


def words(change: Change, counts: Mapping[State, int]) -> tuple[str, str]:
    """Subject and text."""
    title = change.batch.title
    if change.job is not None:
        subject = f"job {change.job.name} of {title} is {change.job.words}"
        return subject, subject
    many = ", ".join(f"{count} {state.value}" for state, count in counts.items())
    return f"batch {title} is over", f"your distributed compute job {title} has finished all its jobs: {many}"
