"""What a Python interpreter knows about itself.  Standard library only, as it also runs as a script under any Python.

Everything is asked of the running interpreter rather than guessed from paths, because distributions differ: Debian
keeps its packages elsewhere, Fedora has `lib64`, a module tree may start Python through a script.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig


def describe() -> dict[str, str]:
    """The facts of the *base* interpreter, also when it runs inside a virtual environment; see `Interpreter`."""
    return {
        "executable": _program(),
        "implementation": sys.implementation.name,
        "version": platform.python_version(),
        "build": sys.version,
        "soabi": sysconfig.get_config_var("SOABI") or "",
        "stdlib": os.path.dirname(os.path.realpath(os.__file__)),
        "platstdlib": sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
        "prefix": sys.base_prefix,
        "exec_prefix": sys.base_exec_prefix,
        "platlibdir": getattr(sys, "platlibdir", "lib"),
    }


def _program() -> str:
    """The base interpreter's program.  In an environment made with `--copies`, Python 3.10 takes the copy for it."""
    executable = getattr(sys, "_base_executable", None) or sys.executable or ""
    if sys.prefix != sys.base_prefix and executable.startswith(os.path.join(sys.prefix, "")):
        name = "python{}.{}".format(*sys.version_info)
        original = os.path.join(sys.base_exec_prefix, "bin", name)
        executable = original if os.path.exists(original) else executable
    return _binary(executable)


def _binary(executable: str) -> str:
    """The program itself.  What starts it may be a script (pyenv, some module trees); then the kernel knows better."""
    real = os.path.realpath(executable) if executable else ""
    try:
        with open(real, "rb") as file:
            if file.read(4) == b"\x7fELF":
                return real
    except OSError:
        pass
    return os.path.realpath("/proc/self/exe")


if __name__ == "__main__":
    json.dump(describe(), sys.stdout)
