"""Progress on a command's stderr."""

from poncho_wq.showing import progress

__all__ = ["progress"]
