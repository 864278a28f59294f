"""Which environment variables a specification may set, and why it may not set the others.

`git.VAR` and `http.VAR` become exported variables in every task's shell, next to those of `env`.  A name that the
shell, the loader, Python or this package itself gives a meaning to would break the environment it is meant to serve.
"""

from __future__ import annotations

import re

from poncho_wq.errors import SpecError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SHELL = "it belongs to the shell"
_ENGINE = "the engine sets it for every task"
_ACTIVATION = "activating the environment sets it"

RESERVED_PREFIXES = {
    "BASH_": _SHELL,
    "CONDA_": _ACTIVATION,
    "GLIBC_": "it changes how programs are loaded",
    "LD_": "it changes how programs are loaded; packages bring their own libraries",
    "PONCHO_": "it belongs to poncho_wq",
    "PYTHON": "it changes how Python starts; the environment's own settings are kept",
    "VINE_": _ENGINE,
    "WORK_QUEUE_": _ENGINE,
}
RESERVED = {
    **dict.fromkeys(
        ("BASHOPTS", "CDPATH", "ENV", "EUID", "GROUPS", "IFS", "LINENO", "OLDPWD", "OPTARG", "OPTIND"), _SHELL
    ),
    **dict.fromkeys(("PPID", "PS1", "PS2", "PS4", "PWD", "SHELL", "SHELLOPTS", "SHLVL", "UID", "_"), _SHELL),
    **dict.fromkeys(("CORES", "DISK", "GPUS", "MEMORY", "TMPDIR"), _ENGINE),
    **dict.fromkeys(("HOME", "LOGNAME", "USER"), "it says whose account the task runs under"),
    "GCONV_PATH": "it changes how programs are loaded",
    "PATH": "it finds the environment's programs",
    "VIRTUAL_ENV": _ACTIVATION,
}


def check_variable(name: str) -> str:
    """`name`, when a specification may set it.  Raises `SpecError`, without a path, saying why not."""
    if not _IDENTIFIER.fullmatch(name):
        raise SpecError("is not the name of a variable", advice="use letters, digits and _, and no digit first")
    reason = RESERVED.get(name)
    if reason is None:
        reason = next((why for prefix, why in RESERVED_PREFIXES.items() if name.startswith(prefix)), None)
    if reason is not None:
        raise SpecError(f"cannot be set by a specification: {reason}", advice="choose another name")
    return name
