"""The environments of a batch, before its first job: built or found, and what that took, for people."""

from __future__ import annotations

import time
from typing import Any

from poncho_wq.batch.model import Batch
from poncho_wq.batch.tasks import environments
from poncho_wq.engines.core import prepared


def prepare(batch: Batch) -> dict[str, Any]:
    """Prepare every environment that the batch names.  Returns facts for the journal: ``environments`` is a list of
    identity, bytes, whether it was built now, seconds that took, Python.  Raises as ``poncho_wq.environment`` does."""
    found = []
    for each in environments(batch):
        started = time.monotonic()
        env = prepared(each)
        found.append(
            {
                "identity": env.identity, "size": env.size, "python": env.python, "built": not env.cached,
                "seconds": time.monotonic() - started, "tarball": str(env.tarball),
            }
        )  # fmt: skip
    return {"environments": found}
