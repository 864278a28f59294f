"""TaskVine: tasks, libraries and calls in prepared environments.  The short public name of ``engines.taskvine``."""

from __future__ import annotations

from poncho_wq.engines.taskvine import FunctionCall, Manager, PonchoTask
from poncho_wq.engines.vine_libraries import library_from_functions
from poncho_wq.engines.vine_manager import declare_environment

__all__ = ["FunctionCall", "Manager", "PonchoTask", "declare_environment", "library_from_functions"]
