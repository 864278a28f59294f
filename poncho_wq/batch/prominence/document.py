"""A file with PROMINENCE's JSON of a job or a workflow, for ``poncho-wq batch run``."""

from __future__ import annotations

from pathlib import Path

from poncho_wq.batch.front_ends import Loaded, text_of
from poncho_wq.batch.prominence import uploads
from poncho_wq.batch.prominence.translation import translate
from poncho_wq.errors import SpecError


def load(path: Path) -> Loaded:
    """Read the file.  Raises ``SpecError`` when it cannot be read or is no JSON, ``BatchError`` with all else."""
    import json

    text = text_of(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"is not JSON: {error}", source=str(path)) from error
    made = translate(document, directory=path.parent, source=str(path), upload=uploads.place)
    return Loaded(batch=made.batch, front_end="prominence", source=text, notes=made.notes)
