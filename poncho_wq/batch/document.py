"""A ``Batch`` as JSON text and back: how the journal keeps it.  Bytes are base64, what is default is left out."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

from poncho_wq.batch.database import made
from poncho_wq.batch.model import Batch, Input, Job, Notification, Output, Policies, Resources, Step

_FORMAT = 1
# The values inside each type that are of a type of ours; a tuple where there are several.
_PARTS: dict[type, dict[str, type]] = {
    Batch: {"jobs": Job, "notifications": Notification},
    Job: {
        "steps": Step, "inputs": Input, "outputs": Output, "resources": Resources, "policies": Policies,
        "notifications": Notification,
    },
}  # fmt: skip


def to_json(batch: Batch) -> str:
    """Equal batches give equal text."""
    return json.dumps({"format": _FORMAT, "batch": _plain(batch)}, sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Batch:
    """Raises ``ValueError``, ``TypeError``, ``LookupError``, ``AttributeError`` or ``RecursionError`` for anything but
    what ``to_json`` wrote."""
    document = json.loads(text)
    if document.get("format") != _FORMAT:
        raise ValueError(f"a batch of format {document.get('format')}; this program reads format {_FORMAT}")
    batch: Batch = _made(Batch, document["batch"])
    return batch


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {}
        for each in dataclasses.fields(value):
            given = getattr(value, each.name)
            default = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            if given != default:
                found[each.name] = _plain(given)
        return found
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _made(kind: type, document: dict[str, Any]) -> Any:
    parts = _PARTS.get(kind, {})
    given = {}
    for name, value in document.items():
        part = parts.get(name)
        if part is not None:
            value = tuple(_made(part, item) for item in value) if isinstance(value, list) else _made(part, value)
        elif name == "content":
            value = base64.b64decode(value)
        elif isinstance(value, list):
            value = tuple(value)
        given[name] = value
    return made(kind, given)
