"""Passwords that the user's keyring holds, asked for by its program: ``keyring --mode creds get SERVICE``.

By the program and not as a library, as pip and uv can do it too: whatever backend the site has set up may need modules
that are not beside ours.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

# A keyring that is locked may ask for its password, and nobody is there to answer.
_SECONDS = 20


def login(services: Iterable[str]) -> tuple[str, str] | None:
    """User and password for the first of ``services`` that the keyring knows; None without a keyring, or an answer."""
    program = shutil.which("keyring")
    if program is None:
        return None
    for service in services:
        try:
            done = subprocess.run(
                [program, "--mode", "creds", "get", service],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        words = done.stdout.decode(errors="replace").splitlines()
        if done.returncode == 0 and len(words) == 2:
            return words[0], words[1]
    return None
