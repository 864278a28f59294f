"""The platforms that a worker may have, by the names that conda gives them."""

from __future__ import annotations

import platform
import sys

from poncho_wq.errors import BuildError

# uname's machine → conda's subdir.  conda: https://docs.conda.io/projects/conda-build ("target_platform").
PLATFORMS = {"x86_64": "linux-64", "amd64": "linux-64", "aarch64": "linux-aarch64", "arm64": "linux-aarch64"}


def host_platform() -> str:
    """The platform of this machine: ``linux-64`` or ``linux-aarch64``.

    Raises ``BuildError`` on anything else, by its name: an environment built here could run on no worker.
    """
    machine = platform.machine().lower()
    if not sys.platform.startswith("linux") or machine not in PLATFORMS:
        raise BuildError(
            f"this machine is {sys.platform} on {machine or 'an unknown processor'}; "
            "workers are Linux on x86_64 or aarch64",
            advice="build the environment on a Linux x86_64 or aarch64 machine, such as the cluster's login node",
        )
    return PLATFORMS[machine]
