"""The user's configuration: ``$PONCHO_CONFIG``, else ``config.toml`` in the user's configuration directory.

[matrix]
homeserver = "https://matrix.org"
token = "…"            # of the account that sends the messages

[email]
host = "smtp.example.org"
to = "me@example.org"  # and from, port, user, password, security = "none", "starttls" or "tls"

[prominence]           # as in ``prominence.settings``
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from poncho_wq.errors import SpecError


def config_file() -> Path:
    """Where the configuration is, if there is any."""
    given = os.environ.get("PONCHO_CONFIG")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_config_dir("poncho_wq")) / "config.toml"


def section(name: str, required: Mapping[str, str]) -> dict[str, str] | None:
    """The values of ``[name]`` as text; None when the configuration or the section is not there.

    ``required``: key → what to put there, for the error when one is missing.  Raises ``SpecError``.
    """
    # tomli is the same for the Python before.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    path = config_file()
    try:
        document = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot be read: {error}", source=str(path)) from error
    found = document.get(name)
    if found is None:
        return None
    if not isinstance(found, dict):
        raise SpecError("expected a section", path=name, source=str(path))
    for key, what in required.items():
        if not found.get(key):
            raise SpecError(f"lacks {key!r}: {what}", path=name, source=str(path))
    return {key: str(value) for key, value in found.items()}
