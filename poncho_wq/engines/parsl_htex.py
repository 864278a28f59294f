"""HighThroughputExecutor workers inside an environment: a launch command for Parsl's own executor."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

from poncho_wq.engines import core
from poncho_wq.engines.parsl_apps import parsl_requirement
from poncho_wq.wrapper import wrapper_path

if TYPE_CHECKING:
    from poncho_wq.prepare import EnvironmentLike

__all__ = ["htex_launch_cmd"]


def htex_launch_cmd(environment: EnvironmentLike, unpack_to: str | os.PathLike[str]) -> str:
    """``HighThroughputExecutor(launch_cmd=htex_launch_cmd(E, unpack_to="/local/scratch/env"))``.

    ``environment``: anything that ``poncho_wq.environment`` takes; this version of Parsl is added to a description,
    while an ``Environment`` or a tarball must have it.  Every block unpacks it below ``unpack_to`` on its node unless
    it is there, once for all blocks of the node; tarball and wrapper are read by their paths here, from a shared file
    system.  ``unpack_to`` may hold variables of the node, such as ``$TMPDIR``.

    Raises what ``poncho_wq.environment`` raises.
    """
    made = core.prepared(environment, (parsl_requirement(),))
    # In double quotes only what the shell expands there on purpose stays special.
    place = os.fspath(unpack_to)
    for special in ("\\", '"', "`"):
        place = place.replace(special, "\\" + special)
    prefix = f'"{place}/poncho-env-{made.identity[:32]}"'
    words = ["sh", shlex.quote(str(wrapper_path())), "-e", shlex.quote(str(made.tarball)), "--id", made.identity]
    before = " ".join([*words, "--unpack-to", prefix, "--", ""])
    # Parsl fills in its own fields by `format`, and a block's number by a second one.
    return before.replace("{", "{{{{").replace("}", "}}}}") + DEFAULT_LAUNCH_CMD
